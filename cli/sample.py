"""`rwk sample`: images of prompts, by any generator, in a folder that `rwk score` reads."""

from __future__ import annotations

from typing import Any

import click

from rwk.cli.console import note, progress
from rwk.cli.options import Common, options
from rwk.policy_opt.experiment import Drawing, Recipe


@click.command("sample")
@options(Drawing, Recipe)
def command(drawing: Drawing, recipe: Recipe, common: Common) -> dict[str, Any]:
    """Draw images of prompts with a generator.

    Writes PNG files and manifest.jsonl (image, prompt) to a folder; `rwk score FOLDER/manifest.jsonl` scores them.
    With --best-of N --by REWARD the best of N images of each prompt are kept, and the manifest tells their scores;
    --search says how they are found. With --refine-by REWARD what is kept then climbs that reward's gradient.
    """
    with progress("loading"):
        from rwk.policy_opt import generator as generators
        from rwk.policy_opt.compiled import compile_draws
        from rwk.policy_opt.optimize import sampling_of
        from rwk.policy_opt.sample import sample_to_folder
        from rwk.rewards.registry import load

        generator = generators.load(drawing.generator, device=common.device)
        if drawing.torch_compile:
            compile_draws(generator)
        reward = load(drawing.by, device=common.device) if drawing.by else None
        refiner = load(drawing.refine_by, device=common.device) if drawing.refine_by else None
    with progress("drawing") as advance:
        written = sample_to_folder(
            drawing,
            generator,
            sampling_of(generator.spec.sampling, recipe),
            seed=common.seed,
            reward=reward,
            refiner=refiner,
            device=common.device,
            progress=advance,
        )
    if written.get("unscored"):
        note(f"{drawing.by} gives no score to {written['unscored']} of {written['drawn']} images.")
    chosen = f", the best of {drawing.best_of} each by {drawing.by}," if drawing.best_of else ""
    note(f"{written['images']} images of {written['prompts']} prompts{chosen} are in {drawing.out}.")
    return written

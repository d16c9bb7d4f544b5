"""`rwk evaluate`: benchmarks of a generator."""

from __future__ import annotations

from typing import Any

import click

from rwk.cli.console import note, progress, show, table
from rwk.cli.options import Common, options
from rwk.policy_opt.experiment import Evaluation, Recipe


@click.command("evaluate")
@options(Evaluation, Recipe)
def command(evaluation: Evaluation, recipe: Recipe, common: Common) -> dict[str, Any]:
    """Measure a generator on benchmarks, by category and over several seeds.

    Writes result.json, with the recipe that the numbers depend on, and scores.jsonl, a line an image. Of the world of
    shapes the truth is known: gold accuracy is the share of images of which every fact holds. GenEval, T2I-CompBench
    and DPG-Bench have rules of their own, and the figures of the first two are means of their categories. Of a file of
    prompts the rewards are measured. Similarity is that of the images of one prompt. Intervals cover 95 %, clustered by
    prompt.
    """
    out = evaluation.folder()
    with progress("loading"):
        import torch

        from rwk.policy_opt import benchmarks, judging, measured
        from rwk.policy_opt import generator as generators
        from rwk.policy_opt.optimize import sampling_of
        from rwk.policy_opt.policy import world
        from rwk.policy_opt.suites import BENCHMARKS, benchmark
        from rwk.rewards.ranks import own_device

        device = own_device(common.device)
        place = world(torch.device(device))
        chosen = [benchmark(name, evaluation.prompts) for name in evaluation.benchmarks or BENCHMARKS]
        generator = generators.load(evaluation.generator, device=device)
        rewards = judging.judges(
            chosen,
            rewards=evaluation.rewards,
            gold=evaluation.gold,
            judge=evaluation.judge,
            device=device,
        )
    with progress("measuring") as advance:
        found, document = benchmarks.evaluate(
            evaluation,
            generator,
            chosen,
            rewards,
            sampling_of(generator.spec.sampling, recipe),
            seed=common.seed,
            progress=advance,
            place=place,
        )
    if place.rank == 0:
        benchmarks.write(out, found, document)
    heads, lines = measured.tabulated(found)
    show(table(heads, lines, numbers=heads[1:]))
    for name in dict.fromkeys(name for one in found for name in one.scores if name not in measured.SHARES):
        count = sum(int(one.scores[name].isnan().sum()) for one in found if name in one.scores)
        if count:
            note(f"{name} gives no score to {count} images.")
    note(f"results and their recipe are in {out / 'result.json'}.")
    return {"folder": out, **document}

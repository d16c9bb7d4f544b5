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
    shapes the truth is known: gold accuracy is the share of images of which every fact holds. Of a file of prompts
    the rewards are measured. Similarity is that of the images of one prompt. Intervals cover 95 %, clustered by prompt.
    """
    out = evaluation.folder()
    with progress("loading"):
        from rwk.policy_opt import benchmarks
        from rwk.policy_opt import generator as generators
        from rwk.policy_opt.optimize import sampling_of
        from rwk.rewards.registry import load

        chosen = [benchmarks.benchmark(n, evaluation.prompts) for n in evaluation.benchmarks or benchmarks.BENCHMARKS]
        generator = generators.load(evaluation.generator, device=common.device)
        named = dict.fromkeys([*(one.gold for one in chosen if one.gold), *evaluation.rewards])
        rewards = {name: load(name, device=common.device) for name in named}
    with progress("measuring") as advance:
        found, document = benchmarks.evaluate(
            evaluation, generator, chosen, rewards, sampling_of(generator, recipe), seed=common.seed, progress=advance
        )
    benchmarks.write(out, found, document)
    heads, lines = benchmarks.tabulated(found)
    show(table(heads, lines, numbers=heads[1:]))
    for name in rewards:
        count = sum(int(one.scores[name].isnan().sum()) for one in found if name in one.scores)
        if count:
            note(f"{name} gives no score to {count} images.")
    note(f"results and their recipe are in {out / 'result.json'}.")
    return {"folder": out, **document}

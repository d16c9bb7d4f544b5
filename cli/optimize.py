"""`rwk optimize`: a generator learns from rewards by DPO, GRPO, REBEL or rejection sampling."""

from __future__ import annotations

import shutil
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

import click

from rwk.cli.console import is_main, note, progress, show, table
from rwk.cli.options import Common, options
from rwk.policy_opt.configs import Dpo, Grpo, Rebel, Rft
from rwk.policy_opt.experiment import Algorithm, Experiment, Recipe, Run

ALGORITHMS: dict[Algorithm, type[Dpo | Grpo | Rebel | Rft]] = {"dpo": Dpo, "grpo": Grpo, "rebel": Rebel, "rft": Rft}


def _settings() -> type[Any]:
    """A dataclass with every setting of every algorithm; None leaves it to the algorithm."""
    found: dict[str, tuple[Any, str]] = {}
    for name, config in ALGORITHMS.items():
        hints = get_type_hints(config)
        for item in fields(config):
            hint, text = found.get(item.name, (hints[item.name], item.metadata["help"]))
            found[item.name] = (hint, f"{text} [{name}: {item.default}]")
    del found["seed"]
    made = [(name, hint | None, field(default=None, metadata={"help": text})) for name, (hint, text) in found.items()]
    return make_dataclass("Settings", made, frozen=True)


Settings = _settings()


def algorithm(algo: Algorithm, settings: Any, seed: int) -> Dpo | Grpo | Rebel | Rft:
    """The algorithm with the settings that were given; raises ValueError for one that belongs to another algorithm."""
    given = {item.name: getattr(settings, item.name) for item in fields(settings)}
    given = {name: value for name, value in given.items() if value is not None}
    config = ALGORITHMS[algo]
    foreign = sorted(set(given) - {item.name for item in fields(config)})
    if foreign:
        raise ValueError(f"--{foreign[0].replace('_', '-')} is no setting of {algo}; leave it out.")
    return config(seed=seed, **given)


@click.command("optimize")
@options(Run, Experiment, Recipe, Settings)
def command(run: Run, experiment: Experiment, recipe: Recipe, settings: Any, common: Common) -> dict[str, Any]:
    """Let a generator learn from rewards by DPO, GRPO, REBEL or rejection sampling.

    The run folder gets config.json, metrics.jsonl, result.json, page.html with images before and after, and the
    tuned generator, which is also kept by name. Alarms, as when entropy collapses, are told at once, and stand in
    metrics.jsonl and on the page.
    """
    chosen, out = algorithm(run.algo, settings, common.seed), run.folder()

    from rwk.policy_opt.optimize import optimize, result
    from rwk.policy_opt.page import write_page
    from rwk.rewards.home import home

    with progress(run.algo) as advance:
        seen = [0]

        def update(done: int, total: int, metrics: dict[str, Any]) -> None:
            advance(done - seen[0], total)
            seen[0] = done
            for text in metrics.get("alarms", ()):
                note(f"update {done}: {text}")

        comparison = optimize(
            experiment, chosen, recipe, out=out, resume=run.resume, device=common.device, progress=update
        )
    kept = home("generators", run.name or run.algo)
    if is_main():
        write_page(comparison, out)
        shutil.copytree(comparison.trained.generator, kept, dirs_exist_ok=True)
    if comparison.trained.ended:
        note("the run was ended there, and its generator is that of the look with the highest watched reward.")
    found = result(comparison)
    show(outcome(found["results"]))
    note(f"the tuned generator is kept as {kept.name}; open {out / 'page.html'} to see it.")
    return {
        "run": out,
        "generator": kept.name,
        "page": out / "page.html",
        "processes": comparison.trained.processes,
        "algorithm": chosen,
        **found,
    }


def outcome(results: Any) -> Any:
    """A table of results: each score in each domain, with its 95 % interval."""
    from rwk.policy_opt.page import tabulated

    heads, lines = tabulated(results)
    return table(heads, lines, numbers=heads[1:])

"""`rwk optimize`: a generator learns from rewards by DPO, GRPO, REBEL, rejection sampling or a ladder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, field, fields, make_dataclass, replace
from typing import Any, get_type_hints

import click
from click.core import ParameterSource

from rwk.cli.console import is_main, note, progress, show, table
from rwk.cli.options import Common, options
from rwk.policy_opt.configs import Dpo, Grpo, Rebel, Rft
from rwk.policy_opt.experiment import Algorithm, Experiment, LearntRecipe, Run
from rwk.policy_opt.ladder_config import Ladder
from rwk.policy_opt.presets import PRESETS

ALGORITHMS: dict[Algorithm, type[Dpo | Grpo | Rebel | Rft]] = {
    "dpo": Dpo,
    "grpo": Grpo,
    "ladder": Ladder,
    "rebel": Rebel,
    "rft": Rft,
}


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


def algorithm(
    algo: Algorithm, settings: Any, seed: int, beneath: Mapping[str, Any] | None = None
) -> Dpo | Grpo | Rebel | Rft:
    """The algorithm with the settings that were given.

    Args:
        beneath: settings of a preset, for what was not given.

    Raises:
        ValueError: for a setting that belongs to another algorithm, or does nothing without another.
    """
    given = {item.name: getattr(settings, item.name) for item in fields(settings)}
    given = {name: value for name, value in given.items() if value not in (None, ())}
    config = ALGORITHMS[algo]
    foreign = sorted(set(given) - {item.name for item in fields(config)})
    if foreign:
        raise ValueError(f"--{foreign[0].replace('_', '-')} is no setting of {algo}; leave it out.")
    made = config(seed=seed, **{**(beneath or {}), **given})
    for item in fields(config):
        name, equals, value = item.metadata.get("of", "").partition("=")
        if item.name in given and name and not (getattr(made, name) == value if equals else getattr(made, name)):
            option, needed = (f"--{text.replace('_', '-')}" for text in (item.name, name))
            raise ValueError(
                f"{option} does nothing without {needed} {value}".rstrip() + "; name that, or leave it out."
            )
    return made


def under_preset(
    run: Run, experiment: Experiment, recipe: LearntRecipe
) -> tuple[Run, Experiment, LearntRecipe, dict[str, Any]]:
    """The call with what its preset says of the algorithm, the rewards and the recipe, and the preset's settings.

    What was given on the command line stays as it is.
    """
    if run.preset is None:
        return run, experiment, recipe, {}
    preset = PRESETS[run.preset]
    algo: Any = preset.algorithm(run.algo)
    scaled = run.scaled or experiment.generator.startswith("shapes.")
    if not scaled:
        if not _given("rewards") and not preset.rewards:
            raise ValueError(f"preset {run.preset} names no reward that rwk has; name one with --reward.")
        if not _given("rewards"):
            experiment = replace(experiment, rewards=preset.rewards)
        given = {name: value for name, value in asdict(recipe).items() if value is not None}
        recipe = LearntRecipe(**{**preset.recipe, **given})
    return replace(run, algo=algo, scaled=scaled), experiment, recipe, preset.values(algo, scaled=scaled)


def _given(option: str) -> bool:
    """Whether an option stands on the command line."""
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def foreseen(
    chosen: Dpo | Grpo | Rebel | Rft, experiment: Experiment, recipe: LearntRecipe, device: str
) -> dict[str, Any]:
    """What a run would hold, draw and train, shown as a table; draws nothing, and loads the generator at the most.

    Raises:
        ValueError: for what the run would refuse, as far as names, prompts and numbers tell.
    """
    import torch

    from rwk.policy_opt import generator as generators
    from rwk.policy_opt.optimize import sampling_of
    from rwk.policy_opt.packed import lays_out
    from rwk.policy_opt.prompts import gold_of
    from rwk.policy_opt.sharded import sharding
    from rwk.policy_opt.sizing import GIB, plan
    from rwk.policy_opt.sizing_known import KNOWN
    from rwk.policy_opt.sizing_shape import shape_of
    from rwk.policy_opt.token_weights import check_token_weights
    from rwk.rewards.pair_judge import is_pair_judge
    from rwk.rewards.ranks import own_device

    if shape := KNOWN.get(experiment.generator):
        own, dtype = generators.GENERATORS.target(experiment.generator).spec, torch.bfloat16
    else:
        generator = generators.load(experiment.generator, device=own_device(device))
        if isinstance(chosen, Grpo):
            check_token_weights(chosen.token_weights, generator)
        shape, own, dtype = shape_of(generator), generator.spec, next(generator.module.parameters()).dtype
    sampling, processes = sampling_of(own.sampling, recipe), int(os.environ.get("WORLD_SIZE", "1"))
    learnt = _learnt(chosen, experiment)
    judges = {*learnt, *filter(None, [gold_of(experiment.prompts)])}
    shown = experiment.opponents or chosen.group_size - 1  # answers that a pair judge gives for each image
    run = plan(
        chosen,
        shape,
        prompts=_prompts(chosen, experiment, processes),
        rewards=sum(shown if is_pair_judge(name) else 1 for name in judges),
        guided=sampling.guidance != 1,
        mode=sampling.mode,
        processes=processes,
        sharding=sharding(),
        lays_out=device == "cpu" and lays_out(dtype),
    )
    found = run.document()
    memory = (
        "weights gradients optimizer masters twin reference average decoder cache laid_out activations logits".split()
    )
    lines = [[name.replace("_", " "), f"{found[name] / GIB:.3f} GiB"] for name in (*memory, "peak")]
    counts = ("trained_parameters", "images_drawn", "tokens_drawn", "tokens_trained", "images_scored")
    lines += [[name.replace("_", " "), f"{found[name]:,}"] for name in counts]
    lines.append(["hours of one H100 at least, without rewards", f"{run.hours():.3g}"])
    show(table(["computed; memory is of one process", ""], lines, numbers=[""], foot=len(counts) + 1))
    return {"algorithm": chosen, "plan": found | {"h100_hours": run.hours()}}


def _learnt(chosen: Dpo | Grpo | Rebel | Rft, experiment: Experiment) -> list[str]:
    """The rewards that a run learns from, early or late; raises ValueError for a name that nothing has."""
    from rwk.policy_opt.win_rates import check_judges
    from rwk.rewards.expression import is_expression, parse
    from rwk.rewards.pair_judge import is_pair_judge
    from rwk.rewards.registry import REWARDS

    learnt = [*experiment.rewards, *(chosen.then if isinstance(chosen, Grpo) else ())]
    check_judges(learnt, experiment, chosen)
    for name in filter(None, [*learnt, experiment.watch]):
        if is_expression(name) and not REWARDS.knows(name):
            parse(name, lambda part: REWARDS.kind_of(part).tiny())
        elif not is_pair_judge(name):
            REWARDS.kind_of(name)
    return learnt


def _prompts(chosen: Dpo | Grpo | Rebel | Rft, experiment: Experiment, processes: int) -> int:
    """How many different prompts a run learns from; raises ValueError where they are too few for it."""
    from rwk.policy_opt import suites
    from rwk.policy_opt.optimize import check_counts

    found, _ = suites.chosen(experiment, seed=chosen.seed)
    count = len({prompt.text for prompt in found.train})
    check_counts(chosen, count, processes)
    return count


@click.command("optimize")
@options(Run, Experiment, LearntRecipe, Settings)
def command(run: Run, experiment: Experiment, recipe: LearntRecipe, settings: Any, common: Common) -> dict[str, Any]:
    """Let a generator learn from rewards by DPO, GRPO, REBEL, rejection sampling, or GRPO and that in turn (ladder).

    The run folder gets config.json, metrics.jsonl, result.json, page.html with images before and after, and the
    tuned generator, which is also kept by name. Alarms, as when entropy collapses, are told at once, and stand in
    metrics.jsonl and on the page.
    """
    run, experiment, recipe, beneath = under_preset(run, experiment, recipe)
    assert run.algo is not None  # the preset's, or that of the call
    chosen = algorithm(run.algo, settings, common.seed, beneath)
    if run.dry_run:
        return foreseen(chosen, experiment, recipe, common.device)
    out, name = run.folder(), run.name or run.algo

    from rwk.policy_opt.generator import GENERATORS
    from rwk.policy_opt.optimize import optimize, result
    from rwk.policy_opt.page import write_page
    from rwk.rewards.home import home, keep_in

    if name in GENERATORS.names():  # which a kept one could not be found under
        raise ValueError(f"a tuned generator needs a name of its own, got {name!r}, which is built in; choose another.")

    with progress(run.algo) as advance:
        seen = [0]

        def update(done: int, total: int, metrics: dict[str, Any]) -> None:
            advance(done - seen[0], total)
            seen[0] = done
            for text in metrics.get("alarms", ()):
                note(f"update {done}: {text}")

        comparison = optimize(
            experiment,
            chosen,
            recipe,
            out=out,
            resume=run.resume,
            device=common.device,
            preset=run.preset and run.preset + (" scaled" if run.scaled else ""),
            progress=update,
        )
    kept = home("generators", name)
    if is_main():
        write_page(comparison, out)
        keep_in("generators", comparison.trained.generator, name)
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

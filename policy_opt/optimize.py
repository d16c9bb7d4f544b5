"""One run: judge the generator, let it learn from rewards, judge it again on the same prompts and seeds."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rwk.calibration.statistics import Interval
from rwk.policy_opt import generator as generators
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.calibrated import with_card
from rwk.policy_opt.compiled import compile_draws
from rwk.policy_opt.configs import Dpo, Grpo, Rebel, Rft, Rounds
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.evaluate import GOLD, Drawn
from rwk.policy_opt.experiment import Experiment, Recipe
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.grpo_run import check_groups
from rwk.policy_opt.journal import Progress, Trained, start
from rwk.policy_opt.judging import give_back, judge, measures
from rwk.policy_opt.ladder import ladder, refuse_seconds
from rwk.policy_opt.ladder_config import Ladder
from rwk.policy_opt.policy import world
from rwk.policy_opt.prompts import FAMILIES, Domains, gold_of
from rwk.policy_opt.rebel import rebel
from rwk.policy_opt.rft import rft
from rwk.policy_opt.rounds import check_overlap
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.settings import Optimisation
from rwk.policy_opt.sharded import check_launch
from rwk.policy_opt.suites import chosen
from rwk.policy_opt.token_weights import check_token_weights
from rwk.policy_opt.watch import Watched
from rwk.policy_opt.win_rates import WinRate, check_judges, scorer
from rwk.rewards import registry
from rwk.rewards.base import Reward
from rwk.rewards.ranks import own_device
from rwk.rewards.sinks import finished


@dataclass(frozen=True)
class Comparison:
    """A generator before and after a run, on the same prompts and seeds."""

    before: dict[str, Drawn]
    """Domain -> what the generator drew."""
    after: dict[str, Drawn]
    trained: Trained
    proxies: list[str]
    gold: str | None
    """The reward that tells the truth about the prompts that are learnt from, where one does. In the scores of `Drawn`,
    `GOLD` holds what measures a domain, where anything does."""
    watched: str = ""
    """The reward that was looked at meanwhile, if one was."""

    @property
    def measured(self) -> bool:
        """Whether every domain has a `GOLD`."""
        return all(GOLD in drawn.scores for drawn in self.before.values())


Results = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
"""Row -> domain -> score -> the fields of its `Interval`."""
ALGORITHMS: dict[type[Optimisation], Callable[..., Trained]] = {
    Dpo: dpo,
    Grpo: grpo,
    Ladder: ladder,
    Rebel: rebel,
    Rft: rft,
}
"""The algorithms by their settings."""


def optimize(
    experiment: Experiment,
    algorithm: Dpo | Grpo | Rebel | Rft,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    out: Path,
    resume: bool = False,
    device: str = "cpu",
    preset: str | None = None,
    progress: Progress | None = None,
    seconds: float | None = None,
    later: bool = False,
) -> Comparison:
    """Lets a generator learn from rewards, and says what came of it.

    Writes to `out`: config.json (settings, seeds, versions), metrics.jsonl, result.json, and the tuned generator in
    `generator/`; with a watch also watch.jsonl.

    Args:
        experiment: what learns from what.
        algorithm: settings of one of `ALGORITHMS`; their type chooses it.
        recipe: how images are drawn, in training and in judging.
        out: the folder of the run.
        resume: go on with the run that is in the folder, which must have the same settings but for how long it is.
        device: where networks run; "cuda" is another GPU in each process of a machine.
        preset: what the settings were taken from, for config.json.
        progress: is called after every update.
        seconds: of processor time after which learning ends, at the next update; a ladder knows none.
        later: whether the generator learnt in a run before: where nothing is left to learn it ends well then.

    Raises:
        ValueError: for what does not fit together, as the settings and the run to resume, or a reward that is to be
            used in log-odds and its calibration.
        RunFailed: where nothing is learnt, or a benchmark measures no image.
    """
    if isinstance(algorithm, Ladder):
        refuse_seconds(seconds)
    if algorithm.stop_on_divergence and not experiment.watch:
        raise ValueError("--stop-on-divergence needs a reward to watch, got none; name one with --watch.")
    device = own_device(device)
    generator = generators.load(experiment.generator, device=device)
    check_launch(generator.module, adapters=algorithm.lora_rank > 0)
    if algorithm.torch_compile:
        compile_draws(generator)
    sampling = sampling_of(generator.spec.sampling, recipe)
    then = algorithm.then if isinstance(algorithm, Grpo) else ()
    learnt = list(dict.fromkeys([*experiment.rewards, *then]))
    check_judges(learnt, experiment, algorithm)
    rewards = {name: scorer(name, experiment.opponents, device) for name in learnt}
    weighted = [Weighted(name, reward, float(name in experiment.rewards)) for name, reward in rewards.items()]
    weighted = with_card(weighted, temperature=algorithm.calibrated, noise="card" in algorithm.std_floor)
    gold = gold_of(experiment.prompts)
    prompts, benchmarks = chosen(experiment, seed=algorithm.seed)
    texts = [prompt.text for prompt in prompts.train]
    for text in (*texts, *(prompt.text for prompt in prompts.watch)):
        generator.check_prompt(text)
    watched = watched_of(experiment, prompts, rewards, device)
    held = rewards | ({watched.reward.name: watched.reward.reward} if watched else {})  # loaded through the whole run
    if gold is not None and gold not in rewards:
        held[gold] = held.get(gold) or registry.load(gold, device=device)
        weighted.append(Weighted(gold, held[gold], 0.0))
    place = world(torch.device(device))
    check_counts(algorithm, len(set(texts)), place.size)
    if isinstance(algorithm, Grpo):
        check_token_weights(algorithm.token_weights, generator)

    load_judges = partial(measures, experiment, benchmarks, held, device)  # anew, not to lie beside what learns
    judging = partial(
        judge,
        generator,
        learnt={name: rewards[name] for name in learnt},
        images=experiment.eval_images,
        sampling=sampling,
        place=place,
    )
    judges = load_judges()
    run = {"algorithm": type(algorithm).__name__.lower(), **asdict(algorithm), "sampling": asdict(sampling)}
    temperatures = {part.name: part.temperature for part in weighted if algorithm.calibrated and part.name in learnt}
    settings = {"experiment": experiment.document(), "algorithm": run, "temperatures": temperatures}
    if experiment.prompts not in FAMILIES:  # a file may be another when the run goes on
        settings["experiment"]["prompts_sha256"] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    if "card" in algorithm.std_floor:
        settings["noises"] = {part.name: part.noise for part in weighted if part.name in learnt}
    if resume:
        check_same(out, settings)
    start(out, place, resume=resume)  # refuses a folder that is taken before anything is drawn
    if place.rank == 0:
        write_json(out / "config.json", settings | {"preset": preset, "versions": versions()})
    before = judging(judges)
    del judges
    give_back(device)
    learn = ALGORITHMS[type(algorithm)]
    trained = learn(
        algorithm,
        generator,
        weighted,
        texts,
        out=out,
        sampling=sampling,
        resume=resume,
        progress=progress,
        watched=watched,
        seconds=seconds,
        later=later,
    )
    after = judging(load_judges(), before=before)

    comparison = Comparison(before, after, trained, learnt, gold, experiment.watch)
    if place.rank == 0:
        write_json(out / "result.json", result(comparison))
    return comparison


def check_counts(algorithm: Dpo | Grpo | Rebel | Rft, prompts: int, processes: int) -> None:
    """Raises ValueError where an algorithm cannot learn from so many different prompts in so many processes."""
    if isinstance(algorithm, Rounds):
        check_overlap(algorithm, prompts, processes)
    else:
        check_groups(algorithm, prompts, processes)


def watched_of(
    experiment: Experiment, prompts: Domains, rewards: Mapping[str, Reward | WinRate], device: str
) -> Watched | None:
    """What the run is to look at meanwhile; None where it names nothing.

    Raises:
        ValueError: where a file has too few prompts to keep some for looking.
    """
    if not experiment.watch:
        return None
    if len(prompts.watch) < 2:
        raise ValueError(
            f"--watch needs 2 prompts or more that are neither learnt from nor judged on, got {len(prompts.watch)} in "
            f"{experiment.prompts}; add prompts or lower --eval-prompts."
        )
    reward = rewards.get(experiment.watch) or registry.load(experiment.watch, device=device)
    return Watched(Weighted(experiment.watch, reward, 0.0), prompts.watch, experiment.eval_images)


LENGTHS = ("steps", "rounds", "save_every")
"""Settings in which a resumed run may differ from what it was."""


def check_same(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ValueError where the run in a folder has other settings than these, or none."""
    try:
        held = json.loads((folder / "config.json").read_text())
        known = {(part, key): value for part in settings for key, value in held[part].items()}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no run to resume ({error}); leave --resume out or name another.") from error
    given = json.loads(json.dumps(settings, default=str))
    for part, values in given.items():
        for key, value in values.items():
            if key not in LENGTHS and known.get((part, key)) != value:
                raise ValueError(
                    f"the run in {folder} has {key} {known.get((part, key))!r}, got {value!r}; "
                    f"resume it with the settings that it has, or name another folder."
                )


def sampling_of(own: Sampling, recipe: Recipe) -> Sampling:
    """A generator's own sampling, but for what the recipe names; mode off needs no guidance to be named."""
    named = {key: value for key, value in asdict(recipe).items() if value is not None}
    unguided = {"guidance": 1.0} if named.get("mode") == "off" else {}
    return replace(own, **unguided | named)


def rows(comparison: Comparison) -> list[tuple[str, dict[str, Drawn], str | None]]:
    """The rows of a comparison: name, what was drawn, and by which proxy the best image is chosen, if one is."""
    count = next(iter(comparison.before.values())).scores[comparison.proxies[0]].shape[1]
    return [
        ("base", comparison.before, None),
        (f"best of {count}", comparison.before, comparison.proxies[0]),
        ("tuned", comparison.after, None),
    ]


def measured(drawn: Drawn, name: str, chooser: str | None) -> Interval:
    """Mean of a score over all images, or over the best of each prompt's by `chooser`."""
    return drawn.mean(name) if chooser is None else drawn.best_of(chooser, name)


def result(comparison: Comparison) -> dict[str, Any]:
    """What `result.json` holds: every row and domain with its intervals, by category too, and the cost."""
    shown = [*comparison.proxies, *([GOLD] if comparison.measured else [])]
    table: dict[str, Any] = {
        name: {
            domain: {score: measured(drawn, score, chooser)._asdict() for score in shown}
            for domain, drawn in judged.items()
        }
        for name, judged, chooser in rows(comparison)
    }
    categories = {
        name: {
            domain: {score: {c: i._asdict() for c, i in drawn.by_category(score).items()} for score in shown}
            for domain, drawn in judged.items()
        }
        for name, judged in (("base", comparison.before), ("tuned", comparison.after))
    }
    cost = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(comparison.trained).items()}
    return {"results": table, "categories": categories, "cost": cost}


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names: Sequence[str] = ("rwk", "torch", "transformers", "trl", "peft", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def write_json(path: Path, document: Any) -> None:
    """Writes a document so that a kill leaves the old file or the new one."""
    with finished(path) as unfinished:
        unfinished.write_text(json.dumps(document, indent=2, default=str) + "\n")

"""How a generator's images are measured in each domain: by the rewards of a benchmark, its rules or its questions."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rwk.policy_opt.dpg import ask, share
from rwk.policy_opt.evaluate import GOLD, JUDGED_SEED, Drawn, accuracy, draw, grouped, joined
from rwk.policy_opt.experiment import Experiment
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.policy import ALONE, World
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.suites import Benchmark
from rwk.policy_opt.win_rates import WinRate
from rwk.rewards.base import Reward
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import REWARDS, load


class Judges(NamedTuple):
    """The rewards that a benchmark is measured by."""

    shown: dict[str, Reward]
    """Those that score every image, by the name of their score."""
    within: dict[str, Reward]
    """Those of the benchmark's rules, or the one that answers its questions."""


def judges(
    chosen: Sequence[Benchmark],
    *,
    rewards: Sequence[str] = (),
    gold: Sequence[str] = (),
    judge: str = "judge.question",
    device: str = "cpu",
    known: Mapping[str, Reward] | None = None,
) -> list[Judges]:
    """The rewards of every benchmark; one that several need is loaded once.

    Args:
        chosen: the benchmarks.
        rewards: names of those that score every image besides.
        gold: NAME@PATH or NAME#REVISION to be loaded for a reward that is needed as NAME.
        judge: the reward that answers questions.
        device: where networks run.
        known: those that are loaded already, by name.

    Raises:
        ValueError: for a benchmark that nothing can judge, an unknown reward, or a `gold` that no benchmark needs.
    """
    instead = {REWARDS.parted(name)[0]: name for name in gold}
    needed = {name for one in chosen for name in (one.truth(), *itertools.chain.from_iterable(one.rules))} - {None}
    if unused := sorted(instead.keys() - needed):
        wanted = ", ".join(sorted(map(str, needed))) or "none"
        raise ValueError(f"--gold names a reward that a benchmark needs, of {wanted}, got {instead[unused[0]]}.")
    kept: dict[tuple[str, str], Reward] = {(name, repr([])): reward for name, reward in (known or {}).items()}

    def loaded(name: str, options: Mapping[str, Any]) -> Reward:
        key = instead.get(name, name), repr(sorted(options.items()))
        if key not in kept:
            kept[key] = load(key[0], device=device, **options)
        return kept[key]

    found = []
    for one in chosen:
        if one.gold is None and not rewards:
            raise ValueError(f"{one.name} has no reward that tells the truth; name one to judge by with --reward.")
        truth = one.truth()
        shown = {truth: loaded(truth, one.options)} if truth else {}
        shown |= {name: loaded(name, {}) for name in rewards if name not in shown}
        inner = [judge] if one.questions else dict.fromkeys(itertools.chain.from_iterable(one.rules))
        found.append(Judges(shown, {name: loaded(name, {}) for name in inner}))
    return found


def measures(
    experiment: Experiment, benchmarks: Mapping[str, Benchmark], known: Mapping[str, Reward | WinRate], device: str
) -> dict[str, tuple[Benchmark, Judges]]:
    """What each domain is judged on, with the rewards that measure it, none where nobody knows its truth.

    Args:
        experiment: names the weights of those rewards, and who answers questions.
        benchmarks: by domain.
        known: the rewards that are loaded already, by name.
        device: where networks run.
    """
    told = [one for one in benchmarks.values() if one.gold is not None]
    loaded = {name: reward for name, reward in known.items() if isinstance(reward, Reward)}
    found = iter(judges(told, gold=experiment.gold, judge=experiment.judge, device=device, known=loaded))
    return {
        domain: (one, next(found) if one.gold is not None else Judges({}, {})) for domain, one in benchmarks.items()
    }


def own_scores(
    images: Sequence[Sequence[Image.Image]], chosen: Benchmark, within: Mapping[str, Reward]
) -> tuple[Tensor, list[Tensor]]:
    """[P, n] what a benchmark's rules or questions make of images, and [P] answers [n, Q] to its questions.

    The scores are NaN, and there are no answers, where the benchmark has neither.

    Args:
        images: [P][n] of the benchmark's prompts.
        chosen: the benchmark.
        within: the rewards of its rules by name, or the one that answers its questions.
    """
    found = torch.full([len(images), len(images[0])], math.nan)
    if chosen.questions:
        (judge,) = within.values()
        told = [ask(judge, row, asked) for row, asked in zip(images, chosen.questions, strict=True)]
        return torch.stack([share(a, q) for a, q in zip(told, chosen.questions, strict=True)]), told
    of: dict[str, Tensor] = {}
    for name, reward in within.items():
        rows = [row for row, rule in enumerate(chosen.rules) if name in rule]
        if rows:
            of[name] = torch.full_like(found, math.nan)
            of[name][rows] = _scored(reward, [images[row] for row in rows], [chosen.prompts[row].text for row in rows])
    for row, rule in enumerate(chosen.rules):
        found[row] = torch.stack([of[name][row] for name in rule]).mean(0)
    return found, []


def _scored(reward: Reward, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> Tensor:
    """[P, n] scores of images [P][n]."""
    texts = [prompt for prompt, row in zip(prompts, images, strict=True) for _ in row]
    shown = list(itertools.chain.from_iterable(images))
    values = reward.score(shown, texts if reward.spec.needs_prompt else (), batch_size=64).values
    return values.reshape(len(images), -1)


def judge(
    generator: Generator,
    on: Mapping[str, tuple[Benchmark, Judges]],
    learnt: Mapping[str, Reward | WinRate],
    *,
    images: int,
    sampling: Sampling,
    before: Mapping[str, Drawn] | None = None,
    place: World = ALONE,
) -> dict[str, Drawn]:
    """What the generator draws for the prompts of each domain, scored by what it learns from, and by its truth, `GOLD`.

    Args:
        generator: what is judged.
        on: what each domain is, and the rewards that measure it.
        learnt: by name.
        images: of each prompt.
        sampling: how they are drawn.
        before: what it drew before; a pair judge compares each image with those of its prompt, else with its group.
        place: the processes, each of which draws for a share of the prompts, and is told what the others drew.

    Raises:
        RunFailed: where a domain's truth says nothing of any image.
    """
    judged = {}
    for domain, (chosen, by) in on.items():
        own = place.share(len(chosen.prompts))
        part = None
        if own:
            others = [before[domain].images[row] for row in own] if before else None
            drawn = _judged(generator, chosen.of(own), by, learnt, images, sampling, others)
            part = replace(drawn, rollout=drawn.rollout.cpu())
        judged[domain] = whole = joined(place.collect(part))
        if chosen.gold is not None and whole.scores[GOLD].isnan().all():
            why = next((note for row in whole.notes[GOLD] for note in row if note), "no reward of it gives a score")
            raise RunFailed(f"{chosen.name} measures no image of the domain {domain!r}: {why}; judge on another.")
    return judged


def _judged(
    generator: Generator,
    chosen: Benchmark,
    by: Judges,
    learnt: Mapping[str, Reward | WinRate],
    images: int,
    sampling: Sampling,
    others: Sequence[Sequence[Image.Image]] | None,
) -> Drawn:
    """What `judge` finds of one domain; `others` are as in `evaluate.draw`."""
    truth, rewards = chosen.truth(), dict(learnt)
    if truth is not None:  # another reward of this name may be learnt from, as one without the benchmark's facts
        own = by.shown[truth]
        truth = truth if learnt.get(truth, own) is own else GOLD
        rewards[truth] = own
    seed = JUDGED_SEED
    drawn = draw(generator, chosen.prompts, rewards, per_prompt=images, seed=seed, sampling=sampling, others=others)
    if truth is not None:
        drawn.scores[GOLD] = accuracy(drawn.scores[truth], rewards[truth].spec.high)
        drawn.notes[GOLD] = drawn.notes[truth]
    elif chosen.gold is not None:
        drawn.scores[GOLD] = own_scores(drawn.images, chosen, by.within)[0]
        drawn.notes[GOLD] = grouped([""] * drawn.scores[GOLD].numel(), images)
    return drawn


def give_back(device: str) -> None:
    """Frees what rewards held that are used no more; some networks hold themselves, and a GPU's memory is kept."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()

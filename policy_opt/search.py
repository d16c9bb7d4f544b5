"""Search at test time: the best of n images by a reward, and PARM, which stops hopeless images while they are drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rwk.policy_opt.generator import Generator
from rwk.policy_opt.potential import Judge
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.base import Reward


class Candidate(NamedTuple):
    """A finished image."""

    place: int
    """Which image of its prompt it is: that of `Generator.sample` at this place in the group."""
    image: Image.Image
    tokens: Tensor
    """[L] long."""
    score: float
    """By the reward that chooses; NaN where it gives none."""


@dataclass(frozen=True)
class Pick:
    """What a search found for a prompt."""

    prompt: str
    kept: list[Candidate]
    """The best first; of equals that drawn first, and what has no score last."""
    scores: dict[int, float]
    """Place -> score, of every finished candidate."""
    started: int
    """Candidates that were begun; those that were stopped are in no list."""


@dataclass(frozen=True)
class Cost:
    """What a search took."""

    tokens: int = 0
    """Tokens drawn, one after the other."""
    read_again: int = 0
    """Tokens that were drawn before and read once more, all at once, to go on from them."""
    finished: int = 0
    """Whole images, each decoded and scored."""
    judged: int = 0
    """Partial images, each decoded and judged, or whole ones that a critic looked at."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Search:
    """Picks in the order of the prompts, and their cost."""

    picks: list[Pick]
    cost: Cost


def best_of_n(
    generator: Generator,
    reward: Reward,
    prompts: Sequence[str],
    n: int,
    *,
    seed: int,
    sampling: Sampling | None = None,
    keep: int = 1,
    slots: int = 256,
) -> Search:
    """Draws n images of every prompt and keeps those that the reward scores highest.

    Args:
        generator: what draws.
        reward: what chooses.
        prompts: different ones.
        n: images of each.
        seed: of the draw.
        sampling: the generator's own by default.
        keep: how many are kept of each prompt, at most n.
        slots: images that are drawn at once, or the n of one prompt where these are more.
    """
    check_search(prompts, n, keep)
    begun, picks = time.monotonic(), []
    step = max(1, slots // n)
    for start in range(0, len(prompts), step):
        part = list(prompts[start : start + step])
        tokens = generator.sample(part, per_prompt=n, seed=seed, sampling=sampling).tokens
        finished = candidates(
            generator, reward, [p for p in part for _ in range(n)], list(range(n)) * len(part), tokens
        )
        picks += [picked(prompt, finished[i * n : (i + 1) * n], n, keep) for i, prompt in enumerate(part)]
    images = n * len(prompts)
    return Search(picks, Cost(images * generator.spec.tokens, finished=images, seconds=time.monotonic() - begun))


class _Row(NamedTuple):
    """A candidate that is being drawn."""

    prompt: int
    place: int
    tokens: Tensor
    """[k] those drawn so far."""


@dataclass
class _Budget:
    """What a prompt may still draw, and what became of its candidates."""

    free: int
    """Tokens that no living candidate will need."""
    started: int = 0
    finished: list[Candidate] = field(default_factory=list)
    stopped: list[tuple[float, _Row]] = field(default_factory=list)
    """Each with its potential."""


def parm(
    generator: Generator,
    reward: Reward,
    judge: Judge,
    prompts: Sequence[str],
    n: int,
    *,
    checkpoints: Sequence[int],
    least: float,
    seed: int,
    sampling: Sampling | None = None,
    keep: int = 1,
    slots: int = 256,
) -> Search:
    """Draws no more tokens than best of n, but stops candidates without potential, and begins others in their place.

    After PARM (arXiv 2501.13926): the clarity gate (a potential of NaN stops nothing), the potential, and the choice of
    the reward among those that were finished. Other than there, what is stopped costs nothing any more: its tokens go
    to new candidates of the same prompt, as long as one can be finished. A prompt of which nothing would be finished
    gets the stopped candidate of the highest potential that it can afford. The result does not depend on `slots`, and
    without a stop it is that of `best_of_n`.

    Args:
        generator: one with `decode_partial` and `continue_from`.
        reward: what chooses in the end.
        judge: what sees potential in a partial image.
        prompts: different ones.
        n: images of each that the tokens would suffice for.
        checkpoints: tokens drawn after which candidates are judged, rising, each below L.
        least: a candidate of less potential is stopped.
        seed, sampling, keep: as in `best_of_n`.
        slots: candidates that are drawn at once.

    Raises:
        ValueError: for checkpoints that do not rise within an image, and for a generator that shows or continues no
            partial images.
    """
    check_search(prompts, n, keep)
    whole = generator.spec.tokens
    stages = [*checkpoints, whole]
    if any(low >= high for low, high in zip([0, *stages], stages, strict=False)):
        raise ValueError(f"checkpoints must rise from above 0 to below {whole} tokens, got {list(checkpoints)}.")
    begun, cost = time.monotonic(), Cost()
    budgets = [_Budget(n * whole) for _ in prompts]
    queues: list[list[_Row]] = [[] for _ in stages]  # rows that have passed the checkpoint before
    while _refill(queues, budgets, stages):
        # The fullest queue goes first, so that no slot is empty while there are candidates enough to fill them.
        stage = max(range(len(queues)), key=lambda i: (min(len(queues[i]), slots), i))
        rows, queues[stage] = queues[stage][:slots], queues[stage][slots:]
        texts, places = [prompts[row.prompt] for row in rows], [row.place for row in rows]
        before = torch.stack([row.tokens for row in rows])  # [B, k]
        tokens = generator.continue_from(
            texts, before, places=places, seed=seed, until=stages[stage], sampling=sampling
        ).cpu()
        cost = replace(
            cost,
            tokens=cost.tokens + tokens.numel() - before.numel(),
            read_again=cost.read_again + before.numel(),
        )
        if stage == len(stages) - 1:
            for row, candidate in zip(rows, candidates(generator, reward, texts, places, tokens), strict=True):
                budgets[row.prompt].finished.append(candidate)
            cost = replace(cost, finished=cost.finished + len(rows))
            continue
        potential = judge(generator.decode_partial(tokens), texts, stages[stage]).tolist()
        cost = replace(cost, judged=cost.judged + len(rows))
        for row, drawn, value in zip(rows, tokens, potential, strict=True):
            if value < least:  # never so for NaN
                budgets[row.prompt].free += whole - stages[stage]
                budgets[row.prompt].stopped.append((value, row._replace(tokens=drawn)))
            else:
                queues[stage + 1].append(row._replace(tokens=drawn))
    picks = [picked(p, b.finished, b.started, keep) for p, b in zip(prompts, budgets, strict=True)]
    return Search(picks, replace(cost, seconds=time.monotonic() - begun))


def _refill(queues: list[list[_Row]], budgets: list[_Budget], stages: list[int]) -> bool:
    """Puts candidates that prompts can afford into the queues; says whether there is anything to draw."""
    whole = stages[-1]
    for index, budget in enumerate(budgets):
        while budget.free >= whole:
            queues[0].append(_Row(index, budget.started, torch.empty(0, dtype=torch.long)))
            budget.started += 1
            budget.free -= whole
    if any(queues):
        return True
    for budget in budgets:  # every candidate is finished or stopped
        if not budget.finished:
            row = _rescued(budget, whole)
            budget.free -= whole - len(row.tokens)
            queues[stages.index(len(row.tokens)) + 1].append(row)
    return any(queues)


def _rescued(budget: _Budget, whole: int) -> _Row:
    """Takes the stopped candidate of the highest potential that can be finished; the last that was stopped can."""
    afforded = [i for i, (_, row) in enumerate(budget.stopped) if whole - len(row.tokens) <= budget.free]
    ranks = {i: (value, len(row.tokens), -row.place) for i, (value, row) in enumerate(budget.stopped)}
    return budget.stopped.pop(max(afforded, key=ranks.__getitem__))[1]


def check_search(prompts: Sequence[str], n: int, keep: int) -> None:
    """Raises ValueError for prompts that are not different, and for keeping more than n."""
    if len(set(prompts)) < len(prompts) or not prompts:
        raise ValueError(
            f"a search needs different prompts, got {len(prompts)}, {len(set(prompts))} of them different."
        )
    if not 1 <= keep <= n:
        raise ValueError(f"a search keeps at least one and at most all of n images, got to keep {keep} of {n}.")


def candidates(
    generator: Generator, reward: Reward, prompts: Sequence[str], places: Sequence[int], tokens: Tensor
) -> list[Candidate]:
    """Whole rows of tokens [B, L], decoded and scored."""
    images = generator.decode(tokens)
    scores = reward.score(images, prompts if reward.spec.needs_prompt else (), batch_size=64).values.tolist()
    return [Candidate(*one) for one in zip(places, images, tokens.cpu(), scores, strict=True)]


def picked(prompt: str, finished: list[Candidate], started: int, keep: int) -> Pick:
    """The best of a prompt's finished candidates."""
    in_place = sorted(finished, key=lambda one: one.place)
    ranked = sorted(in_place, key=lambda one: math.inf if math.isnan(one.score) else -one.score)
    return Pick(prompt, ranked[:keep], {one.place: one.score for one in in_place}, started)

"""How good a generator's images are: a reward's mean, best of n, and the share that is wholly right, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from rwk.calibration.statistics import Interval, cluster_interval, cluster_se
from rwk.policy_opt.generator import Generator, Rollout
from rwk.policy_opt.prompts import Prompt
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.win_rates import WinRate
from rwk.rewards.base import Reward

T = TypeVar("T")
JUDGED_SEED = 1_000_003
"""Seed of the images that a generator is judged by, apart from every seed of training."""
GOLD = "gold accuracy"
"""Share of images of which every fact holds; where a benchmark has a measure of its own that is no reward of facts, its
mean."""


@dataclass(frozen=True)
class Drawn:
    """What a generator drew for some prompts, and what rewards say of it."""

    prompts: list[Prompt]
    """[P]"""
    images: list[list[Image.Image]]
    """[P][n]"""
    scores: dict[str, Tensor]
    """Reward -> [P, n] float32, NaN where there is no score."""
    notes: dict[str, list[list[str]]]
    """Reward -> [P][n] what it says of an image, or ""."""
    rollout: Rollout
    """What the images were drawn as, those of a prompt after each other."""

    def mean(self, name: str) -> Interval:
        """Mean score of an image, its interval clustered by prompt."""
        return clustered(self.scores[name])

    def best_of(self, proxy: str, name: str, n: int | None = None) -> Interval:
        """Mean score, by `name`, of the image that `proxy` would choose of n, exact over all choices of n."""
        return clustered(best_of(self.scores[proxy], self.scores[name], n or self.scores[name].shape[1])[:, None])

    def by_category(self, name: str) -> dict[str, Interval]:
        """Mean score of each category."""
        names = [prompt.category for prompt in self.prompts]
        return {
            category: clustered(self.scores[name][[i for i, other in enumerate(names) if other == category]])
            for category in dict.fromkeys(names)
        }


def joined(parts: Sequence[Drawn]) -> Drawn:
    """What was drawn for lots of prompts, all by the same rewards, in one."""
    first = parts[0]
    return Drawn(
        [prompt for part in parts for prompt in part.prompts],
        [row for part in parts for row in part.images],
        {name: torch.cat([part.scores[name] for part in parts]) for name in first.scores},
        {name: [row for part in parts for row in part.notes[name]] for name in first.notes},
        Rollout.joined([part.rollout for part in parts]),
    )


def draw(
    generator: Generator,
    prompts: Sequence[Prompt],
    rewards: Mapping[str, Reward | WinRate],
    *,
    per_prompt: int,
    seed: int,
    sampling: Sampling | None = None,
    others: Sequence[Sequence[Image.Image]] | None = None,
) -> Drawn:
    """Draws `per_prompt` images for every prompt and scores them by every reward.

    Args:
        others: [P][n] all of which a pair judge compares the images of each prompt with; by default each other.
    """
    texts = [prompt.text for prompt in prompts]
    rollout = generator.sample(texts, per_prompt=per_prompt, seed=seed, sampling=sampling)
    images = generator.decode(rollout.tokens)
    scores: dict[str, Tensor] = {}
    notes: dict[str, list[list[str]]] = {}
    for name, reward in rewards.items():
        if isinstance(reward, WinRate):
            whole, met = WinRate(reward.judge), [image for row in others or [] for image in row]
            judged = (
                whole.against(images, met, rollout.prompts, per_prompt)
                if met
                else whole.within(images, rollout.prompts, rollout.group.cpu())
            )
            scores[name] = judged.rate.reshape(len(texts), per_prompt)
            notes[name] = grouped([""] * len(images), per_prompt)
            continue
        found = reward.score(images, rollout.prompts if reward.spec.needs_prompt else (), batch_size=64)
        scores[name] = found.values.reshape(len(texts), per_prompt)
        notes[name] = grouped(found.notes, per_prompt)
    return Drawn(list(prompts), grouped(images, per_prompt), scores, notes, rollout)


def grouped(row: Sequence[T], size: int) -> list[list[T]]:
    """The row cut into lists of `size`."""
    return [list(row[start : start + size]) for start in range(0, len(row), size)]


def accuracy(scores: Tensor, high: float) -> Tensor:
    """1 where the score reaches `high`, 0 where it does not, NaN where there is none; same shape as scores."""
    return torch.where(scores.isnan(), scores, (scores >= high).float())


def best_of(proxy: Tensor, value: Tensor, n: int) -> Tensor:
    """[P] expected value of the image with the highest proxy among n, over all choices of n out of N, [P, N] each.

    Exact: with the images in rising order of proxy, the i-th is the best of C(i - 1, n - 1) of the C(N, n) choices.
    Images without a proxy are never chosen before any that has one. Ties go to the image drawn first. Choices of an
    image without a value are left out; NaN where there are no others.

    Raises:
        ValueError: unless 1 <= n <= N.
    """
    total = proxy.shape[1]
    if not 1 <= n <= total:
        raise ValueError(f"best of n needs n between 1 and the {total} images per prompt, got {n}.")
    # Reversed before the stable sort, so that the first of equals stands highest.
    order = proxy.nan_to_num(-math.inf).flip(1).argsort(dim=1, stable=True)
    weight = torch.tensor([math.comb(rank, n - 1) / math.comb(total, n) for rank in range(total)])
    chosen = value.flip(1).gather(1, order)
    known = torch.where(chosen.isnan(), 0, weight).sum(1)
    return (chosen * weight).nansum(1) / torch.where(known > 0, known, math.nan)


def clustered(scores: Tensor) -> Interval:
    """Mean of scores [P, n] with a 95 % interval clustered by row; NaN entries are left out, and give NaN alone."""
    known = ~scores.isnan()
    if not known.any():
        return Interval(math.nan, math.nan, math.nan, 0)
    rows = torch.arange(len(scores))[:, None].expand_as(scores)
    return cluster_interval(scores[known].tolist(), rows[known].tolist())


def balanced(scores: Tensor, categories: Sequence[str]) -> Interval:
    """Mean of the categories' mean scores [P, n], with its 95 % interval clustered by row within each category.

    The degrees of freedom are Welch's and Satterthwaite's. A category without scores is left out, and one of a single
    row leaves the interval unknown.
    """
    from scipy.stats import t

    means, errors, free = [], [], []
    for category in dict.fromkeys(categories):
        part = scores[[i for i, other in enumerate(categories) if other == category]]
        known = ~part.isnan()
        if known.any():
            rows = torch.arange(len(part))[:, None].expand_as(part)[known]
            means.append(part[known].double().mean().item())
            errors.append(cluster_se(part[known].tolist(), rows.tolist()) ** 2)
            free.append(len(rows.unique()) - 1)
    mean, spread = sum(means) / len(means), sum(errors)
    reach = math.sqrt(spread) / len(means)
    if spread > 0:
        reach *= t.ppf(0.975, spread**2 / sum(error**2 / count for error, count in zip(errors, free, strict=True)))
    return Interval(mean, mean - reach, mean + reach, sum(count + 1 for count in free))

"""What learning from a reward may gain, by what choosing by it gains: best of n on prompts that are not learnt from.

The truth of the best of n images by a reward is computed exactly from those that a generator drew (`best_of_n`). With
Janus-Pro and three rewards, best of 4 put the rewards in the order in which DPO and GRPO did, and lay above both (the
setting of arXiv:2505.17017, numbers as the authors of UnifiedReward give them). So the gain of best of 4 is told as
what learning is likely to stay at or below, that of the best of all images as what it may come to. Neither is a bound:
learning goes further from the generator than choosing does, for better or worse, which `rwk optimize --watch` shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rwk.calibration.best_of_n import best_of_n
from rwk.calibration.pairs import Floats
from rwk.calibration.probe import Domain, Subject
from rwk.calibration.statistics import Interval, bootstrap_interval, mean_interval

N = 4
"""Best of how many is told as likely."""


class Forecast(NamedTuple):
    """What choosing by a reward gains in truth in one domain, in the unit of the truth."""

    domain: str
    now: Interval
    """Mean truth of an image as it is drawn."""
    likely: Interval
    """Gain of the best of 4 by the reward over that."""
    most: Interval
    """Gain of the best of all `images` by the reward."""
    by_truth: Interval
    """Gain of the best of 4 by the truth itself."""
    eta: Interval
    """The likely gain over that by the truth: 1 is a perfect reward, 0 one that knows nothing."""
    images: int
    """Images of each prompt."""
    retention: Interval | None
    """eta over that of the first domain; None for the first, and where the first has no gain above 0."""


class _Gains(NamedTuple):
    """[P] each, by prompt."""

    mean: Floats
    likely: Floats
    most: Floats
    by_truth: Floats
    images: int


def forecast(subject: Subject, *, fitting: bool = False) -> list[Forecast]:
    """A forecast for each domain whose truth is known, the reward's own first; empty where none is.

    Args:
        subject: the reward, and images of prompts that it was not trained on.
        fitting: whether the truth is that an image fits its prompt as a whole, 0 or 1, and not the score of gold.
    """
    held = [
        (domain.name, gains)
        for domain, scores in zip(subject.domains, subject.scores, strict=True)
        if (gains := _gains(domain, scores, fitting)) is not None
    ]
    draws, seed = subject.sizes.draws, subject.seed
    found: list[Forecast] = []
    for place, (name, gains) in enumerate(held):
        rows = np.arange(len(gains.mean))
        now, likely, most, by_truth = (mean_interval(column, rows) for column in gains[:4])
        eta = _ratio_interval([gains], draws, seed)
        first = found[0].eta if place else None
        kept = _ratio_interval([gains, held[0][1]], draws, seed) if first and first.low > 0 else None
        found.append(Forecast(name, now, likely, most, by_truth, eta, gains.images, kept))
    return found


def _gains(domain: Domain, scores: Floats, fitting: bool) -> _Gains | None:
    """What is gained for every prompt with 4 scored images or more, as many of each as the fewest have."""
    truth = domain.fitting.astype(np.float64) if fitting else domain.gold
    if truth is None or (fitting and domain.fits is None):
        return None
    known = np.isfinite(scores) & np.isfinite(truth)
    groups = [np.flatnonzero(known & (domain.groups == group)) for group in np.unique(domain.groups)]
    groups = [rows for rows in groups if len(rows) >= N]
    if len(groups) < 2:
        return None
    images = min(len(rows) for rows in groups)

    def best(by: Floats, n: int) -> Floats:
        return np.array([best_of_n(by[rows], truth[rows], n)[0] for rows in groups])

    mean = np.array([truth[rows].mean() for rows in groups])
    return _Gains(mean, best(scores, N) - mean, best(scores, images) - mean, best(truth, N) - mean, images)


def _ratio_interval(parts: Sequence[_Gains], draws: int, seed: int) -> Interval:
    """eta of the first, over that of the second where there is one, under resampling of prompts."""
    sizes = [len(part.mean) for part in parts]
    ends = np.cumsum([0, *sizes])

    def statistic(weight: Floats) -> float:
        etas = []
        for part, begin, end in zip(parts, ends[:-1], ends[1:], strict=True):
            below = float(weight[begin:end] @ part.by_truth)
            etas.append(float(weight[begin:end] @ part.likely) / below if below > 0 else math.nan)
        if len(etas) == 1:
            return etas[0]
        return etas[0] / etas[1] if etas[1] else math.nan

    if math.isnan(statistic(np.ones(ends[-1]))):
        return Interval(math.nan, math.nan, math.nan, int(ends[-1]))
    return bootstrap_interval(statistic, np.arange(ends[-1]), draws=draws, seed=seed)

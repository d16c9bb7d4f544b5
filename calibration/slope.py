"""How the truth changes for each unit that a reward changes while a generator learns from it."""

from __future__ import annotations

from typing import Any

import numpy as np

from rwk.calibration.pairs import Floats
from rwk.calibration.statistics import Interval


def slope_interval(
    truth: Any, reward: Any, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """The change of the truth for each unit that the reward changed, with its interval; None where it is unknown.

    Where the change of the reward may be 0, the interval reaches far to either side.

    Args:
        truth: [P] change of the mean of each prompt; NaN where it is unknown.
        reward: [P] the same of the reward.
        draws: of prompts.
        seed: of the draws.
        level: of the interval.
    """
    held = np.isfinite(truth) & np.isfinite(reward)
    g, r, count = np.asarray(truth)[held], np.asarray(reward)[held], int(held.sum())
    if count < 2 or not r.any():
        return None
    weight = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, drawn = g.sum() / r.sum(), (weight @ g) / (weight @ r)
        low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    found = Interval(float(value), float(low), float(high), count)
    return found if np.isfinite(found).all() else None


def diverges(slope: Interval | None, reward: Floats) -> bool:
    """Whether the truth surely fell while the reward rose: the interval of the slope lies below 0.

    Args:
        slope: as in `slope_interval`.
        reward: [P] change of the mean of each prompt.
    """
    return slope is not None and slope.high < 0 < float(np.nanmean(reward))

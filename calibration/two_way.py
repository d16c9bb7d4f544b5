"""The interval of a mean whose rows are alike in two ways at once, such as by prompt and by generator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rwk.calibration.pairs import vector
from rwk.calibration.statistics import Interval, cluster_se


def two_way_interval(values: Any, first: Any, second: Any, weight: Any = None, *, level: float = 0.95) -> Interval:
    """The weighted mean with a t interval for rows that share what either clustering says.

    After Cameron, Gelbach and Miller (2011) the variance is that by the one clustering, plus that by the other, less
    that by both at once, each with its C / (C - 1); it never counts as less than the larger of the first two, since
    few clusters may bring it there, even below 0. The degrees of freedom, and the clusters that are told, are those of
    the clustering with fewer.

    Args:
        values: [N].
        first: [N] what each value belongs to, say its prompt.
        second: [N] what it belongs to as well, say the generators of a pair.
        weight: [N], by default 1; rows of weight 0 do not count.
        level: probability that the interval covers.
    """
    from scipy.stats import t

    x = vector("values", values)
    w = np.ones(len(x)) if weight is None else vector("weight", weight, len(x), low=0)
    held = w > 0
    if not held.any():
        return Interval(math.nan, math.nan, math.nan, 0)
    x, w = x[held], w[held]
    one, two = (np.unique(np.asarray(of)[held], return_inverse=True)[1] for of in (first, second))
    mean, count = float(np.average(x, weights=w)), int(min(one.max(), two.max())) + 1
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    both = one * (two.max() + 1) + two
    by_one, by_two, by_both = (cluster_se(x, of, w) ** 2 for of in (one, two, both))
    error = math.sqrt(max(by_one + by_two - by_both, by_one, by_two))
    reach = float(t.ppf((1 + level) / 2, count - 1)) * error
    return Interval(mean, mean - reach, mean + reach, count)

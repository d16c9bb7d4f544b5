"""Intervals and tests that know which rows belong together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwk.calibration.pairs import Floats, vector
from rwk.rewards.intervals import Interval, cluster_interval

__all__ = [
    "Interval",
    "MaxT",
    "PairedTest",
    "bootstrap_draws",
    "bootstrap_interval",
    "cluster_interval",
    "cluster_se",
    "false_discovery",
    "holm",
    "max_t",
    "mcnemar",
    "mean_interval",
    "paired_test",
    "percentile_interval",
    "pooled_sd",
    "wilson",
]

FEW_CLUSTERS = 30
"""Below so many clusters every interval deserves doubt."""
_EXACT = 14
"""Clusters up to which all 2^C sign flips are enumerated."""
POWER_80 = 2.8
"""z(0.975) + z(0.8): the true difference in standard errors that a two-sided test at 5 % finds 4 times in 5."""

Statistic = Callable[[Floats], Any]
"""From weights [N] of the rows to a number, or to [K] numbers."""


def cluster_se(values: Any, clusters: Any, weight: Any = None) -> float:
    """The cluster-robust standard error of a weighted mean.

    sqrt(C / (C - 1) sum_c (sum_{i in c} w_i (x_i - mean))^2) / sum w; NaN with fewer than 2 clusters.

    Args:
        values: [N].
        clusters: [N] what each value belongs to.
        weight: [N], by default 1.
    """
    x = vector("values", values)
    w = np.ones(len(x)) if weight is None else vector("weight", weight, len(x), low=0)
    codes = _codes(clusters, len(x))
    count = int(codes.max(initial=-1)) + 1
    if count < 2:
        return math.nan
    totals = np.bincount(codes, w * (x - np.average(x, weights=w)))
    return math.sqrt(count / (count - 1) * float(totals @ totals)) / float(w.sum())


def pooled_sd(values: Any, clusters: Any) -> float:
    """The standard deviation within clusters; NaN where no cluster has two values.

    >>> pooled_sd([1.0, 3.0, 10.0, 12.0], ["a", "a", "b", "b"]) ** 2
    2.0000000000000004
    """
    x = vector("values", values)
    codes = _codes(clusters, len(x))
    free = len(x) - codes.max(initial=-1) - 1
    if free < 1:
        return math.nan
    means = np.bincount(codes, x) / np.bincount(codes)
    return math.sqrt(float(((x - means[codes]) ** 2).sum()) / free)


def mean_interval(values: Any, clusters: Any, weight: Any = None, *, level: float = 0.95) -> Interval:
    """The weighted mean with its t interval for rows that are alike within a cluster; rows of weight 0 do not count."""
    x = vector("values", values)
    w = np.ones(len(x)) if weight is None else vector("weight", weight, len(x), low=0)
    held = w > 0
    if not held.any():
        return Interval(math.nan, math.nan, math.nan, 0)
    x, w, codes = x[held], w[held], _codes(clusters, len(x))[held]
    mean = float(np.average(x, weights=w))
    moved = mean + (x - mean) * w / w.mean()  # its plain mean has the value and the error of the weighted one
    return cluster_interval(moved.tolist(), codes.tolist(), level)


def wilson(hits: float, count: int, *, level: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval (1927), for few rows that are independent."""
    from scipy.stats import norm

    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"wilson needs hits in 0..count and a count of at least 1, got {hits:g} of {count}.")
    z, p = float(norm.ppf((1 + level) / 2)), hits / count
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    low = centre - reach if hits > 0 else 0.0  # exactly, which rounding would miss
    return Interval(p, low, centre + reach if hits < count else 1.0, count)


def bootstrap_draws(statistic: Statistic, clusters: Any, *, draws: int = 2000, seed: int = 0) -> Floats:
    """[draws, K] values of a statistic under resampling of whole clusters.

    A draw is told to the statistic as weights: how often the cluster of each row was drawn.

    Args:
        statistic: takes weights [N].
        clusters: [N] what each row belongs to.
        draws: how many.
        seed: of the draws.
    """
    codes = _codes(clusters)
    count = int(codes.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    found = [
        np.atleast_1d(statistic(np.bincount(rng.integers(0, count, count), minlength=count)[codes].astype(np.float64)))
        for _ in range(draws)
    ]
    return np.asarray(found, dtype=np.float64)


def bootstrap_interval(
    statistic: Statistic, clusters: Any, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The statistic of all rows with its interval under resampling of whole clusters; see `percentile_interval`."""
    codes = _codes(clusters)
    value = float(statistic(np.ones(len(codes))))
    count = int(codes.max(initial=-1)) + 1
    if count < 2:
        return Interval(value, math.nan, math.nan, count)
    found = bootstrap_draws(statistic, codes, draws=draws, seed=seed)[:, 0]
    return percentile_interval(value, found, count, level=level)


def percentile_interval(value: float, draws: Floats, clusters: int, *, level: float = 0.95) -> Interval:
    """The value with percentiles of its bootstrap draws, moved so that the draws have their mean at the value.

    A statistic that chance makes larger, such as a calibration error, is made larger once more by resampling;
    unmoved, its interval may lie wholly above the value.

    Args:
        value: the statistic of all rows.
        draws: [B] of `bootstrap_draws`; NaN where a draw has no value.
        clusters: how many were resampled.
        level: of the interval.
    """
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2]) - (np.nanmean(draws) - value)
    return Interval(value, float(low), float(high), clusters)


class PairedTest(NamedTuple):
    """How two rewards differ on the same pairs."""

    difference: Interval
    """Mean of the differences, with its t interval by cluster."""
    p: float
    """Two-sided, of the sign-flip permutation test by cluster."""
    discordant: int
    """Rows in which the two differ."""
    detectable: float
    """The true difference that this many clusters find 4 times in 5, at 5 %."""


def paired_test(
    difference: Any, clusters: Any, weight: Any = None, *, draws: int = 10000, seed: int = 0, level: float = 0.95
) -> PairedTest:
    """Whether the mean difference is 0, by flipping the sign of whole clusters.

    The test is exact where a cluster's differences are as likely with either sign. All sign patterns are enumerated up
    to 14 clusters, else `draws` are drawn. With clusters of one row and differences of -1, 0 and 1 it is McNemar's.

    Args:
        difference: [N] what the first reward gets in a row minus what the second gets, say hits.
        clusters: [N] what each row belongs to.
        weight: [N], by default 1.
        draws: sign patterns that are drawn.
        seed: of the draws.
        level: of the interval.
    """
    x = vector("difference", difference)
    w = np.ones(len(x)) if weight is None else vector("weight", weight, len(x), low=0)
    codes = _codes(clusters, len(x))
    totals = np.bincount(codes, w * x)
    totals = totals[totals != 0]  # the others stay 0 whatever their sign
    observed = abs(float(totals.sum())) * (1 - 1e-12)
    if len(totals) <= _EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(totals)))).reshape(2 ** len(totals), -1)
        p = float((np.abs(signs @ totals) >= observed).mean())
    else:
        rng = np.random.default_rng(seed)
        reached = sum(
            int((np.abs((2.0 * rng.integers(0, 2, (size, len(totals))) - 1) @ totals) >= observed).sum())
            for size in _blocks(draws, 500)
        )
        p = (reached + 1) / (draws + 1)
    detectable = POWER_80 * cluster_se(x, codes, w)
    return PairedTest(mean_interval(x, codes, w, level=level), p, int((x != 0).sum()), detectable)


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of McNemar's test (1947): rows that only the first, and only the second, gets right."""
    from scipy.stats import binomtest

    if min(first_only, second_only) < 0:
        raise ValueError(f"mcnemar needs counts of at least 0, got {first_only} and {second_only}.")
    both = first_only + second_only
    return float(binomtest(first_only, both).pvalue) if both else 1.0


class MaxT(NamedTuple):
    """What K statistics say together."""

    p: Floats
    """[K] p that the largest of K deviations would come out so large by chance."""
    low: Floats
    """[K]; all K intervals cover at once with the probability asked for."""
    high: Floats


def max_t(values: Any, draws: Any, *, null: Any = 0.0, level: float = 0.95) -> MaxT:
    """Simultaneous p-values and intervals of K statistics, from the same bootstrap draws of all, single step.

    Args:
        values: [K] the statistics of all rows.
        draws: [B, K] of `bootstrap_draws`, whose correlation is kept.
        null: what the statistics are under the null hypothesis, [K] or one number.
        level: of the intervals.
    """
    value, drawn = vector("values", values), np.asarray(draws, dtype=np.float64)
    if drawn.ndim != 2 or drawn.shape[1] != len(value):
        raise ValueError(f"max_t needs draws of shape [B, {len(value)}], got {list(drawn.shape)}.")
    error = drawn.std(0, ddof=1)
    if not (error > 0).all():
        raise ValueError("max_t needs statistics that vary over the draws, got a constant one; leave it out.")
    largest = np.abs((drawn - value) / error).max(1)  # [B]
    seen = np.abs(value - null) / error
    p = (1 + (largest[:, None] >= seen).sum(0)) / (1 + len(drawn))
    reach = float(np.quantile(largest, level)) * error
    return MaxT(p, value - reach, value + reach)


def holm(p: Any) -> Floats:
    """[K] p-values adjusted after Holm (1979): below a level, the chance of one false finding is at most that level.

    >>> holm([0.01, 0.04, 0.03]).round(9).tolist()
    [0.03, 0.06, 0.06]
    """
    given = vector("p", p, low=0, high=1)
    order, count = np.argsort(given), len(given)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(count, 0, -1)), 1)
    return adjusted


def false_discovery(p: Any) -> Floats:
    """[K] p-values adjusted after Benjamini and Hochberg (1995): below a level, the expected share of false findings.

    >>> false_discovery([0.01, 0.04, 0.03]).round(9).tolist()
    [0.03, 0.04, 0.04]
    """
    from scipy.stats import false_discovery_control

    found: Floats = false_discovery_control(vector("p", p, low=0, high=1))
    return found


def _codes(clusters: Any, length: int | None = None) -> NDArray[np.intp]:
    """[N] numbers 0..C-1 of the clusters."""
    given = np.asarray(clusters)
    if given.ndim != 1 or length not in (None, len(given)):
        raise ValueError(f"clusters must be one a row, got shape {list(given.shape)} for {length} rows.")
    codes: NDArray[np.intp] = np.unique(given, return_inverse=True)[1]
    return codes


def _blocks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]

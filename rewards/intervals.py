"""Intervals of a mean whose rows come in clusters, such as many pairs of one prompt."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and where it may lie."""

    mean: float
    low: float
    """NaN where there are fewer than 2 clusters."""
    high: float
    clusters: int


def cluster_interval(values: Sequence[float], clusters: Sequence[Hashable], level: float = 0.95) -> Interval:
    """The mean of the values, with an interval for rows that are alike within a cluster.

    The standard error is the cluster-robust one, sqrt(C / (C - 1) sum_c (sum_{i in c} (x_i - mean))^2) / n, with the
    quantile of Student's t for C - 1 degrees of freedom.

    Args:
        values: [N] finite numbers.
        clusters: [N] what each value belongs to, say its prompt.
        level: probability that the interval covers, above 0 and below 1.

    Raises:
        ValueError: when the lengths differ or there are no values.

    >>> cluster_interval([1, 1, 0, 0], ["a", "a", "b", "b"]).mean
    0.5
    """
    if len(values) != len(clusters) or not values:
        raise ValueError(
            f"cluster_interval needs one cluster per value, got {len(values)} values and {len(clusters)} clusters."
        )
    from scipy.stats import t

    n, mean = len(values), math.fsum(values) / len(values)
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    count = len(sums)
    if count < 2:
        return Interval(mean, math.nan, math.nan, count)
    error = math.sqrt(count / (count - 1) * math.fsum(total**2 for total in sums.values())) / n
    reach = float(t.ppf((1 + level) / 2, count - 1)) * error
    return Interval(mean, mean - reach, mean + reach, count)

"""Intervals of rows that are alike in two ways: a case by hand, one of statsmodels, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rwk.calibration.statistics import cluster_se, mean_interval
from rwk.calibration.two_way import two_way_interval


def crossed(prompts: int, generators: int, rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """Values with an effect of their prompt, one of their generator, and one of their own, of mean 0."""
    p, g = rng.integers(0, prompts, n), rng.integers(0, generators, n)
    x = rng.normal(0, 1, n) + rng.normal(0, 1, prompts)[p] + rng.normal(0, 0.7, generators)[g]
    return x, p, g


def test_by_hand() -> None:
    """Four rows, two of each: 2 (1 + 1) / 16 by either, 4 / 3 (1 + 0 + 0 + 1) / 16 by both at once, at 1 degree."""
    found = two_way_interval([1.0, 0.0, 0.0, -1.0], ["a", "a", "b", "b"], ["x", "y", "x", "y"])
    error = math.sqrt(0.25 + 0.25 - 4 / 3 * 2 / 16)
    assert (found.mean, found.clusters) == (0, 2)
    assert found.high == pytest.approx(12.706204736 * error, rel=1e-9)
    assert found.low == -found.high


@pytest.mark.parametrize(
    ("weighted", "low", "high"), [(False, -0.89089925, 0.69916535), (True, -0.8532396, 0.67875816)]
)
def test_statsmodels_agrees(weighted: bool, low: float, high: float) -> None:
    """A constant fitted with errors clustered in two ways by statsmodels 0.15 has the same interval."""
    rng = np.random.default_rng(0)
    p, g = rng.integers(0, 25, 400), rng.integers(0, 6, 400)
    x = rng.normal(0, 1, 400) + rng.normal(0, 1, 25)[p] + rng.normal(0, 0.7, 6)[g]
    found = two_way_interval(x, p, g, rng.integers(1, 4, 400) if weighted else None)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-8)
    assert found.clusters == 6


def test_it_covers_where_one_way_does_not() -> None:
    """With 30 prompts and 12 generators intervals by both cover about 95 %, those by prompt far less."""
    rng, both, one = np.random.default_rng(1), [], []
    for _ in range(300):
        x, p, g = crossed(30, 12, rng, 400)
        wide, narrow = two_way_interval(x, p, g), mean_interval(x, p)
        both.append(wide.low <= 0 <= wide.high)
        one.append(narrow.low <= 0 <= narrow.high)
    assert 0.9 < np.mean(both) < 0.985
    assert np.mean(one) < 0.88


def test_it_is_never_narrower_than_one_way() -> None:
    """Where rows of a prompt differ in sign by generator the formula falls below 0; rows of no weight do not count."""
    x = np.array([1.0, -1.0, -1.0, 1.0])
    p, g = [0, 0, 1, 1], [0, 1, 0, 1]
    assert cluster_se(x, p) == cluster_se(x, g) == 0
    found = two_way_interval(x, p, g)
    assert (found.low, found.high) == (0, 0)
    alone = two_way_interval([*x, 9.0], [*p, 7], [*g, 7], [1, 1, 1, 1, 0])
    assert alone == found
    assert math.isnan(two_way_interval(x, p, [0, 0, 0, 0]).low)
    assert two_way_interval(x, p, g, [0, 0, 0, 0]).clusters == 0

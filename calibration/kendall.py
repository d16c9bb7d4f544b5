"""How far two rankings agree: Kendall's tau-b, and its p over all orders, exact with ties too."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from rwk.calibration.pairs import vector

ALL_ORDERS = 8
"""Most values of which every order is gone through."""


def tau_b(one: Any, two: Any) -> float:
    """Kendall's tau-b of two scores [K] of the same images; NaN where either gives all the same score.

    >>> tau_b([1, 2, 3], [5, 6, 4])
    -0.3333333333333333
    """
    x, y = (np.sign(np.subtract.outer(of, of)) for of in (vector("one", one), vector("two", two, len(one))))
    spread = math.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum()) / spread if spread else math.nan


def kendall(one: Any, two: Any, *, all_orders: int = ALL_ORDERS) -> tuple[float, float]:
    """Kendall's tau-b, and the share of all orders of the second in which it would be as far from 0.

    Args:
        one: [K].
        two: [K].
        all_orders: of more values than this the p is scipy's.

    >>> kendall([1, 2, 3, 4], [1, 2, 3, 4])
    (1.0, 0.08333333333333333)
    """
    from scipy.stats import kendalltau

    if len(one) > all_orders:
        found = kendalltau(one, two)
        return float(found.statistic), float(found.pvalue)
    x, y = (np.sign(np.subtract.outer(of, of)).astype(np.int8) for of in (one, two))
    orders = np.array(list(itertools.permutations(range(len(one)))))  # [K!, K]
    sums = np.zeros(len(orders), dtype=np.int64)
    for i, j in itertools.combinations(range(len(one)), 2):
        sums += x[i, j] * y[orders[:, i], orders[:, j]]
    return tau_b(one, two), float((abs(sums) >= abs(sums[0])).mean())  # the first order is the one that was found

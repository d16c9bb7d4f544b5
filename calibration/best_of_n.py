"""What best-of-n selection is expected to give, and how far it moves from what was sampled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rwk.calibration.pairs import Floats


def best_of_n(proxy: Any, gold: Any, n: int) -> Floats:
    """[P] gold that the best of n by proxy is expected to have, for each prompt, without any resampling.

    Over all subsets of n of the N samples: sum_{i >= n} C(i - 1, n - 1) / C(N, n) gold_(i), where (i) is the i-th
    smallest by proxy (as in arXiv:2112.09332); among samples with the same proxy each is as likely to be taken.

    Args:
        proxy: [P, N] what is selected by.
        gold: [P, N] what is wanted.
        n: from 1 to N.
    """
    by, wanted = np.atleast_2d(np.asarray(proxy, np.float64)), np.atleast_2d(np.asarray(gold, np.float64))
    if by.shape != wanted.shape or not 1 <= n <= by.shape[1]:
        raise ValueError(
            f"best_of_n needs proxy and gold of one shape [P, N] and n in 1..N, got {list(by.shape)}, "
            f"{list(wanted.shape)} and n = {n}."
        )
    if not (np.isfinite(by).all() and np.isfinite(wanted).all()):
        raise ValueError("best_of_n needs finite scores, got NaN or infinity; leave those samples out.")
    total = by.shape[1]
    chances = np.array([math.comb(i, n - 1) / math.comb(total, n) for i in range(total)])  # [N], by ascending proxy
    found = np.empty(len(by))
    for row, (scores, values) in enumerate(zip(by, wanted, strict=True)):
        _, group = np.unique(scores, return_inverse=True)
        means = np.bincount(group, values) / np.bincount(group)
        found[row] = chances @ means[np.sort(group)]
    return found


def best_of_n_kl(n: float) -> float:
    """Nats that best-of-n selection moves from what was sampled: ln n - (n - 1) / n, with no ties.

    >>> round(best_of_n_kl(4), 3)
    0.636
    """
    if n < 1:
        raise ValueError(f"best_of_n_kl needs n of at least 1, got {n:g}.")
    return math.log(n) - (n - 1) / n

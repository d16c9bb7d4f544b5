"""How good probabilities of preferences are. Every measure is the same whichever image of a pair is called the first.

All take q [N], the probability that the first image is preferred, y [N], the share that does prefer it, and weights
[N], by default 1. Pairs are folded onto the image that is held to be better: confidence max(q, 1 - q) against the
share that agrees. Measures that need both sides of 1/2 see every pair twice, each way round, at half its weight.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from rwk.calibration.folded import Corp, fit_isotonic, fold, groups, totals
from rwk.calibration.pairs import Floats, vector

BINS = 15

Ties = Literal["half", "wrong", "excluded"]
"""What a probability of exactly 0.5 counts for in the accuracy: half a hit, a miss, or nothing."""


def losses(q: Any, y: Any) -> Floats:
    """[N] negative log-likelihood of each pair in nats; infinite where what was said had the probability 0."""
    from scipy.special import xlog1py, xlogy

    p = vector("q", q, low=0, high=1)
    share = vector("y", y, len(p), low=0, high=1)
    found: Floats = -(xlogy(share, p) + xlog1py(1 - share, -p))
    return found


def nll(q: Any, y: Any, weight: Any = None) -> float:
    """Mean negative log-likelihood in nats a pair; ln 2 says nothing.

    >>> round(nll([0.5, 0.5], [1, 0]), 4)
    0.6931
    """
    return float(np.average(losses(q, y), weights=weight))


def hits(q: Any, y: Any, ties: Ties = "half") -> Floats:
    """[N] 1 where the majority is on the side of q, 0 where it is not, NaN where the pair does not count.

    Pairs without a majority never count; `ties` says what a q of 0.5 is worth.
    """
    side = np.sign(vector("q", q, low=0, high=1) - 0.5)
    majority = np.sign(vector("y", y, len(side), low=0, high=1) - 0.5)
    even = {"half": 0.5, "wrong": 0.0, "excluded": math.nan}[ties]
    return np.where(majority == 0, math.nan, np.where(side == 0, even, (side == majority).astype(np.float64)))


def accuracy(q: Any, y: Any, weight: Any = None, *, ties: Ties = "half") -> float:
    """Share of the pairs with a majority that q sides with; NaN where no pair counts.

    >>> [accuracy([0.9, 0.5, 0.2], [1, 1, 0], ties=ties) for ties in ("half", "excluded")]
    [0.8333333333333334, 1.0]
    """
    found = hits(q, y, ties)
    w = np.ones(len(found)) if weight is None else vector("weight", weight, len(found), low=0)
    counted = ~np.isnan(found) & (w > 0)
    return float(np.average(found[counted], weights=w[counted])) if counted.any() else math.nan


def brier(q: Any, y: Any, weight: Any = None) -> Corp:
    """The mean squared error of q, taken apart by isotonic regression on the mirrored pairs.

    CORP after Dimitriadis, Gneiting and Jordan (doi:10.1073/pnas.2016191118).
    """
    return fold(q, y, weight).corp


def isotonic(x: Floats, y: Floats, weight: Floats) -> Floats:
    """[N] the nondecreasing function of ascending x [N] that is closest to y, at each x; equal x get equal values."""
    group = groups(x)
    mass = totals(group, weight)
    fitted: Floats = fit_isotonic(totals(group, weight * y) / mass, mass)[group]
    return fitted


def ece(q: Any, y: Any, weight: Any = None, *, bins: int = BINS, width: bool = False) -> float:
    """Expected calibration error: mean distance between confidence and agreement over bins of the confidence.

    It is above 0 for perfect probabilities too (0.037 for 1,000 pairs); read it beside `null_values`.

    Args:
        q, y, weight: see the module.
        bins: how many.
        width: whether bins are equally wide in 0.5..1; by default they hold equal weight.
    """
    return fold(q, y, weight).ece(bins, width=width)


def debiased_l2(q: Any, y: Any, weight: Any = None, *, bins: int = BINS, clusters: Any = None) -> float:
    """Mean squared distance of confidence and agreement over bins of equal weight, less what chance alone would give.

    For perfect probabilities its mean is 0 at any number of pairs, so it may come out below 0 (arXiv:2012.08668). Bins
    of one cluster have no known error and are taken as they are.

    Args:
        q, y, weight: see the module.
        bins: how many.
        clusters: [N] what each pair belongs to, where pairs of a prompt err together; by default each stands alone.
    """
    codes = None if clusters is None else np.unique(clusters, return_inverse=True)[1]
    return fold(q, y, weight).debiased_l2(bins, codes)


def smooth_ece(q: Any, y: Any, weight: Any = None) -> float:
    """Smooth calibration error of the mirrored pairs, which has no bins and no settings (arXiv:2309.12236).

    The residuals y - q, smoothed over q by a Gaussian that is reflected at 0 and 1, give an error that falls with the
    width of the Gaussian; the value is the width that equals its error.
    """
    return fold(q, y, weight).smooth_ece()


def auroc(q: Any, y: Any, weight: Any = None) -> float:
    """Chance that a preferred order of a pair has a larger q than a dispreferred order of another; not the accuracy.

    NaN where no pair has a preference.
    """
    return fold(q, y, weight).auroc()


def risk_coverage(q: Any, y: Any, weight: Any = None) -> tuple[Floats, Floats]:
    """Coverages [M], ascending to 1, and the risk [M] among that share of the pairs which is the most confident.

    The risk is the share of votes against the image held to be better; pairs of one confidence share theirs.
    """
    return fold(q, y, weight).risk_coverage


def selective_accuracy(q: Any, y: Any, weight: Any = None, *, coverage: float) -> float:
    """Share of votes for the image held to be better, among the most confident pairs of that coverage in 0..1."""
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be above 0 and at most 1, got {coverage:g}.")
    return fold(q, y, weight).selective_accuracy(coverage)


def aurc(q: Any, y: Any, weight: Any = None) -> float:
    """Area under the risk-coverage curve: the mean risk over all coverages; smaller is better.

    Between its points the curve runs as if pairs of the next confidence came in one by one; the mean of the points
    alone, which others report, differs by about one over the number of pairs.
    """
    return fold(q, y, weight).aurc()


def null_values(measure: Any, q: Any, weight: Any = None, *, votes: Any = 1, draws: int = 200, seed: int = 0) -> Floats:
    """[draws] values of a measure where q is perfect: labels are drawn with the probability q, pair by pair.

    Their 95 % quantile is what a measured error has to exceed to speak against calibration.

    Args:
        measure: takes q, y and weights.
        q, weight: see the module.
        votes: of how many votes each label is the share, [N] or one number.
        draws: how many.
        seed: of the draws.
    """
    p, rng = vector("q", q, low=0, high=1), np.random.default_rng(seed)
    return np.array([measure(p, rng.binomial(votes, p) / votes, weight) for _ in range(draws)], dtype=np.float64)

"""How good probabilities of preferences are. Every measure is the same whichever image of a pair is called the first.

All take q [N], the probability that the first image is preferred, y [N], the share that does prefer it, and weights
[N], by default 1. Pairs are folded onto the image that is held to be better: confidence max(q, 1 - q) against the
share that agrees. Measures that need both sides of 1/2 see every pair twice, each way round, at half its weight.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from rwk.calibration.pairs import Floats, vector

BINS = 15
_CELLS = 1024
"""Cells into which the smooth error sorts probabilities; their width is its resolution."""

Ties = Literal["half", "wrong", "excluded"]
"""What a probability of exactly 0.5 counts for in the accuracy: half a hit, a miss, or nothing."""


class Folded(NamedTuple):
    """Pairs turned so that the first image is the one held to be better, sorted by confidence."""

    confidence: Floats
    """[M] 0.5..1, ascending."""
    agreement: Floats
    """[M] share of votes for the image held to be better; 0.5 where neither is."""
    weight: Floats
    """[M], above 0."""
    rows: Any
    """[M] which row of the input each is."""

    def mirrored(self) -> tuple[Floats, Floats, Floats]:
        """q, y and weights [2M] of the pairs each way round, ascending in q."""
        q, y, w = self.confidence, self.agreement, self.weight / 2
        return np.r_[1 - q[::-1], q], np.r_[1 - y[::-1], y], np.r_[w[::-1], w]


def fold(q: Any, y: Any, weight: Any = None) -> Folded:
    """The pairs of weight above 0, folded onto the image held to be better; see `Folded`."""
    p = vector("q", q, low=0, high=1)
    share = vector("y", y, len(p), low=0, high=1)
    w = np.ones(len(p)) if weight is None else vector("weight", weight, len(p), low=0)
    if not w.sum() > 0:
        raise ValueError(f"a measure needs pairs whose weights sum to more than 0, got {len(p)} pairs.")
    agreement = np.where(p > 0.5, share, np.where(p < 0.5, 1 - share, 0.5))
    confidence = np.maximum(p, 1 - p)
    rows = np.argsort(confidence, kind="stable")
    rows = rows[w[rows] > 0]
    return Folded(confidence[rows], agreement[rows], w[rows], rows)


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


class Corp(NamedTuple):
    """The Brier score and its parts: brier = miscalibration - discrimination + uncertainty."""

    brier: float
    miscalibration: float
    """What recalibrating would gain."""
    discrimination: float
    """What the order of the pairs gains over saying 0.5."""
    uncertainty: float
    """The score of saying 0.5: 0.25 where nobody disagrees on a pair."""


def brier(q: Any, y: Any, weight: Any = None) -> Corp:
    """The mean squared error of q, taken apart by isotonic regression on the mirrored pairs.

    CORP after Dimitriadis, Gneiting and Jordan (doi:10.1073/pnas.2016191118).
    """
    p, share, w = fold(q, y, weight).mirrored()
    best = isotonic(p, share, w)
    total, floor, none = (float(np.average((of - share) ** 2, weights=w)) for of in (p, best, np.full(len(p), 0.5)))
    return Corp(total, total - floor, none - floor, none)


def isotonic(x: Floats, y: Floats, weight: Floats) -> Floats:
    """[N] the nondecreasing function of ascending x [N] that is closest to y, at each x; equal x get equal values."""
    from scipy.optimize import isotonic_regression

    group = _groups(x)
    mass = np.bincount(group, weight)
    mean = np.bincount(group, weight * y) / mass
    fitted: Floats = isotonic_regression(mean, weights=mass).x[group]
    return fitted


def ece(q: Any, y: Any, weight: Any = None, *, bins: int = BINS, width: bool = False) -> float:
    """Expected calibration error: mean distance between confidence and agreement over bins of the confidence.

    It is above 0 for perfect probabilities too (0.037 for 1,000 pairs); read it beside `null_values`.

    Args:
        q, y, weight: see the module.
        bins: how many.
        width: whether bins are equally wide in 0.5..1; by default they hold equal weight.
    """
    folded = fold(q, y, weight)
    mass, gap, _ = _binned(folded, bins, width)
    return float(np.abs(mass * gap).sum() / mass.sum())


def debiased_l2(q: Any, y: Any, weight: Any = None, *, bins: int = BINS, clusters: Any = None) -> float:
    """Mean squared distance of confidence and agreement over bins of equal weight, less what chance alone would give.

    For perfect probabilities its mean is 0 at any number of pairs, so it may come out below 0 (arXiv:2012.08668). Bins
    of one cluster have no known error and are taken as they are.

    Args:
        q, y, weight: see the module.
        bins: how many.
        clusters: [N] what each pair belongs to, where pairs of a prompt err together; by default each stands alone.
    """
    folded = fold(q, y, weight)
    if clusters is None:
        codes = np.arange(len(folded.rows))
    else:
        codes = np.unique(clusters, return_inverse=True)[1][folded.rows]
    mass, gap, place = _binned(folded, bins, False)
    deviation = folded.weight * (folded.confidence - folded.agreement - gap[place])
    pairs, at = np.unique(place * (codes.max() + 1) + codes, return_inverse=True)  # every cluster in every bin
    bin_of = pairs // (codes.max() + 1)
    count = np.bincount(bin_of, minlength=bins)
    squares = np.bincount(bin_of, np.bincount(at, deviation) ** 2, bins)
    chance = np.divide(count * squares, np.maximum(count - 1, 1) * mass**2, out=np.zeros(bins), where=mass > 0)
    return float((mass * (gap**2 - chance)).sum() / mass.sum())


def _groups(ascending: Floats) -> Any:
    """[N] numbers 0.. of the different values."""
    return np.cumsum(np.diff(ascending, prepend=ascending[:1]) > 0)


def _binned(folded: Folded, bins: int, width: bool) -> tuple[Floats, Floats, Any]:
    """Weight [bins], mean confidence less mean agreement [bins], and the bin of each pair [N]."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}.")
    if width:
        place = np.minimum((2 * bins * (folded.confidence - 0.5)).astype(np.intp), bins - 1)
    else:
        group = _groups(folded.confidence)  # one confidence is in one bin
        upto = np.cumsum(np.bincount(group, folded.weight))
        middle = upto - np.bincount(group, folded.weight) / 2
        place = np.minimum((bins * middle / upto[-1]).astype(np.intp), bins - 1)[group]
    mass = np.bincount(place, folded.weight, bins).astype(np.float64)
    total = np.bincount(place, folded.weight * (folded.confidence - folded.agreement), bins)
    return mass, np.divide(total, mass, out=np.zeros(bins), where=mass > 0), place


def smooth_ece(q: Any, y: Any, weight: Any = None) -> float:
    """Smooth calibration error of the mirrored pairs, which has no bins and no settings (arXiv:2309.12236).

    The residuals y - q, smoothed over q by a Gaussian that is reflected at 0 and 1, give an error that falls with the
    width of the Gaussian; the value is the width that equals its error.
    """
    from scipy.fft import dct, idct

    p, share, w = fold(q, y, weight).mirrored()
    place = np.minimum((p * _CELLS).astype(np.intp), _CELLS - 1)
    residual = np.bincount(place, w * (share - p), _CELLS) / w.sum()
    spectrum = dct(residual, type=2)  # in which reflected smoothing is a product
    wave = np.pi * np.arange(_CELLS)
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        error = float(np.abs(idct(spectrum * np.exp(-0.5 * (middle * wave) ** 2), type=2)).sum())
        low, high = (middle, high) if error > middle else (low, middle)
    return (low + high) / 2


def auroc(q: Any, y: Any, weight: Any = None) -> float:
    """Chance that a preferred order of a pair has a larger q than a dispreferred order of another; not the accuracy.

    NaN where no pair has a preference.
    """
    p, share, w = fold(q, y, weight).mirrored()
    group = _groups(p)
    positive, negative = np.bincount(group, w * share), np.bincount(group, w * (1 - share))
    below = np.cumsum(negative) - negative / 2  # equal ones count half
    return float(positive @ below / (positive.sum() * negative.sum()))


def risk_coverage(q: Any, y: Any, weight: Any = None) -> tuple[Floats, Floats]:
    """Coverages [M], ascending to 1, and the risk [M] among that share of the pairs which is the most confident.

    The risk is the share of votes against the image held to be better; pairs of one confidence share theirs.
    """
    confidence, agreement, w, _ = fold(q, y, weight)
    group = _groups(confidence)
    mean = np.bincount(group, w * (1 - agreement)) / np.bincount(group, w)
    covered, risk = np.cumsum(w[::-1]), np.cumsum((w * mean[group])[::-1])
    return covered / covered[-1], risk / covered


def selective_accuracy(q: Any, y: Any, weight: Any = None, *, coverage: float) -> float:
    """Share of votes for the image held to be better, among the most confident pairs of that coverage in 0..1."""
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be above 0 and at most 1, got {coverage:g}.")
    at, risk = risk_coverage(q, y, weight)
    return 1 - float(np.interp(coverage, np.r_[0, at], np.r_[0, risk * at])) / coverage


def aurc(q: Any, y: Any, weight: Any = None) -> float:
    """Area under the risk-coverage curve: the mean risk over all coverages; smaller is better.

    Between its points the curve runs as if pairs of the next confidence came in one by one; the mean of the points
    alone, which others report, differs by about one over the number of pairs.
    """
    end, risk = risk_coverage(q, y, weight)
    start, errors = np.r_[0, end[:-1]], np.r_[0, (end * risk)[:-1]]
    slope = (end * risk - errors) / (end - start)  # of the errors: the risk of the pairs that come in
    growth = np.log(end / np.where(start > 0, start, end))
    return float((slope * (end - start) + (errors - slope * start) * growth).sum())


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

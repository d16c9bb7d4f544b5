"""Pairs turned so that the first image is the one held to be better, sorted once: what measures are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rwk.calibration.pairs import Floats, vector

CELLS = 1024
"""Cells into which the smooth error sorts probabilities; their width is its resolution."""


class Corp(NamedTuple):
    """The Brier score and its parts: brier = miscalibration - discrimination + uncertainty."""

    brier: float
    miscalibration: float
    """What recalibrating would gain."""
    discrimination: float
    """What the order of the pairs gains over saying 0.5."""
    uncertainty: float
    """The score of saying 0.5: 0.25 where nobody disagrees on a pair."""


@dataclass(frozen=True, eq=False)
class Folded:
    """Pairs of weight above 0, sorted by confidence. `metrics` says what each measure is.

    Mirrored, the pairs stand for both of their orders, each at half the weight; sums over those are sums over these.
    """

    confidence: Floats
    """[M] 0.5..1, ascending."""
    agreement: Floats
    """[M] share of votes for the image held to be better; 0.5 where neither is."""
    weight: Floats
    """[M], above 0."""
    rows: Any
    """[M] which row of the input each is."""
    spread: Floats
    """[M] mean squared distance of both orders' votes from the agreement, 0 where an image is held to be better."""

    def times(self, weight: Floats) -> Folded:
        """The same pairs with their weights [M] multiplied; those of 0 are left out."""
        more = self.weight * weight
        held = np.flatnonzero(more > 0)
        return Folded(self.confidence[held], self.agreement[held], more[held], self.rows[held], self.spread[held])

    @cached_property
    def group(self) -> Any:
        """[M] numbers 0..G-1 of the different confidences."""
        return groups(self.confidence)

    @cached_property
    def mass(self) -> Floats:
        """[G] weight of each confidence."""
        return totals(self.group, self.weight)

    @cached_property
    def agreed(self) -> Floats:
        """[G] weight of the votes at each confidence for the image held to be better."""
        return totals(self.group, self.weight * self.agreement)

    @cached_property
    def corp(self) -> Corp:
        """See `metrics.brier`: the isotonic fit of the mirrored pairs is that of these, nowhere below 0.5."""
        best = np.maximum(fit_isotonic(self.agreed / self.mass, self.mass), 0.5)[self.group]
        total, floor, none = (
            float(self.weight @ ((of - self.agreement) ** 2 + self.spread)) / float(self.weight.sum())
            for of in (self.confidence, best, 0.5)
        )
        return Corp(total, total - floor, none - floor, none)

    def binned(self, bins: int, width: bool) -> tuple[Floats, Floats, Any]:
        """Weight [bins], mean confidence less mean agreement [bins], and the bin of each pair [M]."""
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}.")
        if width:
            place = np.minimum((2 * bins * (self.confidence - 0.5)).astype(np.intp), bins - 1)
        else:
            upto = np.cumsum(self.mass)
            middle = upto - self.mass / 2  # one confidence is in one bin
            place = np.minimum((bins * middle / upto[-1]).astype(np.intp), bins - 1)[self.group]
        mass = np.bincount(place, self.weight, bins).astype(np.float64)
        total = np.bincount(place, self.weight * (self.confidence - self.agreement), bins)
        return mass, np.divide(total, mass, out=np.zeros(bins), where=mass > 0), place

    def ece(self, bins: int, *, width: bool = False) -> float:
        """See `metrics.ece`."""
        mass, gap, _ = self.binned(bins, width)
        return float(np.abs(mass * gap).sum() / mass.sum())

    def debiased_l2(self, bins: int, clusters: Any = None) -> float:
        """See `metrics.debiased_l2`; clusters are numbers 0..C-1 of the input's rows."""
        mass, gap, place = self.binned(bins, False)
        deviation = self.weight * (self.confidence - self.agreement - gap[place])
        if clusters is None:
            count, squares = np.bincount(place, minlength=bins), np.bincount(place, deviation**2, bins)
        else:
            most = int(clusters.max()) + 1
            cell = place * most + clusters[self.rows]  # every cluster in every bin
            count = (np.bincount(cell, minlength=bins * most) > 0).reshape(bins, most).sum(1)
            squares = (np.bincount(cell, deviation, bins * most) ** 2).reshape(bins, most).sum(1)
        chance = np.divide(count * squares, np.maximum(count - 1, 1) * mass**2, out=np.zeros(bins), where=mass > 0)
        return float((mass * (gap**2 - chance)).sum() / mass.sum())

    def smooth_ece(self) -> float:
        """See `metrics.smooth_ece`."""
        from scipy.fft import dct, idct
        from scipy.optimize import brentq

        error = self.weight * (self.agreement - self.confidence)
        above, below = (
            np.bincount(np.minimum((of * CELLS).astype(np.intp), CELLS - 1), error, CELLS)
            for of in (self.confidence, 1 - self.confidence)
        )
        spectrum = dct((above - below) / (2 * self.weight.sum()), type=2)  # in which reflected smoothing is a product

        def excess(width: float) -> float:
            return float(np.abs(idct(spectrum * np.exp(-0.5 * (width * _WAVE) ** 2), type=2)).sum()) - width

        return float(brentq(excess, 0, 1, xtol=1e-9))

    def auroc(self) -> float:
        """See `metrics.auroc`."""
        against = self.mass - self.agreed
        positive, negative = np.r_[against[::-1], self.agreed], np.r_[self.agreed[::-1], against]
        below = np.cumsum(negative) - negative / 2  # equal ones count half
        return float(positive @ below / (positive.sum() * negative.sum()))

    @cached_property
    def risk_coverage(self) -> tuple[Floats, Floats]:
        """See `metrics.risk_coverage`."""
        mean = 1 - self.agreed / self.mass
        covered, risk = np.cumsum(self.weight[::-1]), np.cumsum((self.weight * mean[self.group])[::-1])
        return covered / covered[-1], risk / covered

    def selective_accuracy(self, coverage: float) -> float:
        """See `metrics.selective_accuracy`."""
        at, risk = self.risk_coverage
        return 1 - float(np.interp(coverage, np.r_[0, at], np.r_[0, risk * at])) / coverage

    def aurc(self) -> float:
        """See `metrics.aurc`."""
        end, risk = self.risk_coverage
        start, errors = np.r_[0, end[:-1]], np.r_[0, (end * risk)[:-1]]
        slope = (end * risk - errors) / (end - start)  # of the errors: the risk of the pairs that come in
        growth = np.log(end / np.where(start > 0, start, end))
        return float((slope * (end - start) + (errors - slope * start) * growth).sum())


_WAVE = np.pi * np.arange(CELLS)


def fold(q: Any, y: Any, weight: Any = None) -> Folded:
    """The pairs of weight above 0, folded onto the image held to be better.

    Args:
        q: [N] probability that the first image is preferred.
        y: [N] share of votes for it.
        weight: [N], by default 1.
    """
    p = vector("q", q, low=0, high=1)
    share = vector("y", y, len(p), low=0, high=1)
    w = np.ones(len(p)) if weight is None else vector("weight", weight, len(p), low=0)
    if not w.sum() > 0:
        raise ValueError(f"a measure needs pairs whose weights sum to more than 0, got {len(p)} pairs.")
    agreement = np.where(p > 0.5, share, np.where(p < 0.5, 1 - share, 0.5))
    confidence = np.maximum(p, 1 - p)
    rows = np.argsort(confidence, kind="stable")
    rows = rows[w[rows] > 0]
    spread = np.where(p == 0.5, (share - 0.5) ** 2, 0.0)
    return Folded(confidence[rows], agreement[rows], w[rows], rows, spread[rows])


def groups(ascending: Floats) -> Any:
    """[N] numbers 0.. of the different values."""
    return np.cumsum(np.diff(ascending, prepend=ascending[:1]) > 0)


def totals(group: Any, values: Floats) -> Floats:
    """[G] sums of the values [N] of each group 0..G-1."""
    found: Floats = np.bincount(group, values).astype(np.float64, copy=False)
    return found


def fit_isotonic(values: Floats, weight: Floats) -> Floats:
    """[N] the nondecreasing numbers that are closest to the values."""
    from scipy.optimize import isotonic_regression

    fitted: Floats = isotonic_regression(values, weights=weight).x
    return fitted

"""A calibrator without a formula: any increasing function that is 1 - itself where the pair is swapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rwk.calibration.calibrator import PairCalibrator, finite
from rwk.calibration.metrics import isotonic
from rwk.calibration.pairs import Floats, PairTable, vector

ENOUGH = (5000, 300)
"""Pairs and prompts from which on this is worth more than a temperature: at 3,000 pairs its mean error is 4 times that
of a temperature where the temperature is right."""


class SymmetricIsotonic(PairCalibrator):
    """P(first) by isotonic regression on every pair both ways round, linear between the knots.

    The largest margins would get certainty, and the first vote against it an infinite loss; `clip` forbids that.
    """

    kind = "symmetric_isotonic"

    knots_: Floats
    """[K] absolute margins, ascending from 0."""
    values_: Floats
    """[K] probabilities at the knots, from 0.5 to at most 1 - clip."""

    def __init__(self, *, clip: float = 0.005) -> None:
        """
        Args:
            clip: the least probability that a preference is given.
        """
        self.clip = clip

    def _fit(self, table: PairTable) -> dict[str, Any]:
        if not 0 <= self.clip < 0.5:
            raise ValueError(f"clip must be at least 0 and below 0.5, got {self.clip}.")
        size = np.abs(table.margin)
        order = np.argsort(size, kind="stable")
        size, weight = size[order], table.decided[order] / 2
        agreeing = np.where(table.margin >= 0, table.label, 1 - table.label)[order]
        agreeing = np.where(size == 0, 0.5, agreeing)
        both = np.r_[-size[::-1], size], np.r_[1 - agreeing[::-1], agreeing], np.r_[weight[::-1], weight]
        found = isotonic(*both)[len(size) :].clip(0.5, 1 - self.clip)
        at, first = np.unique(size, return_index=True)
        values = found[first]
        step = np.diff(values, prepend=-1) > 0
        ends = step | np.r_[step[1:], True]  # of each level, the first and the last margin
        at, values = at[ends], values[ends]
        apart = at > 0
        self.knots_, self.values_ = np.r_[0, at[apart]], np.r_[0.5, values[apart]]
        if len(table) < ENOUGH[0] or table.prompts < ENOUGH[1]:
            few = f"{len(table)} pairs of {table.prompts} prompts are few for an isotonic fit; a temperature errs less"
            return {"note": few + f" below {ENOUGH[0]} pairs and {ENOUGH[1]} prompts"}
        return {}

    def _probability(self, margin: Floats, **columns: Any) -> Floats:
        found: Floats = 0.5 + np.sign(margin) * (np.interp(np.abs(margin), self.knots_, self.values_) - 0.5)
        return found

    def _state(self) -> dict[str, Any]:
        return {"knots": self.knots_, "values": self.values_}

    def _restore(self, state: Mapping[str, Any]) -> None:
        knots = vector("knots", [finite(value, "a knot", above=-1e-300) for value in state["knots"]])
        values = vector("values", state["values"], len(knots), low=0.5, high=1)
        if not len(knots) or knots[0] != 0 or (np.diff(knots) <= 0).any() or (np.diff(values) < 0).any():
            raise ValueError(
                f"symmetric_isotonic needs ascending knots from 0 and values that do not fall, got {len(knots)} "
                f"others; fit again."
            )
        self.knots_, self.values_ = knots, values

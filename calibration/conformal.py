"""Sets of outcomes that hold the true one as often as promised, by split conformal prediction over prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rwk.calibration.calibrator import Calibrator, PairCalibrator, finite
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.ties import TieCalibrator


class ConformalPairs(Calibrator):
    """Sets C = {outcome: 1 - P(outcome) <= q} that miss the outcome of a new prompt's pair with at most chance alpha.

    Pairs of one prompt cannot be exchanged for pairs of others, so q is the ceil((n + 1)(1 - alpha))-th smallest
    1 - P(true outcome) over one pair, drawn at random, of each of n prompts. The promise holds on average over prompts
    like these, not for every kind of prompt, and not once a policy has been trained on the reward.
    """

    kind = "conformal"

    quantile_: float
    """q; 1 where there are too few prompts to leave any outcome out."""

    def __init__(self, *, base: PairCalibrator | TieCalibrator, alpha: float = 0.1, seed: int = 0) -> None:
        """
        Args:
            base: a calibrator that was fitted on other prompts.
            alpha: how often a set may miss, above 0 and below 1.
            seed: of the draw of one pair a prompt.
        """
        self.base = base
        self.alpha = alpha
        self.seed = seed

    def fit(self, table: PairTable) -> Self:
        """Takes the quantile of prompts that the base was not fitted on.

        The outcome of a pair is what most votes say; pairs in which two outcomes have most, and ties where the base
        knows none, are left out.

        Raises:
            ValueError: where no pair is left, or the base was not fitted.
        """
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {self.alpha}.")
        self.classes_ = self.base.classes_
        outcome = _outcome(table, self.classes_)
        drawn = table.take(outcome >= 0).one_per_prompt(seed=self.seed)
        if not len(drawn):
            raise ValueError(f"conformal needs pairs with an outcome, got none among {len(table)}; add some.")
        outcome = _outcome(drawn, self.classes_)
        scores = np.sort(1 - self._probabilities(drawn)[np.arange(len(drawn)), outcome])
        rank = math.ceil((len(drawn) + 1) * (1 - self.alpha) - 1e-9)
        self.quantile_ = float(scores[rank - 1]) if rank <= len(drawn) else 1.0
        self.status_ = "uninformative" if self.quantile_ == 1.0 else "ok"
        note = f"{len(drawn)} prompts are too few to leave an outcome out at alpha = {self.alpha:g}"
        self.fit_ = {"prompts": len(drawn), "notes": [note] if rank > len(drawn) else []}
        return self

    def predict_set(self, table: PairTable) -> NDArray[np.bool_]:
        """[N, K] which outcomes each pair's set holds; a set of more than one abstains."""
        self.check_fitted()
        held: NDArray[np.bool_] = 1 - self._probabilities(table) <= self.quantile_
        return held

    def coverage(self, table: PairTable) -> tuple[Floats, Floats]:
        """[M] whether the set holds the outcome, and [M] whether it holds one alone, of the M pairs with an outcome."""
        outcome = _outcome(table, self.classes_)
        kept = outcome >= 0
        sets = self.predict_set(table.take(kept))
        hit = sets[np.arange(len(sets)), outcome[kept]]
        return hit.astype(np.float64), (sets.sum(1) == 1).astype(np.float64)

    def _probabilities(self, table: PairTable) -> Floats:
        """[N, K] of the base."""
        if isinstance(self.base, TieCalibrator):
            return self.base.of(table)
        q = self.base.of(table)
        return np.stack([q, 1 - q], axis=1)

    def _state(self) -> dict[str, Any]:
        return {"quantile": self.quantile_}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.classes_ = self.base.classes_
        self.quantile_ = finite(state["quantile"], "quantile", above=-1e-12, most=1)


def _outcome(table: PairTable, classes: tuple[str, ...]) -> NDArray[np.intp]:
    """[N] which class has the most votes; -1 where none has more than all others."""
    decided = 1 - table.tie
    columns = {"first": decided * table.label, "tie": table.tie, "second": decided * (1 - table.label)}
    shares = np.stack(list(columns.values()), axis=1)
    ranked = np.sort(shares, axis=1)
    best = np.argmax(shares, axis=1)
    known = np.array([classes.index(name) if name in classes else -1 for name in columns])
    found: NDArray[np.intp] = np.where(ranked[:, -1] > ranked[:, -2], known[best], -1)
    return found

"""Calibrators of three outcomes: the first is better, they are equally good, the second is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np

from rwk.calibration import temperature
from rwk.calibration.calibrator import Calibrator, few_prompts, finite, status_of
from rwk.calibration.pairs import Floats, PairTable, vector
from rwk.calibration.statistics import FEW_CLUSTERS


class TieCalibrator(Calibrator):
    """Probabilities of the three outcomes from the margin, with z = margin / T.

    * Davidson (1970): exp(z / 2) : nu : exp(-z / 2). Given that there is a preference it is the temperature's
      sigmoid(z), so T is comparable with data that have no ties.
    * Rao and Kupper (1967): P(first) = sigmoid(z - theta), P(second) = sigmoid(-z - theta): people see a difference
      from theta on. HPSv3 was trained with theta = log 5.
    """

    kind = "ties"
    classes_ = ("first", "tie", "second")

    temperature_: float
    parameter_: float
    """nu of Davidson, the odds of a tie against either image where the margin is 0; theta of Rao and Kupper."""

    def __init__(self, *, model: Literal["davidson", "rao_kupper"] = "davidson", theta: float | None = None) -> None:
        """
        Args:
            model: which of the two.
            theta: of Rao and Kupper, where it is known; by default it is fitted.
        """
        self.model = model
        self.theta = theta

    def fit(self, table: PairTable) -> Self:
        """Fits votes for either image and for ties, by maximum likelihood.

        Raises:
            ValueError: where there are no ties, or nothing but ties.
        """
        known = self.theta is None if self.model == "davidson" else self.theta is None or self.theta > 0
        if self.model not in ("davidson", "rao_kupper") or not known:
            raise ValueError(
                f"ties knows davidson, which has no theta, and rao_kupper with a theta above 0, got {self.model} "
                f"with {self.theta}; change the settings."
            )
        votes = table.weight[:, None] * _shares(table)  # [N, 3]
        first, tied, second = votes.sum(0).tolist()
        if tied == 0 or first + second == 0:
            what = "none" if tied == 0 else "nothing else"
            raise ValueError(
                f"ties needs some ties and some preferences, got {what} among {len(table)} pairs; take temperature."
            )
        decided = table.take(table.decided > 0)
        self.status_ = status_of(decided)
        if self.status_ == "separable" and self.model == "davidson" and (votes[:, 1] * table.margin).any():
            self.status_ = "ok"  # a tie at a margin bounds the confidence
        start, _ = temperature.fit(decided)
        scale, self.parameter_ = self._search(table.margin / start, votes / votes.sum(), tied / (first + second))
        self.temperature_ = start * scale
        self.fit_ = {
            "pairs": len(table),
            "unscored": table.unscored,
            "prompts": table.prompts,
            "tied_share": tied / (first + tied + second),
            "notes": [few_prompts(table.prompts)] if table.prompts < FEW_CLUSTERS else [],
        }
        return self

    def _search(self, z: Floats, votes: Floats, odds: float) -> tuple[float, float]:
        """The scale of the temperature and the parameter of the ties, most likely for margins z [N], votes [N, 3]."""
        from scipy.optimize import minimize

        def loss(x: Floats) -> float:
            return -float((votes * _log_outcomes(self.model, z * math.exp(-x[0]), math.exp(x[1]))).sum())

        begin = math.log(2 * odds) if self.model == "davidson" else math.log(math.log1p(2 * odds))
        bounds = [(-4.0, 4.0) if self.status_ == "ok" else (0.0, 0.0), (-12.0, 12.0)]
        if self.theta is not None:
            begin = math.log(self.theta)
            bounds[1] = (begin, begin)
        start = np.array([0.0, begin])
        found = minimize(loss, start, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13, "gtol": 1e-8})
        return math.exp(found.x[0]), math.exp(found.x[1])

    def predict_proba(self, margin: Any) -> Floats:
        """[N, 3] probabilities of `classes_`; with the pair swapped they come in the reverse order."""
        self.check_fitted()
        return np.exp(_log_outcomes(self.model, vector("margin", margin) / self.temperature_, self.parameter_))

    def of(self, table: PairTable) -> Floats:
        """[N, 3] the probabilities of a table's pairs."""
        return self.predict_proba(table.margin)

    def indifference(self) -> float:
        """The margin below which a tie is the likeliest outcome, either way; 0 where it never is."""
        self.check_fitted()
        if self.model == "davidson":
            half = 2 * math.log(self.parameter_) if self.parameter_ > 1 else 0.0
        else:
            edge = math.exp(self.parameter_) - 2 * math.exp(-self.parameter_)
            half = math.log(edge) if edge > 1 else 0.0
        return half * self.temperature_ if half else 0.0

    def _state(self) -> dict[str, Any]:
        value = None if math.isinf(self.temperature_) else self.temperature_
        return {"temperature": value, "nu" if self.model == "davidson" else "theta": self.parameter_}

    def _restore(self, state: Mapping[str, Any]) -> None:
        value = state["temperature"]
        self.temperature_ = math.inf if value is None else finite(value, "temperature", above=0)
        name = "nu" if self.model == "davidson" else "theta"
        self.parameter_ = finite(state[name], name, above=0)


def _shares(table: PairTable) -> Floats:
    """[N, 3] shares of votes for the first, for a tie, for the second."""
    decided = 1 - table.tie
    return np.stack([decided * table.label, table.tie, decided * (1 - table.label)], axis=1)


def _log_outcomes(model: str, z: Floats, parameter: float) -> Floats:
    """[N, 3] logarithms of the probabilities, of margins in units of the temperature."""
    if model == "davidson":
        logits = np.stack([z / 2, np.full(len(z), math.log(parameter)), -z / 2], axis=1)
        found: Floats = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return found
    first, second = -np.logaddexp(0, parameter - z), -np.logaddexp(0, parameter + z)
    tied = 2 * parameter + math.log1p(-math.exp(-2 * parameter)) + first + second
    return np.stack([first, tied, second], axis=1)

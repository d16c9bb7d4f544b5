"""A calibrator that separates what people like from what the reward likes too much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rwk.calibration.calibrator import PairCalibrator, finite, shrunk, sigmoid
from rwk.calibration.logistic import fit_logistic, robust_errors
from rwk.calibration.pairs import Floats, PairTable, vector


class StyleControlled(PairCalibrator):
    """P(first) = sigmoid(margin / T + sum_j beta_j (c_j(first) - c_j(second))) for covariates c such as saturation.

    There is no intercept, as swapping a pair has to turn everything round. A beta below 0 says that the reward gives
    more for its covariate than people do. The reward without that is `corrected`.
    """

    kind = "style_controlled"
    needs = ("covariates",)

    temperature_: float
    beta_: dict[str, float]
    """Log-odds for one unit of a covariate."""
    errors_: dict[str, float]
    """Standard errors of `beta_` by prompt."""

    def __init__(self, *, covariates: Sequence[str]) -> None:
        """
        Args:
            covariates: which of the table's.
        """
        self.covariates = covariates

    def _fit(self, table: PairTable) -> dict[str, Any]:
        columns = self._columns(table)["covariates"]
        design = np.stack([table.margin, *(columns[name] for name in self.covariates)], axis=1)
        scale = np.sqrt((design**2).mean(0))
        for name, size in zip(("margin", *self.covariates), scale, strict=True):
            if size == 0:
                raise ValueError(f"style_controlled needs covariates that differ, got {name} of 0 in every pair.")
        scaled, w, y, free = design / scale, table.decided, shrunk(table.label), np.zeros(design.shape[1])
        found = fit_logistic(scaled, y, w, free)
        errors = robust_errors(found, scaled, table.label, w, free, table.clusters) / scale
        found = found / scale
        if found[0] <= 0:  # with the covariates accounted for, the margins say nothing, whatever they say alone
            self.status_ = "uninformative"
        elif self.status_ == "uninformative":
            self.status_ = "ok"
        self.temperature_ = 1 / float(found[0]) if found[0] > 0 else math.inf
        self.beta_ = dict(zip(self.covariates, found[1:].tolist(), strict=True))
        self.errors_ = dict(zip(self.covariates, errors[1:].tolist(), strict=True))
        return {"se_log_temperature": float(errors[0] / found[0]) if found[0] > 0 else math.nan}

    def corrected(self, score: Any, covariates: Mapping[str, Any]) -> Floats:
        """[N] scores + T sum_j beta_j c_j: in the reward's unit, without what it gives too much or too little for."""
        self.check_fitted()
        if self.status_ == "uninformative":
            raise ValueError("style_controlled can correct no reward that says nothing, got an uninformative fit.")
        values = vector("score", score)
        return values + self.temperature_ * self._style(covariates, len(values))

    def _style(self, covariates: Mapping[str, Any], count: int) -> Floats:
        missing = [name for name in self.covariates if name not in covariates]
        if missing:
            got = ", ".join(covariates) or "none"
            raise ValueError(f"style_controlled needs the covariates {', '.join(missing)}, got {got}; add them.")
        total = np.zeros(count)
        for name in self.covariates:
            total += self.beta_[name] * vector(f"covariate {name}", covariates[name], count)
        return total

    def _probability(self, margin: Floats, **columns: Any) -> Floats:
        return sigmoid(self._log_odds(margin, **columns))

    def _log_odds(self, margin: Floats, **columns: Any) -> Floats:
        return margin / self.temperature_ + self._style(columns["covariates"], len(margin))

    def _columns(self, table: PairTable) -> dict[str, Any]:
        missing = [name for name in self.covariates if name not in table.covariates]
        if missing:
            got = ", ".join(table.covariates) or "none"
            raise ValueError(f"style_controlled needs pairs with {', '.join(missing)}, got {got}; add the covariates.")
        return {"covariates": table.covariates}

    def _state(self) -> dict[str, Any]:
        value = None if math.isinf(self.temperature_) else self.temperature_
        return {"temperature": value, "beta": self.beta_, "errors": self.errors_}

    def _restore(self, state: Mapping[str, Any]) -> None:
        value = state["temperature"]
        self.temperature_ = math.inf if value is None else finite(value, "temperature", above=0)
        self.beta_ = {name: finite(state["beta"][name], f"beta of {name}") for name in self.covariates}
        self.errors_ = {name: finite(state["errors"][name], f"error of {name}") for name in self.covariates}

"""A temperature for each slice, drawn to the common one as far as the slice is uncertain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rwk.calibration import temperature
from rwk.calibration.calibrator import PairCalibrator, finite, sigmoid
from rwk.calibration.pairs import Floats, PairTable


class SlicedTemperature(PairCalibrator):
    """P(first) = sigmoid(margin / T_s), with the temperature of the slice that a pair belongs to.

    By empirical Bayes log T_s = g + b_s (l_s - g): l_s is what the slice says alone, g what all pairs say,
    b_s = tau^2 / (tau^2 + se_s^2), and tau^2 the spread of slices beyond their errors. A slice that says nothing alone,
    and one that was not there in the fit, has the common temperature.
    """

    kind = "sliced_temperature"
    needs = ("slices",)

    temperature_: float
    """The common one."""
    temperatures_: dict[str, float]
    spread_: float
    """tau, in units of log T."""

    def __init__(self, *, by: str, shrink: bool = True) -> None:
        """
        Args:
            by: which of the table's slices, such as "category".
            shrink: whether to draw temperatures to the common one, or take each slice at its word.
        """
        self.by = by
        self.shrink = shrink

    def _fit(self, table: PairTable) -> dict[str, Any]:
        names = self._columns(table)["slices"]
        self.temperature_, error = temperature.fit(table)
        self.temperatures_, self.spread_ = {}, 0.0
        alone: dict[str, tuple[float, float]] = {}
        sizes: dict[str, dict[str, float]] = {}
        for name in np.unique(names).tolist():
            part = table.take(names == name)
            sizes[name] = {"pairs": len(part), "prompts": part.prompts}
            value, its_error = temperature.fit(part)
            if math.isfinite(value):
                alone[name] = math.log(value), its_error
                sizes[name] |= {"temperature_alone": value, "se_log_temperature": its_error}
        if math.isfinite(self.temperature_) and alone:
            centre = math.log(self.temperature_)
            beyond = [(value - centre) ** 2 - its_error**2 for value, its_error in alone.values()]
            spread = max(0.0, float(np.mean(beyond)))
            self.spread_ = math.sqrt(spread)
            for name, (value, its_error) in alone.items():
                share = spread / (spread + its_error**2) if self.shrink else 1.0
                self.temperatures_[name] = math.exp(centre + share * (value - centre))
        mute = sorted(set(sizes) - set(alone))
        note = {"note": f"slices that say nothing alone have the common temperature: {', '.join(mute)}"} if mute else {}
        return {"se_log_temperature": error, "slices": sizes, **note}

    def _probability(self, margin: Floats, **columns: Any) -> Floats:
        return sigmoid(self._log_odds(margin, **columns))

    def _log_odds(self, margin: Floats, **columns: Any) -> Floats:
        names = columns["slices"]
        if len(names) != len(margin):
            raise ValueError(f"slices must have one name a pair, got {len(names)} for {len(margin)} pairs.")
        found: Floats = margin / np.array([self.temperatures_.get(str(name), self.temperature_) for name in names])
        return found

    def _columns(self, table: PairTable) -> dict[str, Any]:
        if self.by not in table.slices:
            known = ", ".join(table.slices) or "none"
            raise ValueError(f"sliced_temperature needs pairs with the slice {self.by!r}, got {known}; add it.")
        return {"slices": table.slices[self.by]}

    def _state(self) -> dict[str, Any]:
        value = None if math.isinf(self.temperature_) else self.temperature_
        return {"temperature": value, "temperatures": self.temperatures_, "spread": self.spread_}

    def _restore(self, state: Mapping[str, Any]) -> None:
        value = state["temperature"]
        self.temperature_ = math.inf if value is None else finite(value, "temperature", above=0)
        self.temperatures_ = {k: finite(v, f"temperature of {k}", above=0) for k, v in state["temperatures"].items()}
        self.spread_ = finite(state["spread"], "spread", above=-1e-12)

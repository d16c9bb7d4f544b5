"""A calibrator for people who err whatever the margin, and for tails that are not those of the logistic function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rwk.calibration import temperature
from rwk.calibration.calibrator import PairCalibrator, finite, sigmoid
from rwk.calibration.pairs import Floats, PairTable

POWERS = (0.2, 5.0)
"""Least and largest power that a fit may give."""
_STARTS = ((0.02, 1.0), (0.2, 1.0), (0.1, 2.0), (0.02, 0.5))
"""Lapse and power from which a search begins; the likelihood may have more than one hill."""


class LapsePower(PairCalibrator):
    """P(first) = lapse / 2 + (1 - lapse) sigmoid(sign(margin) |margin / T|^power).

    With a lapse of 0 and a power of 1 it is the temperature. Four votes in five at the largest margins are a lapse of
    0.4.
    """

    kind = "lapse_power"

    temperature_: float
    lapse_: float
    """Share of votes that are cast blindly, 0..1."""
    power_: float
    """Below 1 confidence grows fast at small margins and slowly at large ones."""

    def __init__(self, *, fit_lapse: bool = True, fit_power: bool = True) -> None:
        """
        Args:
            fit_lapse: whether to fit the lapse, or leave it at 0.
            fit_power: whether to fit the power, or leave it at 1.
        """
        self.fit_lapse = fit_lapse
        self.fit_power = fit_power

    def _fit(self, table: PairTable) -> dict[str, Any]:
        from scipy.optimize import minimize

        start, error = temperature.fit(table)
        self.temperature_, self.lapse_, self.power_ = start, 0.0, 1.0
        if not math.isfinite(start) or self.status_ == "separable":
            return {"se_log_temperature": error}
        z, y, w = table.margin / start, table.label, table.decided / table.decided.sum()

        def loss(x: Floats) -> float:
            return float(w @ _losses(z, y, math.exp(x[0]), float(x[1]), math.exp(x[2])))

        most = 0.95 if self.fit_lapse else 0.0
        low, high = (math.log(of) for of in POWERS) if self.fit_power else (0.0, 0.0)
        bounds = [(-7.0, 7.0), (0.0, most), (low, high)]
        best, least = np.zeros(3), loss(np.zeros(3))
        for lapse, power in _STARTS:
            begin = np.array([0.0, min(lapse, most), min(max(math.log(power), low), high)])
            found = minimize(loss, begin, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13, "gtol": 1e-8})
            if found.fun < least:
                best, least = found.x, float(found.fun)
        self.temperature_, self.lapse_, self.power_ = start * math.exp(best[0]), float(best[1]), math.exp(best[2])
        return {}

    def _probability(self, margin: Floats, **columns: Any) -> Floats:
        z = margin / self.temperature_
        half = self.lapse_ / 2
        found: Floats = half + (1 - 2 * half) * sigmoid(np.sign(z) * np.abs(z) ** self.power_)
        return found

    def _state(self) -> dict[str, Any]:
        value = None if math.isinf(self.temperature_) else self.temperature_
        return {"temperature": value, "lapse": self.lapse_, "power": self.power_}

    def _restore(self, state: Mapping[str, Any]) -> None:
        value = state["temperature"]
        self.temperature_ = math.inf if value is None else finite(value, "temperature", above=0)
        self.lapse_ = finite(state["lapse"], "lapse", above=-1e-12, most=1)
        self.power_ = finite(state["power"], "power", above=0)


def _losses(z: Floats, y: Floats, scale: float, lapse: float, power: float) -> Floats:
    """[N] nats, of margins in the units of a temperature that is multiplied by `scale`."""
    x = np.sign(z) * np.abs(z / scale) ** power
    blind = math.log(lapse / 2) if lapse > 0 else -math.inf
    seeing = math.log1p(-lapse)
    yes, no = (np.logaddexp(blind, seeing - np.logaddexp(0, -side * x)) for side in (1, -1))
    found: Floats = -(y * yes + (1 - y) * no)
    return found

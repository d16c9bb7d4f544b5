"""Calibrators by name, and pairs whose true calibration is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rwk.calibration.calibrator import PairCalibrator
from rwk.calibration.lapse_power import LapsePower
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.sliced_temperature import SlicedTemperature
from rwk.calibration.storage import Binding
from rwk.calibration.style_controlled import StyleControlled
from rwk.calibration.symmetric_isotonic import SymmetricIsotonic
from rwk.calibration.temperature import Temperature
from rwk.calibration.ties import TieCalibrator

PAIRWISE: dict[str, Callable[[], PairCalibrator]] = {
    "temperature": Temperature,
    "lapse_power": LapsePower,
    "symmetric_isotonic": SymmetricIsotonic,
    "sliced_temperature": lambda: SlicedTemperature(by="kind"),
    "style_controlled": lambda: StyleControlled(covariates=["saturation"]),
}
TIED = {"davidson": lambda: TieCalibrator(), "rao_kupper": lambda: TieCalibrator(model="rao_kupper")}
GRID = np.array([-30.0, -7.5, -2.0, -1e-3, 0.0, 1e-3, 0.4, 2.0, 7.5, 30.0])
BINDING = Binding("mine", "module:Mine", "aa", {"size": 224, "mean": [0.5, 0.5]})
DATA = {"name": "toy", "sha256": "00", "protocol": "one vote a pair"}


def sigmoid(x: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-x))
    return found


def pairs(n: int, seed: int, *, true: float = 2.0, per_prompt: int = 1, soft: bool = False) -> PairTable:
    """Margins of log-odds with deviation 2 and a known temperature; two kinds of prompt, one covariate."""
    rng = np.random.default_rng(seed)
    margin = true * rng.normal(0, 2, n)
    chance = sigmoid(margin / true)
    return PairTable(
        margin,
        rng.binomial(5, chance) / 5 if soft else rng.random(n) < chance,
        prompt=[f"p{i // per_prompt}" for i in range(n)],
        slices={"kind": np.where(rng.random(n) < 0.5, "color", "count")},
        covariates={"saturation": rng.normal(size=n)},
    )


def tied_pairs(model: str, n: int, seed: int, *, true: float = 2.0, parameter: float) -> PairTable:
    """Outcomes of a known model of ties; margins of log-odds with deviation 1."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    if model == "davidson":
        odds = np.stack([np.exp(z / 2), np.full(n, parameter), np.exp(-z / 2)])
        first, tie, _ = odds / odds.sum(0)
    else:
        first, second = sigmoid(z - parameter), sigmoid(-z - parameter)
        tie = (math.exp(2 * parameter) - 1) * first * second
    u = rng.random(n)
    return PairTable(true * z, np.where(u < first, 1.0, np.where(u < first + tie, 0.5, 0.0)))


def like(calibrator: PairCalibrator, margin: Floats) -> dict[str, Any]:
    """Columns for margins that an orientation turns round with them."""
    columns = {
        "slices": np.array(["color", "count"])[np.arange(len(margin)) % 2][np.argsort(np.argsort(np.abs(margin)))],
        "covariates": {"saturation": np.sign(margin) * 0.7},
    }
    return {name: columns[name] for name in calibrator.needs}

"""The default calibrator: one temperature and no bias."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rwk.calibration.calibrator import PairCalibrator, finite, sigmoid
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.statistics import FEW_CLUSTERS
from rwk.rewards.losses import fit_temperature


class Temperature(PairCalibrator):
    """P(first) = sigmoid(margin / T).

    Platt's and the beta calibrator come down to this once swapping a pair has to swap its probabilities, which leaves
    no room for a bias.

    >>> table = PairTable([2.0, 1.0, -1.0, 1.0], [1, 1, 0, 0])
    >>> Temperature().fit(table).probability([0.0]).tolist()
    [0.5]
    """

    kind = "temperature"

    temperature_: float
    """T, in the reward's unit: a margin of T is log-odds of 1. Infinite where the margins say nothing."""

    def _fit(self, table: PairTable) -> dict[str, Any]:
        self.temperature_, error = fit(table)
        return {"se_log_temperature": error}

    def _probability(self, margin: Floats, **columns: Any) -> Floats:
        return sigmoid(margin / self.temperature_)

    def _log_odds(self, margin: Floats, **columns: Any) -> Floats:
        return margin / self.temperature_

    def _state(self) -> dict[str, Any]:
        return {"temperature": None if math.isinf(self.temperature_) else self.temperature_}

    def _restore(self, state: Mapping[str, Any]) -> None:
        value = state["temperature"]
        self.temperature_ = math.inf if value is None else finite(value, "temperature", above=0)


def fit(table: PairTable) -> tuple[float, float]:
    """The temperature of pairs with a preference, and the standard error of its logarithm (NaN where T is infinite).

    The error is the sandwich estimate by prompt. Below 30 prompts, where that leans to the small side, it is at least
    the one of independent pairs.
    """
    held = (torch.from_numpy(np.array(column)) for column in (table.margin, table.label, table.decided))
    value = fit_temperature(*held).value
    if math.isinf(value):
        return math.inf, math.nan
    w, z = table.decided, table.margin / value
    p = sigmoid(z)
    curvature = float((w * z * z * p * (1 - p)).sum())
    totals = np.bincount(table.clusters, w * z * (p - table.label))
    count = len(totals)
    robust = math.sqrt(count / max(count - 1, 1) * float(totals @ totals)) / curvature
    alone = math.sqrt(float((w * w * z * z * p * (1 - p)).sum())) / curvature
    return value, robust if count >= FEW_CLUSTERS else max(robust, alone)

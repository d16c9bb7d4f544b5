"""How well margins agree with preferences that were not trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rwk.rewards.data import PreferenceDataset
from rwk.rewards.intervals import Interval, cluster_interval
from rwk.rewards.losses import Temperature, bradley_terry_loss, fit_temperature

TIES_RULE = "pairs with p_first = 0.5 are left out of the accuracy; a margin of exactly 0 counts as half right"


@dataclass(frozen=True)
class HeldOut:
    """Margins of held-out preferences against what people said; intervals are clustered by prompt."""

    nll: Interval
    """Mean negative log-likelihood of the margins as they are, in nats a pair."""
    nll_calibrated: Interval
    """The same after division by the temperature."""
    accuracy: Interval | None
    """Share of the pairs whose better image gets the higher score; None where all are ties."""
    temperature: Temperature
    pairs: int
    ties: int
    """Pairs with p_first = 0.5."""

    def document(self) -> dict[str, Any]:
        """The same in JSON's types, null for what is not finite."""
        intervals = {"nll": self.nll, "nll_calibrated": self.nll_calibrated, "accuracy": self.accuracy}
        found = {
            name: interval and {key: _finite(value) for key, value in interval._asdict().items()}
            for name, interval in intervals.items()
        }
        temperature = self.temperature._asdict() | {"value": _finite(self.temperature.value)}
        counts = {"pairs": self.pairs, "ties": self.ties, "ties_rule": TIES_RULE}
        return {**found, "temperature": temperature, **counts}


def measure(margin: Tensor, dataset: PreferenceDataset) -> HeldOut:
    """What margins [N], one for each row of the dataset, say of it; rows count by their weight in the losses."""
    margin = margin.double()
    p_first = torch.tensor([row.p_first for row in dataset], dtype=torch.float64)
    weight = torch.tensor([row.weight for row in dataset], dtype=torch.float64)
    groups = dataset.groups()
    temperature = fit_temperature(margin, p_first, weight)
    share = weight * len(dataset) / weight.sum()  # so that the plain mean is the weighted one
    plain = bradley_terry_loss(margin, p_first, share).tolist()
    calibrated = bradley_terry_loss(margin / temperature.value, p_first, share).tolist()
    decided = [i for i, row in enumerate(dataset) if row.p_first != 0.5]
    right = (0.5 + 0.5 * margin.sign() * (p_first - 0.5).sign())[decided].tolist()
    return HeldOut(
        nll=cluster_interval(plain, groups),
        nll_calibrated=cluster_interval(calibrated, groups),
        accuracy=cluster_interval(right, [groups[i] for i in decided]) if decided else None,
        temperature=temperature,
        pairs=len(dataset),
        ties=len(dataset) - len(decided),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

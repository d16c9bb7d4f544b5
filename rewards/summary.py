"""What many scores come to: statistics, the best and the worst, and what could not be read, in bounded memory."""

from __future__ import annotations

import bisect
import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rwk.rewards.base import RewardSpec
from rwk.rewards.sinks import Row

EXTREMES = 8
FAULTS = 100


@dataclass
class Column:
    """The scores of one reward."""

    name: str
    spec: RewardSpec
    values: array[float] = field(default_factory=lambda: array("d"))
    """Every score, eight bytes each."""
    best: list[tuple[float, int, Row]] = field(default_factory=list)
    """The largest scores, the first one largest; (minus score, index, row)."""
    worst: list[tuple[float, int, Row]] = field(default_factory=list)
    """The smallest scores, the first one smallest; (score, index, row)."""

    def add(self, index: int, row: Row) -> None:
        value = row.scores[self.name]
        if value is None:
            return
        self.values.append(value)
        for extremes, key in ((self.best, -value), (self.worst, value)):
            bisect.insort(extremes, (key, index, row))
            del extremes[EXTREMES:]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def low(self) -> float:
        return min(self.values, default=math.nan)

    @property
    def high(self) -> float:
        return max(self.values, default=math.nan)

    def document(self) -> dict[str, Any]:
        """The column for `--json`."""
        return {
            "unit": self.spec.unit,
            "lowest_possible": self.spec.low,
            "highest_possible": self.spec.high,
            "scored": len(self.values),
            "mean": self.mean,
            "min": self.low,
            "max": self.high,
        }


class Summary:
    """What the rows come to that pass through `watch`."""

    def __init__(self, specs: dict[str, RewardSpec], *, keep: int | None) -> None:
        """
        Args:
            specs: of every column.
            keep: how many rows to keep as they are, from the first on; None keeps all.
        """
        self.columns = [Column(name, spec) for name, spec in specs.items()]
        self.images = 0
        self.unreadable = 0
        self.unscored = 0
        """Images that can be read but lack a score."""
        self.faults: list[Row] = []
        """The first images without a score."""
        self.rows: list[Row] = []
        self._keep = keep

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows, counted on their way."""
        for index, row in enumerate(rows):
            self.images += 1
            if self._keep is None or index < self._keep:
                self.rows.append(row)
            if row.fault or None in row.scores.values():
                self.unreadable += bool(row.fault)
                self.unscored += not row.fault
                self.faults += [row] if len(self.faults) < FAULTS else []
            for column in self.columns:
                column.add(index, row)
            yield row

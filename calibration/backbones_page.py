"""The page of backbones side by side: a table and the plot of accuracy in domain and out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rwk.calibration.backbones import Row
from rwk.calibration.plots import Point, scatter
from rwk.calibration.probe import told
from rwk.calibration.statistics import Interval
from rwk.rewards.report import page, save, section, table

HEADS = ("architecture", "pre-training", "domain", "accuracy", "robustness, logits", "log T there / T in domain")


def write_matrix(rows: Sequence[Row], path: Path) -> None:
    """Writes one HTML file that needs nothing else."""
    lines = [
        [row.architecture, row.training, name, told(value, 3), _shown(row.robustness, name), _shown(row.shift, name)]
        for row in rows
        for name, value in row.accuracy.items()
    ]
    points = []
    for row in rows:
        first, *others = row.accuracy
        points += [
            Point(f"{row.architecture}, {row.training}", name, row.accuracy[first], row.accuracy[name])
            for name in others
        ]
    lead = "One linear head on frozen features each, learnt from the same preferences; intervals by prompt, 95 %."
    body = [section("Backbones", [table(HEADS, lines)])]
    if points:
        said = "Robustness is how far a point lies above the line through all backbones in its domain."
        body.append(section("In domain and out of it", [scatter(points)], lead=said))
    save(path, page("Backbones", body, lead=lead))


def _shown(held: Mapping[str, Interval], name: str) -> str:
    return told(held[name]) if name in held else ""

"""The page that `rwk score --report` writes: what the scores come to, and the images at both ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from rwk.rewards.images import guarded, read
from rwk.rewards.report import Figure, figures, histogram, number, page, section, table
from rwk.rewards.sinks import Row
from rwk.rewards.summary import EXTREMES, Column, Summary

SIDE = 320
"""Most pixels along a side of an image on the page."""


def score_page(summary: Summary) -> str:
    """The HTML page of a summary; reads the images that it shows once more."""
    count = "1 image" if summary.images == 1 else f"{summary.images} images"
    lead = "Larger is better, whatever the reward. "
    lead += f"{summary.unreadable} could not be read. " if summary.unreadable else "All of them could be read. "
    lead += f"{summary.unscored} more lack a score." if summary.unscored else ""
    with guarded():
        return page(f"Scores of {count}", list(_sections(summary)), lead=lead)


def _sections(summary: Summary) -> Iterator[str]:
    numbers = ["images scored", "mean", "min", "max"]
    rows = [
        [column.name, column.spec.unit, f"{len(column.values):,}"]
        + [number(value) for value in (column.mean, column.low, column.high)]
        for column in summary.columns
    ]
    yield section("Overview", [table(["reward", "unit", *numbers], rows, numbers=numbers)])
    thumbnails: dict[str, Image.Image | None] = {}
    for column in summary.columns:
        yield section(column.name, _column(column, thumbnails), lead=_about(column))
    if summary.faults:
        left = summary.unreadable + summary.unscored - len(summary.faults)
        more = f"The first {len(summary.faults)}; {left} more are in the table of scores." if left else ""
        yield section("Without a score", [table(["file", "why"], [_fault(row) for row in summary.faults])], lead=more)


def _about(column: Column) -> str:
    source = f", {column.spec.source}" if column.spec.source else ""
    return f"{column.spec.unit}; {number(column.spec.low)} to {number(column.spec.high)} is possible{source}."


def _column(column: Column, thumbnails: dict[str, Image.Image | None]) -> Iterator[str]:
    count = len(column.values)
    if not count:
        yield "<p>No image has a score.</p>"
        return
    yield histogram(column.values, column.name)
    if count <= EXTREMES:
        yield _ranked("From best to worst", column, [row for _, _, row in column.best], thumbnails)
        return
    ends = min(EXTREMES, count // 2)
    yield _ranked("Best", column, [row for _, _, row in column.best[:ends]], thumbnails)
    yield _ranked("Worst", column, [row for _, _, row in column.worst[:ends]], thumbnails)


def _ranked(title: str, column: Column, rows: list[Row], thumbnails: dict[str, Image.Image | None]) -> str:
    shown = []
    for row in rows:
        if row.image not in thumbnails:
            thumbnails[row.image] = _thumbnail(row.image)
        name = Path(row.image).name
        value = row.scores[column.name]
        lines = [name, f"“{row.prompt}”" if row.prompt else "", row.notes.get(column.name, "")]
        score = "" if value is None else number(value)
        shown.append(Figure(thumbnails[row.image], score, lines, alt=row.prompt or name))
    return figures(title, shown, size=SIDE)


def _thumbnail(path: str) -> Image.Image | None:
    image = read(Path(path)).image
    if image:
        image.thumbnail((SIDE, SIDE))
    return image


def _fault(row: Row) -> tuple[str, str]:
    return row.image, row.fault or "; ".join(f"{column}: {note}" for column, note in row.notes.items())

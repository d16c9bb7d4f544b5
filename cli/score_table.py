"""The tables that `rwk score` shows to people."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rwk.cli.console import table, width
from rwk.rewards.sinks import Row
from rwk.rewards.summary import Column, Summary

FEW = 4
"""Images up to which they are columns and the rewards are rows."""
NOTES = 10
"""Notes that are shown."""
LEAST = 12
"""Characters that a column of text gets at least."""


def score_tables(summary: Summary) -> Iterator[Any]:
    """What to show: a title, one table, and lines that explain it."""
    from rich.text import Text

    rows, told = _chosen(summary)
    folder = _folder([row.image for row in rows])
    prompts = {row.prompt for row in rows}
    title = f"{told} in {folder}" if folder else told
    title += f', prompt "{_cut(prompts.pop(), 60)}"' if len(prompts) == 1 and prompts != {""} else ""
    yield Text(title + "\n", style="bold")
    few = len(rows) <= FEW and len(prompts) < 2
    yield _few(summary.columns, rows, folder) if few else _many(summary.columns, rows, folder)
    explained = [] if few else [f"{column.name}: {column.spec.unit}" for column in summary.columns]
    explained.append(f"Larger is better in every {'row' if few else 'column'}.")
    noted = [f"{_name(row.image, folder)}: {_note(row)}" for row in rows if row.notes]
    if len(noted) > NOTES:
        noted[NOTES:] = [f"… and {len(noted) - NOTES} more notes"]
    yield Text("\n" + "\n".join([*noted, *[""] * bool(noted), *explained]))


def _chosen(summary: Summary) -> tuple[list[Row], str]:
    if summary.images == len(summary.rows):
        return summary.rows, _count(summary.images)
    first = summary.columns[0]
    ends = [row for _, _, row in first.best] + [row for _, _, row in reversed(first.worst)]
    return ends, f"best and worst {first.name} of {summary.images} images"


def _count(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"


def _folder(images: Sequence[str]) -> str:
    """The folder that all images lie below, or "" where that is the working folder or none."""
    try:
        common = os.path.commonpath([os.path.dirname(image) or "." for image in images])
    except ValueError:  # absolute and relative paths together
        return ""
    return "" if common == "." else common


def _few(columns: Sequence[Column], rows: Sequence[Row], folder: str) -> Any:
    names = [_cut(_name(row.image, folder), 24, end=True) for row in rows]
    lines = []
    for column in columns:
        values = [_number(row.scores[column.name], _decimals(column)) for row in rows]
        lines.append([column.name, *values, column.spec.unit])
    return table(["reward", *names, "unit"], lines, numbers=names)


def _many(columns: Sequence[Column], rows: Sequence[Row], folder: str) -> Any:
    heads = [_head(column.name) for column in columns]
    shown = [*rows, *(_foot(columns, key) for key in ("mean", "low", "high"))]
    numbers = [[_number(row.scores[column.name], _decimals(column)) for column in columns] for row in shown]
    cells = zip(heads, *numbers, strict=True)
    room = width() - sum(max(len(part) for cell in column for part in cell.split("\n")) + 2 for column in cells)
    names = [*(_name(row.image, folder) for row in rows), "mean", "min", "max"]
    for_names = max(min(max(map(len, names)), room), LEAST)
    lines = [[_cut(name, for_names, end=True), *line] for name, line in zip(names, numbers, strict=True)]
    left = room - for_names - 4
    if len({row.prompt for row in rows}) < 2 or left < LEAST:
        return table(["image", *heads], lines, numbers=heads, foot=3)
    lines = [[*line, _cut(row.prompt, left)] for line, row in zip(lines, shown, strict=True)]
    return table(["image", *heads, "prompt"], lines, numbers=heads, foot=3)


def _foot(columns: Sequence[Column], key: str) -> Row:
    return Row(key, "", {column.name: getattr(column, key) for column in columns}, {}, "")


def _head(name: str) -> str:
    """The name of a reward, with its variant on a line of its own."""
    family, dot, variant = name.partition(".")
    return f"{family}\n.{variant}" if dot and family.isidentifier() else name


def _note(row: Row) -> str:
    if row.fault:
        return row.fault
    return "; ".join(f"{column}: {said}" if len(row.scores) > 1 else said for column, said in row.notes.items())


def _name(image: str, folder: str) -> str:
    return os.path.relpath(image, folder) if folder else str(Path(image))


def _cut(text: str, limit: int, *, end: bool = False) -> str:
    """The text in at most so many characters; keeps its end instead of its beginning where `end`."""
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    return "…" + text[1 - limit :] if end else text[: limit - 1] + "…"


def _decimals(column: Column) -> int:
    """Decimals that show four digits of the column's largest number."""
    largest = max(abs(column.low), abs(column.high))
    if not largest or not math.isfinite(largest):
        return 3
    return min(max(3 - math.floor(math.log10(largest)), 0), 6)


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:,.{decimals}f}"

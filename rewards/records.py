"""Files of rows: JSON, JSON lines, CSV, Parquet and TFRecord, one row after the other and each with its place."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rwk.rewards.pictures import Stored
from rwk.rewards.readable import parquet_of, text_of
from rwk.rewards.tfrecord import examples

_BATCH = 64
"""Rows of a Parquet file that are in memory at once."""

Found = Iterator[tuple[str, Any]]
"""Where a row stands, such as "line 3", and the row; a line of JSON is still encoded."""


def records(path: Path) -> Found:
    """The rows of a .json, .jsonl, .csv, .parquet or .tfrecord file.

    A JSON file holds a list of rows, a list called `pairs`, or rows by their `key`; one row a line is read too. Images
    inside Parquet stay there: their bytes become `Stored`.

    Raises:
        ValueError: for another ending, and for a file that is not of its kind.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"preferences must be a file of {', '.join(READERS)}, got {path}; convert or rename it.")
    return reader(path)


def row(value: Any) -> Mapping[str, Any]:
    """The row as named columns; raises ValueError for anything else."""
    try:
        found = json.loads(value) if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise ValueError("a row must be text in UTF-8, got other bytes; convert the file") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"a row must be an object with named columns, got {type(found).__name__}")
    return found


def _lines(path: Path) -> Found:
    with path.open("rb") as file:
        yield from ((f"line {number}", line) for number, line in enumerate(file, 1) if line.strip())


def _json(path: Path) -> Found:
    try:
        with text_of(path):
            held = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise ValueError(f"{path} must be JSON, got {error}; correct it.") from None
        yield from _lines(path)
        return
    if isinstance(held, Mapping):
        inner = held.get("pairs")
        if not isinstance(inner, list):
            for key, value in held.items():
                yield f"key {key}", {"key": key, **value} if isinstance(value, Mapping) else value
            return
        held = inner
    yield from ((f"item {number}", value) for number, value in enumerate(held, 1))


def _csv(path: Path) -> Found:
    with text_of(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        yield from ((f"line {reader.line_num}", value) for value in reader)


def _parquet(path: Path) -> Found:
    import pyarrow.parquet

    number = 0
    with parquet_of(path), pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH):
            for value in batch.to_pylist():
                yield f"row {number + 1}", {name: _cell(cell, path, number, name) for name, cell in value.items()}
                number += 1


def _cell(cell: Any, path: Path, number: int, name: str, item: int | None = None) -> Any:
    """The cell with its images replaced; a Hugging Face image is {bytes, path} and may be in a list."""
    if isinstance(cell, list):
        return [_cell(part, path, number, name, place) for place, part in enumerate(cell)]
    value = cell
    if isinstance(cell, Mapping) and set(cell) == {"bytes", "path"}:
        value = cell["path"] if cell["bytes"] is None else cell["bytes"]
    if isinstance(value, bytes):
        return Stored(path, number, name, item, hashlib.sha256(value).hexdigest())
    return value


def _tfrecord(path: Path) -> Found:
    for number, features in enumerate(examples(path), 1):
        yield f"record {number}", {name: values[0] for name, values in features.items() if values}


READERS = {".json": _json, ".jsonl": _lines, ".csv": _csv, ".parquet": _parquet, ".tfrecord": _tfrecord}
"""By the ending of the file."""

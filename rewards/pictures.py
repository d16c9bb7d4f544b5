"""Pictures that preferences are about: where they lie, what tells them apart, and how they are opened."""

from __future__ import annotations

import functools
import io
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Stored:
    """An encoded image inside a Parquet file, which is read when it is opened."""

    file: Path
    row: int
    column: str
    item: int | None
    """Where the cell is a list: which of its images."""
    key: str
    """What tells the image from others, such as the SHA-256 of its bytes."""

    def read(self) -> bytes:
        """The encoded bytes, from the file."""
        stamp = self.file.stat().st_mtime_ns
        starts = _starts(self.file, stamp)
        group = bisect_right(starts, self.row) - 1
        cell = _column(self.file, stamp, group, self.column)[self.row - starts[group]].as_py()
        value = cell if self.item is None else cell[self.item]
        encoded: bytes = value["bytes"] if isinstance(value, Mapping) else value
        return encoded


Picture = Path | Stored | Image.Image


def identity(picture: Picture) -> str:
    """What tells one image from another within a process: its path, its key, or the object itself."""
    if isinstance(picture, Path):
        return str(picture)
    return picture.key if isinstance(picture, Stored) else f"image {id(picture)}"


def content(picture: Picture) -> bytes:
    """The bytes of the file, or the pixels of an open image."""
    if isinstance(picture, Path):
        return picture.read_bytes()
    return picture.read() if isinstance(picture, Stored) else picture.tobytes()


def opened(picture: Picture) -> Image.Image:
    """The image with its pixels in memory and no file open; raises what `rewards.base.UNREADABLE` names."""
    if isinstance(picture, Image.Image):
        return picture
    with Image.open(picture if isinstance(picture, Path) else io.BytesIO(picture.read())) as image:
        image.load()
        return image


@functools.lru_cache(maxsize=64)
def _starts(file: Path, stamp: int) -> list[int]:
    """The first row of each row group."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        starts = [0]
        for group in range(table.num_row_groups - 1):
            starts.append(starts[-1] + table.metadata.row_group(group).num_rows)
        return starts


@functools.lru_cache(maxsize=4)
def _column(file: Path, stamp: int, group: int, column: str) -> Any:
    """One column of one row group: pictures are mostly opened in the order of the file, two columns in turn."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        return table.read_row_group(group, columns=[column]).column(column)

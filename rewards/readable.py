"""What is said of a file of rows or text that cannot be read: which file, where in it, and what to do."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterator
from pathlib import Path

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@contextlib.contextmanager
def text_of(path: Path) -> Iterator[None]:
    """Has what is read inside, text or CSV, fail with a ValueError that names the file, the line and the remedy."""
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(_not_utf8(path)) from None
    except csv.Error as error:
        raise ValueError(f"{path} must be CSV, got a line that cannot be parted ({error}); correct it.") from None


@contextlib.contextmanager
def parquet_of(path: Path) -> Iterator[None]:
    """Has what is read inside by pyarrow fail with an error that names the file, and a ValueError with the remedy."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # it cannot be opened; pyarrow's own error names no file
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        told = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{path} must be a whole Parquet file, got none that can be read ({told}); write it again."
        ) from None


def is_text(prompt: str) -> bool:
    """Whether a prompt can be written as UTF-8; half of a surrogate pair cannot, and tokenizers choke on it."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(path: Path) -> str:
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in _UTF16 else "latin1"
        file.seek(0)
        line = next((number for number, line in enumerate(file, 1) if not _is_utf8(line)), 1)
    return (
        f"{path} must be text in UTF-8, got other bytes in line {line}; convert it, "
        f"for instance by `iconv -f {encoding} -t utf-8 {path.name}`."
    )


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True

"""What a command prints: tables and documents on stdout, notes and progress on stderr, from the first process alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import click

QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0


def is_main() -> bool:
    """Whether this process is the one that prints: the only one, or the first of `accelerate launch`."""
    return int(os.environ.get("RANK", "0")) == 0


def note(text: str) -> None:
    """Prints one line on stderr."""
    if is_main():
        click.echo(f"rwk: {text}", err=True)


@contextlib.contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Prints what rwk warns of inside as notes, each once; warnings of others are shown as Python shows them."""
    packages, told, others = Path(__file__).resolve().parents[1], set[str](), warnings.showwarning

    def tell(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if Path(filename).resolve().parent.parent != packages:  # its folders are flat
            others(message, category, filename, lineno, file, line)
        elif str(message) not in told:
            told.add(str(message))
            note(str(message))

    warnings.showwarning = tell
    try:
        yield
    finally:
        warnings.showwarning = others


def width() -> int:
    """Characters in a line of stdout: those of the terminal or of $COLUMNS; into a file or a pipe nothing is folded."""
    return shutil.get_terminal_size((1000, 24)).columns


def show(renderable: Any) -> None:
    """Prints text, or a rich table or tree, on stdout."""
    if not is_main():
        return
    from rich.console import Console

    Console(width=width(), highlight=False).print(renderable)


def emit(document: Any) -> None:
    """Prints the JSON document on stdout."""
    if is_main():
        click.echo(json.dumps(plain(document), ensure_ascii=False, allow_nan=False, indent=2))


def plain(value: Any) -> Any:
    """The value in JSON's own types: dataclasses as objects, paths as strings, and null for NaN and infinities."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def document_only() -> Iterator[None]:
    """Sends whatever is printed inside to stderr, so that a document can stand alone on stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


Advance = Callable[..., None]
"""Is called with how many more are done, and perhaps with how many there are in all, once that is known."""


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Advance]:
    """Gives a function that is told how many more are done, and shows them on stderr.

    A terminal gets a moving bar, anything else a line after two seconds and every ten from then on.

    Args:
        what: what is being done, such as "scoring".
        total: how many there are, if that is known.
    """
    if not is_main():
        yield lambda *_: None
        return
    with _bar(what, total) if sys.stderr.isatty() else _lines(what, total) as advance:
        yield advance


@contextlib.contextmanager
def _bar(what: str, total: int | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    counted = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more, total=None: bar.update(task, advance=more, total=total)


@contextlib.contextmanager
def _lines(what: str, total: int | None) -> Iterator[Advance]:
    done = 0
    begun = time.monotonic()
    over = threading.Event()

    def advance(more: int, of: int | None = None) -> None:
        nonlocal done, total
        done, total = done + more, total if of is None else of

    def tell() -> None:
        pause = QUIET_SECONDS
        while not over.wait(pause):
            note(progress_line(what, done, total, time.monotonic() - begun))
            pause = LINE_SECONDS

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield advance
    finally:
        over.set()
        teller.join()


def progress_line(what: str, done: int, total: int | None, seconds: float) -> str:
    """What is said of a run after so many seconds.

    >>> progress_line("scoring", 30, 90, 10)
    'scoring: 30 of 90, 3 per second, about 20 s left'
    """
    if not done:
        return f"{what}: {seconds:.0f} s so far"
    rate = done / seconds
    if total is None:
        return f"{what}: {done}, {rate:.3g} per second"
    return f"{what}: {done} of {total}, {rate:.3g} per second, about {(total - done) / rate:.0f} s left"


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[str] = (),
    foot: int = 0,
) -> Any:
    """A rich table to `show`.

    Args:
        columns: heads, which are folded where there is no room.
        rows: cells, as many in each as columns.
        numbers: columns that are aligned to the right and whose cells are never folded.
        foot: last rows that are set apart by a line.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(columns):
        longest = max((len(row[place]) for row in rows), default=1)
        justify: Any = "right" if column in numbers else "left"
        least = longest if column in numbers else min(longest, 12 if place else 24)
        made.add_column(Text(column), justify=justify, min_width=least, overflow="fold")
    for index, row in enumerate(rows):
        made.add_row(*(Text(cell) for cell in row), end_section=index == len(rows) - foot - 1 and foot > 0)
    return made

"""Where scores go: parts that survive a kill while they are written, and a finished file in one step."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO


class Row(NamedTuple):
    """What is known of one image."""

    image: str
    prompt: str
    scores: dict[str, float | None]
    """By column; None where there is no score."""
    notes: dict[str, str]
    """By column, where there is a note."""
    fault: str
    """Why the image cannot be read, or ""."""

    def record(self) -> dict[str, Any]:
        """The row as it stands in a file: image, prompt, one column a reward, and notes where there are any."""
        notes = {f"{column}.note": note for column, note in self.notes.items()}
        return {"image": self.image, "prompt": self.prompt, **self.scores, **notes}


class Part:
    """The rows of one process so far, a line of JSON each after a head that says what run they are of."""

    def __init__(self, path: Path, head: dict[str, Any], *, resume: bool) -> None:
        """
        Args:
            path: the file; what it holds is dropped unless `resume`.
            head: what must be the same for a run to go on.
            resume: keep the rows that are there. A last line that was torn by a kill is dropped.

        Raises:
            ValueError: when the rows there are of another run.
        """
        self.path = path
        self.rows = 0
        """Rows that were there already."""
        keep = self._checked(head) if resume and path.exists() else 0
        self._file = path.open("r+b" if keep else "wb")
        self._file.truncate(keep)
        self._file.seek(keep)
        if not keep:
            self._line(head)

    def _checked(self, head: dict[str, Any]) -> int:
        """Counts the rows that are whole; gives back the bytes that they and the head take."""
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                try:
                    value = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                if number == 0 and value != head:
                    raise ValueError(
                        f"--resume needs images, prompts, rewards, preprocessing and precision of the stopped run, "
                        f"got others than in {self.path}; repeat the same command, or leave --resume out to start over."
                    )
                end += len(line)
                self.rows += number > 0
        return end

    def write(self, rows: Iterable[Row]) -> None:
        """Adds rows; when it returns they survive a kill of the process."""
        for row in rows:
            self._line(row)
        self._file.flush()

    def _line(self, value: Any) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def part_path(out: Path, rank: int, world: int) -> Path:
    """Where process `rank` of `world` keeps the rows of an unfinished file."""
    return out.with_name(f"{out.name}.partial-{rank}-of-{world}")


def parts_of(out: Path) -> list[Path]:
    """The parts of an unfinished file, of however many processes."""
    return sorted(path for path in out.parent.iterdir() if path.name.startswith(f"{out.name}.partial-"))


def merged(paths: Sequence[Path], count: int) -> Iterator[Row]:
    """The rows of all parts in the order of the images, which the processes took in turn."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in paths]
        heads = {next(file) for file in files}
        if len(heads) > 1:
            raise ValueError("every process must score the same images, got different ones; did the folder change?")
        for index in range(count):
            yield Row(*json.loads(next(files[index % len(files)])))


def write_table(out: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Writes the rows as .jsonl, .csv or .parquet; the file appears when it is whole."""
    writers = {".jsonl": _write_jsonl, ".csv": _write_csv, ".parquet": _write_parquet}
    with finished(out) as path:
        writers[out.suffix.lower()](path, columns, rows)


@contextlib.contextmanager
def finished(out: Path) -> Iterator[Path]:
    """A path to write to, which becomes `out` in one step when all went well."""
    path = out.with_name(f"{out.name}.unfinished")
    try:
        yield path
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(path, out)
    finally:
        path.unlink(missing_ok=True)


def _text(path: Path) -> TextIO:
    # File names may hold bytes that are no UTF-8; in JSON their escape is the same name again.
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")


def _write_jsonl(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with _text(path) as file:
        file.writelines(json.dumps(row.record(), ensure_ascii=False) + "\n" for row in rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with _text(path) as file:
        writer = csv.DictWriter(file, _fields(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.record() for row in rows)


def _write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    kinds = {column: pyarrow.float32() for column in columns}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in _fields(columns)])
    with ParquetWriter(path, schema) as writer:
        for batch in _batches(rows, 4096):
            clean = [{key: _printable(value) for key, value in row.record().items()} for row in batch]
            writer.write_table(pyarrow.Table.from_pylist(clean, schema=schema))


def _fields(columns: Sequence[str]) -> list[str]:
    return ["image", "prompt", *columns, *(f"{column}.note" for column in columns)]


def _printable(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

"""Preferences between two images of one prompt: reading them, checking them, and splitting them by prompt."""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

from PIL import Image

from rwk.rewards.home import home

Picture = Path | Image.Image

BUILT_IN = {"shapes.preferences": "rwk.adapters.shapes_preferences:preferences"}
"""Data that rwk makes itself: `module:function`, called with a folder and `seed=`, which gives back a JSONL file."""

_SHOWN = 3
"""Bad rows that an error names."""


class Preference(NamedTuple):
    """Which of two images fits a prompt better, as a share of votes."""

    prompt: str
    first: Picture
    second: Picture
    p_first: float
    """Share that prefers the first, 0..1; 0.5 is a tie."""
    weight: float = 1.0
    """How much the row counts in the loss, above 0."""


class PreferenceDataset(Sequence[Preference]):
    """Preferences in the order of their file.

    Columns, in JSONL, CSV and Parquet alike:

    * `first`, `second`: the images. A path is taken from the file's own folder; Parquet may hold the encoded bytes,
      or the `{bytes, path}` of a Hugging Face image column.
    * `prompt`: may be left out or empty where the reward needs none.
    * `p_first`: share that prefers the first, 0..1; or the counts `votes_first`, `votes_second` and, if wanted, `ties`,
      where a tie counts half for each.
    * `weight`: optional, above 0, by default 1 (whatever the number of votes).
    """

    def __init__(self, rows: Iterable[Preference], places: Sequence[str] = (), *, name: str = "preferences") -> None:
        """
        Args:
            rows: the preferences.
            places: where each row stands in its file, such as "line 3"; by default "row 3".
            name: what the data is called in messages.
        """
        self.rows = list(rows)
        self.places = list(places) or [f"row {i + 1}" for i in range(len(self.rows))]
        self.name = name
        self._digest = ""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Preference: ...
    @overload
    def __getitem__(self, index: slice) -> PreferenceDataset: ...
    def __getitem__(self, index: int | slice) -> Preference | PreferenceDataset:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self.rows[index]

    def take(self, indices: Iterable[int]) -> PreferenceDataset:
        """The rows of these indices, in the order given."""
        chosen = list(indices)
        return PreferenceDataset((self.rows[i] for i in chosen), [self.places[i] for i in chosen], name=self.name)

    @classmethod
    def read(cls, path: Path) -> PreferenceDataset:
        """The preferences of a .jsonl, .csv or .parquet file.

        Raises:
            ValueError: for another ending, an empty file, or bad rows, the first few of which it names by line.
        """
        readers = {".jsonl": cls.from_jsonl, ".csv": cls.from_csv, ".parquet": cls.from_parquet}
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise ValueError(f"preferences must be a .jsonl, .csv or .parquet file, got {path}; convert or rename it.")
        return reader(path)

    @classmethod
    def from_jsonl(cls, path: Path) -> PreferenceDataset:
        """The preferences of a file with one JSON object a line."""
        with path.open(encoding="utf-8") as file:
            lines = ((f"line {number}", line) for number, line in enumerate(file, 1) if line.strip())
            return cls._checked(path, lines)

    @classmethod
    def from_csv(cls, path: Path) -> PreferenceDataset:
        """The preferences of a CSV file whose first line names the columns."""
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            return cls._checked(path, ((f"line {reader.line_num}", row) for row in reader))

    @classmethod
    def from_parquet(cls, path: Path) -> PreferenceDataset:
        """The preferences of a Parquet file; images that it holds stay encoded in memory, each once."""
        import pyarrow.parquet

        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        return cls._checked(path, ((f"row {number}", row) for number, row in enumerate(rows, 1)))

    @classmethod
    def _checked(cls, path: Path, found: Iterator[tuple[str, Any]]) -> PreferenceDataset:
        rows: list[Preference] = []
        places: list[str] = []
        bad: list[str] = []
        held: dict[bytes, Image.Image] = {}
        for place, record in found:
            try:
                rows.append(_preference(json.loads(record) if isinstance(record, str) else record, path.parent, held))
                places.append(place)
            except ValueError as error:
                bad.append(f"{place}: {error}")
        if bad:
            more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            raise ValueError(f"{path} has bad rows: {'; '.join(bad[:_SHOWN])}{more}. Correct or remove them.")
        if not rows:
            raise ValueError(f"{path} must hold at least one preference, got none.")
        return cls(rows, places, name=str(path))

    def groups(self) -> list[str]:
        """What each row is split by: its prompt, or where that is empty the images that it shares with other rows."""
        joined: dict[str, str] = {}

        def root(key: str) -> str:
            while joined.setdefault(key, key) != key:
                key = joined[key]
            return key

        for row in self.rows:
            if not row.prompt:
                joined[root(identity(row.first))] = root(identity(row.second))
        return [row.prompt or "\0" + root(identity(row.first)) for row in self.rows]

    def split(self, *, held_out: float, seed: int) -> tuple[PreferenceDataset, PreferenceDataset]:
        """Rows to train on and rows held out, such that no prompt is in both.

        Args:
            held_out: share of the prompts that is held out, above 0 and below 1; at least one prompt on each side.
            seed: of the draw, which does not depend on the order of the rows.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {held_out}.")
        groups = self.groups()
        names = sorted(set(groups))
        if len(names) < 2:
            raise ValueError(
                f"{self.name} needs at least 2 different prompts to hold some out, got {len(names)}; "
                f"add preferences for other prompts."
            )
        random.Random(seed).shuffle(names)
        kept_out = set(names[: min(max(1, round(held_out * len(names))), len(names) - 1)])
        inside = [i for i, group in enumerate(groups) if group not in kept_out]
        outside = [i for i, group in enumerate(groups) if group in kept_out]
        return self.take(inside), self.take(outside)

    def digest(self) -> str:
        """SHA-256 over every row and the content of its images."""
        if self._digest:
            return self._digest
        total = hashlib.sha256()
        contents: dict[str, str] = {}
        for row in self.rows:
            for picture in (row.first, row.second):
                key = identity(picture)
                if key not in contents:
                    content = picture.read_bytes() if isinstance(picture, Path) else picture.tobytes()
                    contents[key] = hashlib.sha256(content).hexdigest()
            pair = [contents[identity(row.first)], contents[identity(row.second)]]
            total.update(json.dumps([row.prompt, *pair, row.p_first, row.weight]).encode())
        self._digest = total.hexdigest()
        return self._digest


def identity(picture: Picture) -> str:
    """What tells one image from another within a process: its path, or the object itself."""
    return str(picture) if isinstance(picture, Path) else f"image {id(picture)}"


def built_in(name: str, *, seed: int) -> Path:
    """The JSONL file of built-in preferences, made on first use and kept in `$RWK_HOME`."""
    folder = home("data", name, f"seed-{seed}")
    module, _, function = BUILT_IN[name].partition(":")
    made: Path = getattr(importlib.import_module(module), function)(folder, seed=seed)
    return made


def _preference(record: Any, root: Path, held: dict[bytes, Image.Image]) -> Preference:
    """The checked row; raises ValueError that says what is wrong with it."""
    if not isinstance(record, Mapping):
        raise ValueError(f"a row must be an object with named columns, got {type(record).__name__}")
    prompt = record.get("prompt")
    if not isinstance(prompt, str | None):
        raise ValueError(f"prompt must be text, got {prompt!r}")
    weight = _number(record, "weight", 1.0)
    if not weight > 0:
        raise ValueError(f"weight must be above 0, got {weight:g}")
    first, second = (_picture(record.get(column), column, root, held) for column in ("first", "second"))
    return Preference(prompt or "", first, second, _share(record), weight)


def _share(record: Mapping[str, Any]) -> float:
    if record.get("p_first") not in (None, ""):
        share = _number(record, "p_first", 0)
        if not 0 <= share <= 1:
            raise ValueError(f"p_first must lie in 0..1, got {share:g}")
        return share
    if record.get("votes_first") in (None, "") or record.get("votes_second") in (None, ""):
        raise ValueError(f"needs p_first, or votes_first and votes_second, got columns {', '.join(map(str, record))}")
    votes = [_number(record, column, 0) for column in ("votes_first", "votes_second", "ties")]
    if min(votes) < 0 or sum(votes) == 0:
        raise ValueError(f"votes must be counts with a sum above 0, got {', '.join(f'{v:g}' for v in votes)}")
    return (votes[0] + votes[2] / 2) / sum(votes)


def _number(record: Mapping[str, Any], column: str, default: float) -> float:
    value = record.get(column)
    if value in (None, ""):
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{column} must be a number, got {value!r}") from None


def _picture(value: Any, column: str, root: Path, held: dict[bytes, Image.Image]) -> Picture:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        key = hashlib.sha256(value).digest()
        if key not in held:
            try:
                held[key] = Image.open(io.BytesIO(value))
            except OSError as error:
                raise ValueError(f"{column} holds bytes that are no image: {error}") from None
        return held[key]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{column} must be the path of an image, got {value!r}")
    path = root / value
    if not path.is_file():
        raise ValueError(f"{column} names no file, got {value!r}")
    return path

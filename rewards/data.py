"""Preferences between two images of one prompt: reading them, checking them, and splitting them by prompt."""

from __future__ import annotations

import hashlib
import importlib
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, overload

from rwk.rewards.home import home
from rwk.rewards.omissions import Omissions
from rwk.rewards.pictures import Picture, content, identity

BUILT_IN = {
    "shapes.preferences": "rwk.adapters.shapes_preferences:preferences",
    "shapes.unfinished": "rwk.adapters.shapes_preferences:unfinished_preferences",
}
"""Data that rwk makes itself: `module:function`, called with a folder and `seed=`, which gives back a JSONL file."""


class Preference(NamedTuple):
    """Which of two images fits a prompt better, as a share of votes."""

    prompt: str
    first: Picture
    second: Picture
    p_first: float
    """Share that prefers the first, 0..1; 0.5 is a tie."""
    weight: float = 1.0
    """How much the row counts in the loss, above 0."""
    generator_first: str = ""
    """What drew the first image, "" where that is not known."""
    generator_second: str = ""


class PreferenceDataset(Sequence[Preference]):
    """Preferences in the order of their file.

    `read` knows the files of published sets (`rwk.rewards.formats`) and plain ones, with these columns in JSON, JSON
    lines, CSV and Parquet alike:

    * `first`, `second`: the images. A path is taken from the file's own folder; Parquet may hold the encoded bytes,
      or the `{bytes, path}` of a Hugging Face image column.
    * `prompt`: may be left out or empty where the reward needs none.
    * `p_first`: share that prefers the first, 0..1; or the counts `votes_first`, `votes_second` and, if wanted, `ties`,
      where a tie counts half for each.
    * `weight`: optional, above 0, by default 1 (whatever the number of votes).
    * `generator_first`, `generator_second`: optional, what drew the images.
    """

    def __init__(
        self,
        rows: Iterable[Preference],
        places: Sequence[str] = (),
        *,
        name: str = "preferences",
        omissions: Omissions | None = None,
    ) -> None:
        """
        Args:
            rows: the preferences.
            places: where each row stands in its file, such as "line 3"; by default "row 3".
            name: what the data is called in messages.
            omissions: what its file holds beside it.
        """
        self.rows = list(rows)
        self.places = list(places) or [f"row {i + 1}" for i in range(len(self.rows))]
        self.name = name
        self.omissions = omissions or Omissions()
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
        rows, places = (self.rows[i] for i in chosen), [self.places[i] for i in chosen]
        return PreferenceDataset(rows, places, name=self.name, omissions=self.omissions)

    @classmethod
    def read(cls, source: Path | str) -> PreferenceDataset:
        """The preferences of a file, or of FORMAT:FILE; see `rwk.rewards.formats.read`."""
        from rwk.rewards.formats import read

        return read(source)

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
                    contents[key] = hashlib.sha256(content(picture)).hexdigest()
            pair = [contents[identity(row.first)], contents[identity(row.second)]]
            total.update(json.dumps([row.prompt, *pair, row.p_first, row.weight]).encode())
        self._digest = total.hexdigest()
        return self._digest


def built_in(name: str, *, seed: int) -> Path:
    """The JSONL file of built-in preferences, made on first use and kept in `$RWK_HOME`."""
    folder = home("data", name, f"seed-{seed}")
    module, _, function = BUILT_IN[name].partition(":")
    made: Path = getattr(importlib.import_module(module), function)(folder, seed=seed)
    return made

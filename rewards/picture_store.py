"""Pictures decoded and prepared once, kept in a file that every process maps instead of loading."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rwk.rewards.base import UNREADABLE, to_rgb
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.pictures import Picture, identity, opened

_CHUNK = 256
"""Pictures that are decoded before they are written."""


class PictureStore:
    """Every picture of some preferences as a reward prepares it, one after another in a file, sizes in another."""

    def __init__(
        self,
        datasets: Sequence[PreferenceDataset],
        prepare: Callable[[Image.Image], Tensor | str],
        folder: Path,
        *,
        key: str = "",
    ) -> None:
        """
        Args:
            datasets: whose pictures; each different one is kept once.
            prepare: makes [...] uint8 or float32 of an RGB image, or says why it cannot.
            folder: where the files lie; all processes of a run see the same ones.
            key: what else `prepare` depends on: other files are made for another key.
        """
        self.pictures: dict[str, tuple[Picture, str]] = {}
        for dataset in datasets:
            for row, place in zip(dataset, dataset.places, strict=True):
                for picture in (row.first, row.second):
                    self.pictures.setdefault(identity(picture), (picture, f"{dataset.name} {place}"))
        self.place = {key: index for index, key in enumerate(self.pictures)}
        self.prepare = prepare
        content = "".join(dataset.digest() for dataset in datasets) + key
        self.path = folder / f"pictures-{hashlib.sha256(content.encode()).hexdigest()[:16]}.bin"
        self.index = self.path.with_suffix(".json")
        self._shapes: list[list[int]] = []

    def fill(self, *, workers: int = 2, advance: Callable[[int], None] = lambda more: None) -> None:
        """Writes the files, if an earlier run has not; raises ValueError that names the row of an unusable picture."""
        if self.path.exists():
            return
        partial = self.path.with_name(f"{self.path.stem}.partial-{os.getpid()}")
        shapes, kind = [], ""
        try:
            with ThreadPoolExecutor(workers) as pool, partial.open("wb") as file:
                waiting = list(self.pictures.values())
                for start in range(0, len(waiting), _CHUNK):
                    chunk = waiting[start : start + _CHUNK]
                    for ready in pool.map(self._ready, chunk):
                        file.write(ready.numpy().tobytes())
                        shapes.append(list(ready.shape))
                        kind = str(ready.numpy().dtype)
                    advance(len(chunk))
            self.index.write_text(json.dumps({"dtype": kind, "shapes": shapes}))
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def _ready(self, found: tuple[Picture, str]) -> Tensor:
        picture, place = found
        try:
            image = to_rgb(opened(picture))
        except UNREADABLE as error:
            raise ValueError(f"{place}: an image cannot be decoded ({error}); replace it or remove the row.") from error
        ready = self.prepare(image)
        if isinstance(ready, str):
            raise ValueError(f"{place}: an image {ready}; replace it or remove the row.")
        return ready

    def read(self, dataset: PreferenceDataset, rows: Sequence[int]) -> list[Tensor]:
        """[2B] pictures as they were prepared: the first ones of these rows, then the second ones."""
        if not self._shapes:
            index = json.loads(self.index.read_text())
            self._shapes, self._dtype = index["shapes"], np.dtype(index["dtype"])
            sizes = [math.prod(shape) * self._dtype.itemsize for shape in self._shapes]
            self._starts = [0, *np.cumsum(sizes).tolist()]
        kept = np.memmap(self.path, np.uint8, mode="r")
        first = (identity(dataset[row].first) for row in rows)
        second = (identity(dataset[row].second) for row in rows)
        found = []
        for place in (self.place[key] for key in chain(first, second)):
            content = np.array(kept[self._starts[place] : self._starts[place + 1]])  # not as a view of the file
            found.append(torch.from_numpy(content.view(self._dtype)).view(self._shapes[place]))
        return found

    def remove(self) -> None:
        """Deletes the files."""
        self.path.unlink(missing_ok=True)
        self.index.unlink(missing_ok=True)

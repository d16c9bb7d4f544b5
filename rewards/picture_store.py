"""Pictures decoded and resized once, kept in a file that every process maps instead of loading."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rwk.rewards.base import UNREADABLE, to_rgb
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.pictures import Picture, identity, opened
from rwk.rewards.trainable import Preprocessing

_CHUNK = 256
"""Pictures that are decoded before they are written."""


class PictureStore:
    """Every picture of some preferences as the network takes it, [N, 3, size, size] uint8 in a file."""

    def __init__(self, datasets: Sequence[PreferenceDataset], preprocessing: Preprocessing, folder: Path) -> None:
        """
        Args:
            datasets: whose pictures; each different one is kept once.
            preprocessing: how pictures are resized.
            folder: where the file lies; all processes of a run see the same one.
        """
        self.pictures: dict[str, tuple[Picture, str]] = {}
        for dataset in datasets:
            for row, place in zip(dataset, dataset.places, strict=True):
                for picture in (row.first, row.second):
                    self.pictures.setdefault(identity(picture), (picture, f"{dataset.name} {place}"))
        self.place = {key: index for index, key in enumerate(self.pictures)}
        self.preprocessing = preprocessing
        content = "".join(dataset.digest() for dataset in datasets) + json.dumps(asdict(preprocessing))
        self.path = folder / f"pixels-{hashlib.sha256(content.encode()).hexdigest()[:16]}.npy"

    def fill(self, *, workers: int = 2, advance: Callable[[int], None] = lambda more: None) -> None:
        """Writes the file, if an earlier run has not; raises ValueError that names the row of an unreadable picture."""
        if self.path.exists():
            return
        size = self.preprocessing.size
        partial = self.path.with_name(f"{self.path.stem}.partial-{os.getpid()}")
        shape = (len(self.pictures), 3, size, size)
        pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        try:
            with ThreadPoolExecutor(workers) as pool:
                waiting = list(self.pictures.values())
                for start in range(0, len(waiting), _CHUNK):
                    chunk = waiting[start : start + _CHUNK]
                    for index, decoded in enumerate(pool.map(self._decoded, chunk), start):
                        pixels[index] = decoded.numpy()
                    advance(len(chunk))
            pixels.flush()
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def _decoded(self, found: tuple[Picture, str]) -> Tensor:
        picture, place = found
        try:
            return self.preprocessing.image(to_rgb(opened(picture)))
        except UNREADABLE as error:
            raise ValueError(f"{place}: an image cannot be decoded ({error}); replace it or remove the row.") from error

    def read(self, dataset: PreferenceDataset, rows: Sequence[int]) -> Tensor:
        """[2B, 3, size, size] in 0..1: the first pictures of these rows, then the second ones."""
        pixels = np.load(self.path, mmap_mode="r")
        first = (identity(dataset[row].first) for row in rows)
        second = (identity(dataset[row].second) for row in rows)
        return torch.from_numpy(pixels[[self.place[key] for key in chain(first, second)]]).float() / 255

    def remove(self) -> None:
        """Deletes the file."""
        self.path.unlink(missing_ok=True)

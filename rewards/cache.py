"""What towers and scorers made of images and texts, kept on disk by everything that it depends on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rwk.rewards
from rwk.rewards.base import Reward
from rwk.rewards.staged import EmbeddedReward, PreparedReward

FILE = "made.sqlite"
LIBRARIES = ("torch", "torchvision", "pillow", "open_clip_torch", "transformers", "timm")
"""Whose versions an entry depends on."""


class Cache:
    """Float32 numbers by a key of 32 bytes, in one SQLite file that many processes may use at once.

    Every `put` is a transaction of its own, so that a process which is killed loses what it had not put yet and damages
    nothing. The file must lie on a local disk: SQLite's log does not work over a network.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._file = sqlite3.connect(folder / FILE, timeout=60, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS made (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        except sqlite3.Error as error:
            raise ValueError(f"--cache needs a folder for {FILE}, got {folder} ({error}); name another.") from error
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Tensor | None:
        """[N] what was put under the key, or None. Any thread may ask."""
        with self._lock:
            found = self._file.execute("SELECT value FROM made WHERE key = ?", (key,)).fetchone()
        return torch.from_numpy(np.frombuffer(found[0], "<f4").astype(np.float32)) if found else None

    def put(self, entries: Iterable[tuple[bytes, Tensor]]) -> None:
        """Keeps vectors by their keys, all of them or, where the process is killed, none."""
        rows = [(key, value.detach().cpu().numpy().astype("<f4").tobytes()) for key, value in entries]
        if not rows:
            return
        with self._lock:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.executemany("INSERT OR REPLACE INTO made VALUES (?, ?)", rows)
            self._file.execute("COMMIT")

    def close(self) -> None:
        self._file.close()


class Prints:
    """Names of what rewards make, equal where code, libraries, weights, preparation and precision are."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._weights: dict[nn.Module, str] = {}
        self._readers: dict[int, tuple[Any, str]] = {}
        """By the identity of a tokenizer itself, which so lives as long, and its hash."""

    def of_images(self, reward: Reward) -> str | None:
        """Of the embeddings of an embedded reward, else of the scores; None for scores that are not to be kept.

        These are of rewards that are not deterministic, or that hold anything but networks, tensors and plain values.
        """
        if isinstance(reward, EmbeddedReward):
            return self._named("image", self._module(reward.tower), repr(reward.preparation))
        held = self._held(reward) if reward.spec.deterministic else None
        if held is None:
            return None
        made = repr(reward.preparation) if isinstance(reward, PreparedReward) else ""
        source = _source(type(reward))
        return self._named("score", f"{type(reward).__module__}:{type(reward).__qualname__}", source, made, *held)

    def of_texts(self, reward: EmbeddedReward) -> str:
        """Of the embeddings of texts."""
        tower = reward.text_tower
        made = type(reward).text_features.__qualname__
        return self._named("text", made, self._module(tower) if tower else "", self.of_reader(reward.reader))

    def of_reader(self, reader: Any) -> str:
        """A hash of what a tokenizer makes ids by; "" for none."""
        if reader is None:
            return ""
        if id(reader) not in self._readers:
            self._readers[id(reader)] = reader, hashlib.sha256(_rules(reader).encode()).hexdigest()
        return self._readers[id(reader)][1]

    def _named(self, *parts: str) -> str:
        return "\0".join([_versions(), self._precision, *parts])

    def _held(self, reward: Reward) -> list[str] | None:
        """What the reward holds, less what is derived from it."""
        told = []
        for name, value in sorted(vars(reward).items()):
            if name in ("device", "spec") or name.startswith("_"):
                continue
            if isinstance(getattr(type(reward), name, None), functools.cached_property):
                continue
            if isinstance(value, nn.Module):
                told.append(f"{name}={self._module(value)}")
            elif isinstance(value, Tensor):
                told.append(f"{name}={_digest(value)}")
            elif isinstance(value, str | int | float | bool | Path | tuple | dict | None) or dataclasses.is_dataclass(
                value
            ):
                told.append(f"{name}={value!r}")
            else:
                return None
        return told

    def _module(self, module: nn.Module) -> str:
        """A hash of the weights of a network and of what its layers are set to."""
        if module not in self._weights:
            total = hashlib.sha256(repr(module).encode())
            for name, part in module.named_modules():
                plain = {key: value for key, value in vars(part).items() if isinstance(value, int | float | str)}
                total.update(f"{name}{sorted(plain.items())}".encode())
            for name, value in module.state_dict().items():
                total.update(f"{name}{_digest(value)}".encode())
            self._weights[module] = total.hexdigest()
        return self._weights[module]


def key_of(*parts: str) -> bytes:
    """The key of what depends on these texts alone."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()


def digest_of(path: Path) -> str:
    """The hash of what a file holds; "" where it is no file or cannot be read."""
    try:
        if not path.is_file():  # a pipe would block for ever
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _rules(reader: Any) -> str:
    """Vocabulary, merges and all else by which a tokenizer of tokenizers, transformers or open_clip makes ids."""
    inner = getattr(reader, "tokenizer", reader)  # open_clip's around one of transformers'
    plain = {name: value for name, value in vars(reader).items() if isinstance(value, int | str | bool)}
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        parts = {name: value for name, value in vars(inner).items() if isinstance(value, dict) and name != "cache"}
        return repr([type(inner).__qualname__, sorted(plain.items()), parts])
    rules = json.loads(backend.to_str())
    rules |= {"truncation": None, "padding": None}  # of the last call
    return json.dumps([inner.special_tokens_map, getattr(reader, "context_length", None), rules], default=str)


def _digest(value: Tensor) -> str:
    held = value.detach().cpu().contiguous()
    content = held.flatten().view(torch.uint8) if held.numel() else held
    return hashlib.sha256(f"{held.dtype}{tuple(held.shape)}".encode() + content.numpy().tobytes()).hexdigest()


@functools.cache
def _versions() -> str:
    """A hash of rwk's code and of the versions of the libraries."""
    total = hashlib.sha256()
    root = Path(rwk.rewards.__file__).parent.parent
    for path in sorted([*root.glob("rewards/*.py"), *root.glob("adapters/*.py")]):
        total.update(path.read_bytes())
    for name in LIBRARIES:
        try:
            total.update(f"{name}{importlib.metadata.version(name)}".encode())
        except importlib.metadata.PackageNotFoundError:
            continue
    return total.hexdigest()


@functools.cache
def _source(kind: type[Any]) -> str:
    """A hash of the file that a class stands in, and of those of its bases."""
    files = {inspect.getsourcefile(base) for base in kind.__mro__ if base.__module__ not in ("builtins", "abc")}
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in sorted(filter(None, files)))).hexdigest()

"""Where the weights of a reward or generator come from, how large they are, and whether they are here.

Nothing is loaded and no network is asked. A class tells it by its attributes:

* `origin`: one published file, or the list of files of one checkpoint: its hub, file, licence and megabytes;
* `origins()`: several such, where a network is made of several checkpoints;
* `hub`: a repository in the layout of transformers;
* `shipped`: a folder that comes with the package, or that the name itself states.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYOUT = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors", "pytorch_model.bin")
"""What a repository in the layout of transformers holds: a list of the files, or the one file."""


@dataclass(frozen=True)
class Weights:
    """One checkpoint."""

    source: str
    """Repository on the Hugging Face hub, repository on GitHub, or a path on this machine."""
    file: str = ""
    """Path of the file in the source; "" where the source is the file, or holds one of `LAYOUT`."""
    licence: str = ""
    megabytes: float | None = None
    """Of 1,000,000 bytes, of all files of the checkpoint; None where it is not known."""
    local: bool = False
    """Whether the source is a path."""
    revision: str | None = None
    """Commit, tag or branch of the repository on the hub; None for what it is at now."""

    def here(self) -> Path | None:
        """The file, folder, or list of files on this machine; None where it, or a file of the list, is not here."""
        if self.local:
            return Path(self.source) if Path(self.source).exists() else None
        if self.source.startswith("github.com/"):  # as the authors' own code keeps it
            import torch

            kept = Path(torch.hub.get_dir(), "checkpoints", self.file)
            return kept if kept.is_file() else None
        return next((path for file in self._files() if (path := self._cached(file)) and self._whole(path, file)), None)

    def _files(self) -> tuple[str, ...]:
        return (self.file,) if self.file else LAYOUT

    def _cached(self, file: str) -> Path | None:
        """The file in the cache of the Hugging Face hub."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.source, file, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def _whole(self, path: Path, file: str) -> bool:
        """Whether every file of a list is here too."""
        if not file.endswith(".index.json"):
            return True
        try:
            named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return False
        folder = file.rpartition("/")[0]
        return all(self._cached(f"{folder}/{part}" if folder else part) for part in named)


def weights_of(kind: type[Any]) -> tuple[Weights, ...]:
    """The checkpoints that a class takes where it is given none; () where it has no published ones."""
    if hasattr(kind, "shipped"):
        return (local(kind.shipped),)
    if hasattr(kind, "origins"):
        published = kind.origins()
    elif hasattr(kind, "origin"):
        published = (kind.origin,)
    else:
        return (Weights(kind.hub),) if hasattr(kind, "hub") else ()
    return tuple(Weights(each.hub, each.file, each.licence, each.megabytes or None) for each in published)


def named(kind: type[Any], name: str) -> Weights:
    """The checkpoint of `NAME@PATH` for a class: a file or folder, or else a repository, where the class takes those.

    A class that tells of its weights by `hub` alone loads them by an id or a folder alike, and so does one of several
    checkpoints that says so by `takes_ids`.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    alone = hasattr(kind, "hub") and not hasattr(kind, "origins") and not hasattr(kind, "origin")
    if getattr(kind, "takes_ids", alone) and not Path(name).expanduser().exists():
        try:
            validate_repo_id(name)
        except HFValidationError:
            return local(Path(name))
        return Weights(name)
    return local(Path(name))


def local(path: Path) -> Weights:
    """The checkpoint of a file or folder, which may not exist."""
    path = path.expanduser()
    ends = ("*.safetensors", "*.bin", "*.pt*", "adapter/*.safetensors")  # the last: low-rank changes of a generator
    files = [path] if path.is_file() else [file for end in ends for file in path.glob(end)]
    size = sum(file.stat().st_size for file in files) / 1e6
    return Weights(str(path), megabytes=round(size, 2) if path.exists() else None, local=True)

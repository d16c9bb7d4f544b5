"""Repositories in the cache of the Hugging Face hub's client, as a download leaves them."""

from __future__ import annotations

import shutil
from pathlib import Path


def publish(cache: Path, hub: str, folder: Path, revision: str) -> Path:
    """The folder in the cache that holds the files of a repository at that revision, which are copied there."""
    repository = cache / f"models--{hub.replace('/', '--')}"
    commit = revision.encode().hex().ljust(40, "0")
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    return Path(shutil.copytree(folder, repository / "snapshots" / commit))

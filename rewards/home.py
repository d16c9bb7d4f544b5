"""Where rwk keeps what it made: `$RWK_HOME`, by default `~/.rwk`."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path


def home(*parts: str) -> Path:
    """The path below `$RWK_HOME`, which is not created."""
    return Path(os.environ.get("RWK_HOME") or Path.home() / ".rwk").joinpath(*parts)


def keep_in(kind: str, folder: Path, name: str) -> Path:
    """Copies a folder to where things of a kind are found by name, whole or not at all, in place of what is there."""
    place = home(kind, name)
    fresh, old = (home(kind, ".partial", f"{name}-{os.getpid()}-{which}") for which in ("new", "old"))
    fresh.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, fresh)
    if place.exists():
        place.replace(old)
    fresh.replace(place)
    shutil.rmtree(old, ignore_errors=True)
    with suppress(OSError):  # where another process is copying
        fresh.parent.rmdir()
    return place

"""Where rwk keeps what it made: `$RWK_HOME`, by default `~/.rwk`."""

from __future__ import annotations

import os
from pathlib import Path


def home(*parts: str) -> Path:
    """The path below `$RWK_HOME`, which is not created."""
    return Path(os.environ.get("RWK_HOME") or Path.home() / ".rwk").joinpath(*parts)

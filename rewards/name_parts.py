"""Names of rewards and generators as users write them: what is added to one, and what an unknown one is told."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path


def parted(name: str, takes: Callable[[str], Collection[str] | None]) -> tuple[str, dict[str, str]]:
    """A name without what was added, and that as options: `NAME@PATH` weights, `NAME#REVISION` a revision.

    A name that is not registered has nothing to take off. Where PATH is a repository of the hub, `NAME@PATH#REVISION`
    has both; a `#` in a path that is there, or of what takes no revision, belongs to the path.

    Args:
        name: as the user wrote it.
        takes: of a name the options that its class takes; None where the name is not registered.

    Raises:
        ValueError: where nothing stands behind a mark, which would be the folder at hand, or no pin at all.

    >>> parted("pickscore.v1#refs/pr/3", lambda known: {"weights", "revision"})
    ('pickscore.v1', {'revision': 'refs/pr/3'})
    """
    known, at, path = name.partition("@")
    if not at:
        known, mark, revision = name.partition("#")
        if not mark or takes(known) is None:
            return name, {}
        return known, {"revision": _given(name, "#", revision)}
    options = takes(known)
    if options is None:
        return name, {}
    repository, mark, revision = path.rpartition("#")
    if mark and "revision" in options and not Path(path).expanduser().exists():
        return known, {"weights": _given(name, "@", repository), "revision": _given(name, "#", revision)}
    return known, {"weights": _given(name, "@", path)}


def _given(name: str, mark: str, text: str) -> str:
    if not text:
        what = {"@": "a path or repository", "#": "a revision"}[mark]
        raise ValueError(f"{name!r} must have {what} behind {mark}, got none; add it or leave {mark} out.")
    return text


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """What somebody is told who names something of that kind that is not among the known."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    pairs = ", `rwk list judges` those of two images" if kind == "reward" else ""
    hint = f"did you mean {' or '.join(close)}?" if close else f"`rwk list {kind}s` names what is known{pairs}."
    lies = ", and no config.json of a saved one lies there" if os.path.exists(name) else ""
    return f"unknown {kind} {name!r}{lies}; {hint} A folder or module:Class is taken too."

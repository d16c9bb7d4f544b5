"""What a run of any algorithm may be told by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Required, TypedDict

from rwk.policy_opt.journal import Progress
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.watch import Watched


@dataclass(frozen=True)
class Run:
    """One run, whatever its algorithm."""

    out: Path
    """Its folder."""
    sampling: Sampling | None = None
    """What is drawn from and trained; by default the generator's own recipe."""
    resume: bool = False
    """Whether to go on with what is in `out`, from the generator that the run began with."""
    progress: Progress | None = None
    """Is called after each update."""
    watched: Watched | None = None
    """A reward to look at every `watch_every` updates, or rounds where the algorithm has these."""
    seconds: float | None = None
    """Of processor time after which the run ends, at the next update."""
    later: bool = False
    """Whether the generator learnt in a part before, so that there may be nothing left to learn."""


class RunOptions(TypedDict, total=False):
    """The fields of `Run`, as an algorithm takes them by name."""

    out: Required[Path]
    sampling: Sampling | None
    resume: bool
    progress: Progress | None
    watched: Watched | None
    seconds: float | None
    later: bool

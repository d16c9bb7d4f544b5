"""What a run of any algorithm may be told by name."""

from __future__ import annotations

from pathlib import Path
from typing import Required, TypedDict

from rwk.policy_opt.journal import Progress
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.watch import Watched


class RunOptions(TypedDict, total=False):
    """See `learn_from_groups` and `learn_in_rounds`."""

    out: Required[Path]
    sampling: Sampling | None
    resume: bool
    progress: Progress | None
    watched: Watched | None
    seconds: float | None
    later: bool

"""The failure of a run that was called rightly. A wrong call is a ValueError."""

from __future__ import annotations


class RunFailed(RuntimeError):
    """Says in one sentence why a run ended without its result; the command line ends with exit code 1."""

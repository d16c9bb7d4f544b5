"""How the checks of a contract run, and how one fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from rwk.rewards.global_state import restored

T = TypeVar("T")


def run_checks(subject: T, checks: Mapping[str, Callable[[T], None]], broken: str) -> None:
    """Runs checks by name, each on the global state as it was.

    Raises:
        AssertionError: what is broken, naming each check that failed, and what it saw.
    """
    failed = []
    for name, check in checks.items():
        try:
            with restored():
                check(subject)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    require(not failed, f"{broken}:\n" + "\n".join(failed))


def require(holds: bool, otherwise: str) -> None:
    """Raises AssertionError unless it holds."""
    if not holds:
        raise AssertionError(otherwise)

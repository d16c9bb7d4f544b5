"""Every registered reward keeps the contract, and so does every form of combination."""

from __future__ import annotations

from functools import cache

import pytest

from rwk.rewards.base import Reward
from rwk.rewards.contract import CHECKS, Check, checks_for
from rwk.rewards.registry import REWARDS, load, names

KNOWN_FAILURES: dict[tuple[str, str], str] = {}
"""(reward, check) that is known to fail, and why."""
COMBINATIONS = (
    "0.5*colorfulness+-2*sharpness",
    "min(z(contrast,mean=0.2,sd=0.1),z(exposure,mean=0.5,sd=0.2))",
    "lcb(z(contrast,mean=0.2,sd=0.1),z(exposure,mean=0.5,sd=0.2),z(noise,mean=-5,sd=5),k=2)",
    "z(shapes.verifier,mean=0.5,sd=0.25)",
    "permuted(shapes.verifier)",
)


@cache
def reward(name: str) -> Reward:
    return load(name) if name in COMBINATIONS else REWARDS.target(name).tiny()


def cases() -> list[object]:
    """Every reward with every check that its spec calls for; with all of them where it cannot be built, which shows."""
    found = []
    for name in (*names(), *COMBINATIONS):
        try:
            checks = tuple(checks_for(reward(name).spec))
        except Exception:
            checks = CHECKS
        for check in checks:
            reason = KNOWN_FAILURES.get((name, check.__name__))
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            found.append(pytest.param(name, check, id=f"{name}-{check.__name__}", marks=marks))
    return found


CASES = cases()


@pytest.mark.parametrize(("name", "check"), CASES)
def test_contract(name: str, check: Check) -> None:
    """The reward keeps this clause of the contract."""
    check(reward(name))


def test_the_suite_is_not_empty() -> None:
    """Eight rewards at least are checked, each by most checks, and every check has its turn."""
    assert len(names()) >= 8
    assert len(CASES) >= 15 * len(names())
    assert {check for case in CASES for check in case.values[1:]} == set(CHECKS)  # type: ignore[attr-defined]


def test_known_failures_exist() -> None:
    """Every entry of the table names a reward and a check that there are."""
    checks = {check.__name__ for check in CHECKS}
    assert all(name in names() and check in checks for name, check in KNOWN_FAILURES)

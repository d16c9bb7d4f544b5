"""Every registered generator keeps the generator contract, on its tiny network."""

from __future__ import annotations

import functools

import pytest

from rwk.policy_opt import contract
from rwk.policy_opt.contract import CHECKS, Check
from rwk.policy_opt.generator import GENERATORS, Generator

NAMES = GENERATORS.names()
XFAIL: dict[tuple[str, str], str] = {}
"""(generator, check): why it is known to fail."""


@functools.cache
def tiny(name: str) -> Generator:
    return GENERATORS.target(name).tiny()


def cases() -> list[object]:
    """Every generator with every check; known failures are strict."""
    return [
        pytest.param(
            name,
            check,
            id=f"{name}-{check.__name__}",
            marks=[pytest.mark.xfail(reason=XFAIL[name, check.__name__], strict=True)]
            if (name, check.__name__) in XFAIL
            else [],
        )
        for name in NAMES
        for check in CHECKS
    ]


@pytest.mark.parametrize(("name", "check"), cases())
def test_generator_keeps(name: str, check: Check) -> None:
    """The check holds for the generator."""
    check(tiny(name))


def test_suite_is_not_empty() -> None:
    """The built-in generator and 21 checks are there, each check once and told in a sentence."""
    assert "shapes.llama" in NAMES
    assert len(CHECKS) == len({check.__name__ for check in CHECKS}) == 22
    assert all((check.__doc__ or "").rstrip().endswith(".") for check in CHECKS)


def test_known_failures_exist() -> None:
    """Every known failure names a generator and a check that there are."""
    assert set(XFAIL) <= {(name, check.__name__) for name in NAMES for check in CHECKS}


def test_check_generator_names_every_broken_clause(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check_generator` runs all checks and tells each that failed or crashed, with what it saw."""

    def check_that_fails(generator: Generator) -> None:
        raise AssertionError(f"{generator.spec.tokens} tokens")

    def check_that_crashes(generator: Generator) -> None:
        raise KeyError("codes")

    checks = (check_that_fails, contract.check_spec_is_complete, check_that_crashes)
    monkeypatch.setattr(contract, "CHECKS", checks)
    with pytest.raises(AssertionError) as caught:
        contract.check_generator(tiny("shapes.llama"))
    assert str(caught.value).splitlines() == [
        "shapes.llama breaks the generator contract:",
        "check_that_fails: AssertionError: 64 tokens",
        "check_that_crashes: KeyError: 'codes'",
    ]

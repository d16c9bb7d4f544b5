"""The examples in docstrings run, through `rwk.`, so that no module is imported twice."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("rewards", "adapters", "calibration", "policy_opt", "cli")
MODULES = sorted(
    f"rwk.{folder}.{path.stem}"
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
    if path.stem not in ("__init__", "__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    """Every example in the module's docstrings gives what it says."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_some_examples_exist() -> None:
    """The walk above finds modules, and examples in them."""
    finder = doctest.DocTestFinder()
    count = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert count >= 3, f"{count} examples in {len(MODULES)} modules"

"""What is in the distribution, and which package may import which."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
KNOWS = {
    "rewards": {"rewards"},
    "calibration": {"calibration", "rewards"},
    "policy_opt": {"policy_opt", "calibration", "rewards"},
    "adapters": {"adapters", "rewards", "policy_opt"},
    "cli": {"cli", "rewards", "calibration", "policy_opt"},
}
"""The packages that each package may import; adapters are reached by a name in a registry alone."""
LARGEST = 12_000_000


def sources() -> list[Path]:
    return sorted(path for folder in KNOWS for path in (ROOT / folder).rglob("*.py"))


def imported(source: str) -> set[str]:
    """The packages of rwk that a module imports anywhere, functions and type checking included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("rwk.")}


def test_every_package_is_listed() -> None:
    """The list in pyproject.toml is the folders that hold an `__init__.py`: a folder forgotten misses in the wheel."""
    folders = {
        "rwk." + ".".join(path.parent.relative_to(ROOT).parts)
        for path in ROOT.glob("[!.]*/**/__init__.py")
        if path.relative_to(ROOT).parts[0] not in ("build", "tests")
    }
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == folders == {f"rwk.{folder}" for folder in KNOWS}


@pytest.mark.parametrize("folder", KNOWS)
def test_imports_point_one_way(folder: str) -> None:
    """A package imports only those that it may know, in functions too."""
    wrong = {
        str(path.relative_to(ROOT)): sorted(imported(path.read_text()) - KNOWS[folder])
        for path in (ROOT / folder).rglob("*.py")
        if imported(path.read_text()) - KNOWS[folder]
    }
    assert not wrong


def test_the_import_check_sees_imports() -> None:
    """Imports in functions, of modules and of names are all seen."""
    source = "def f():\n  from rwk.adapters.pixels import Noise\nimport rwk.cli.main\nfrom rwk import rewards\n"
    assert imported(source) == {"adapters", "cli", "rewards"}
    assert any(imported(path.read_text()) for path in sources())


@pytest.mark.parametrize("folder", KNOWS)
def test_every_package_is_typed(folder: str) -> None:
    """`py.typed` lies in every package, so that type checkers read it in an installation."""
    assert (ROOT / folder / "py.typed").is_file()


def test_no_file_is_large() -> None:
    """No file of the project is over 12 MB."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        found = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        files = [ROOT / name for name in found.split("\0") if name]
    else:
        files = [path for path in ROOT.glob("[!.]*/**/*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if path.is_file() and path.stat().st_size > LARGEST] == []


def test_weights_are_shipped() -> None:
    """Every file below adapters/ that is no module matches a pattern of the package data, so is in the wheel."""
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["rwk.adapters"]
    shipped = {path for pattern in patterns for path in (ROOT / "adapters").glob(pattern)}
    beside = {path for path in (ROOT / "adapters").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert beside - shipped == set()
    assert ROOT / "adapters" / "py.typed" in shipped

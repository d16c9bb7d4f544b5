"""The plug-in of docs/plugin.md is taken from the page as it stands, and does what the page says."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rwk.rewards.registry import Registry

PAGE = Path(__file__).parents[1] / "docs" / "plugin.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
LONGEST = 20


def block(language: str, holds: str) -> str:
    """The page's one block in that language that holds the text."""
    (found,) = [code for kind, code in BLOCKS if kind == language and holds in code]
    return found


MODULE, PROJECT = block("python", "class Warmth"), tomllib.loads(block("toml", "entry-points"))


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the page's module lies in, on the path."""
    (tmp_path / "warmth.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("warmth", None)


def test_it_is_20_lines() -> None:
    """The plug-in is no longer than the page's promise, blank lines and docstrings left out."""
    lines = [line for line in MODULE.splitlines() if line.strip() and not line.strip().startswith('"""')]
    assert 5 < len(lines) <= LONGEST
    assert len(MODULE.splitlines()) <= LONGEST + 3


def test_the_page_s_own_test_passes(importable: Path) -> None:
    """The contract test on the page runs and holds, and fails for a reward that leaves its range."""
    held: dict[str, Any] = {}
    exec(compile(block("python", "check_reward("), str(PAGE), "exec"), held)
    held["test_warmth_keeps_the_contract"]()
    warm = importlib.import_module("warmth").Warmth
    held["Warmth"] = type("Off", (warm,), {"score_pixels": lambda self, pixels, prompts=(): 3 + pixels.mean((1, 2, 3))})
    with pytest.raises(AssertionError, match="check_stays_in_range"):
        held["test_warmth_keeps_the_contract"]()


def test_the_page_s_commands_run(importable: Path, rwk: Callable[..., Any]) -> None:
    """Each command of the page ends with 0 in a folder that holds the module and a picture; red is warm."""
    Image.new("RGB", (8, 6), "red").save("picture.png")
    commands = block("console", "rwk score").splitlines()
    assert [command.split()[:2] for command in commands] == [["rwk", "score"], ["rwk", "info"]]
    scored, told = (json.loads(rwk(*command.split()[1:], "--json").out) for command in commands)
    assert scored["rows"][0]["warmth:Warmth"] == 1
    assert told["about"] == "Mean of red less blue, each from 0 to 1."
    assert rwk("score", "picture.png", "--reward", "0.5*warmth:Warmth+contrast").code == 0


def test_the_project_s_name_is_found(importable: Path) -> None:
    """The entry point of the page's pyproject.toml makes its name a reward's, and the spec has the same name."""
    metadata = importable / "rwk_warmth-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {PROJECT['project']['name']}\nVersion: 1.0\n")
    points = PROJECT["project"]["entry-points"]["rwk.rewards"]
    (metadata / "entry_points.txt").write_text("[rwk.rewards]\n" + "\n".join(f"{k} = {v}" for k, v in points.items()))
    registry: Registry[Any] = Registry("reward", "rwk.rewards.base:Reward", {})
    assert registry.load("warmth.v1").spec.name == "warmth.v1"
    assert PROJECT["tool"]["setuptools"]["py-modules"] == ["warmth"]


def test_the_page_s_judge_keeps_the_contract(importable: Path) -> None:
    """The pair judge on the page runs through its contract, and fails where it looks at one image alone."""
    held: dict[str, Any] = {}
    exec(compile(block("python", "class Warmer"), str(PAGE), "exec"), held)
    held["test_warmer_keeps_the_contract"]()
    held["Warmer"]._compare = lambda self, first, second, prompts: held["Warmth"]().score(first).values.clamp(0, 1)
    with pytest.raises(AssertionError, match="check_sees_both_images: .* whatever is shown second"):
        held["test_warmer_keeps_the_contract"]()

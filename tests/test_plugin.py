"""Third parties add rewards: a real package is built, installed, and used by name in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "rwk-redness"
version = "1.0"

[project.entry-points."rwk.rewards"]
"redness.v1" = "rwk_redness:Redness"
"redness.broken" = "rwk_redness:Broken"

[tool.setuptools]
py-modules = ["rwk_redness"]
"""

MODULE = '''
"""A reward of a third party: how red a picture is."""

from rwk.rewards.base import PixelReward, RewardSpec


class Redness(PixelReward):
    spec = RewardSpec("redness.v1", "share of red", 0, 1, "MIT", "rwk-redness", needs_prompt=False, differentiable=True)

    @classmethod
    def tiny(cls):
        return cls()

    def score_pixels(self, pixels, prompts=()):
        return pixels[:, 0].flatten(1).mean(1)


class Broken(Redness):
    def score_pixels(self, pixels, prompts=()):
        return pixels[:, 0].flatten(1).mean(1) * 2
'''

USE = """
import sys
from PIL import Image
from rwk.cli.main import main
from rwk.rewards.contract import check_reward
from rwk.rewards.registry import load, names

assert "redness.v1" in names() and "colorfulness" in names(), names()
assert "rwk_redness" not in sys.modules, "listing imported the plug-in"
reward = load("redness.v1")
print(reward.score([Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "cyan")]).values.tolist())
check_reward(reward)
print(load("0.5*redness.v1+contrast").spec.name)
try:
    check_reward(load("redness.broken"))
except AssertionError as error:
    print("check_stays_in_range" in str(error))
main(["list", "--names"])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the plug-in into."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "rwk_redness.py").write_text(MODULE)
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(target), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


def test_a_plug_in_is_listed_loaded_scored_and_checked(installed: Path) -> None:
    """Its names stand beside the built-in ones, it scores and combines, and the public contract judges it."""
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["[1.0, 0.0]", "0.5*redness.v1+contrast", "True"]
    assert "redness.v1" in "".join(lines[3:])  # from `rwk list --names`

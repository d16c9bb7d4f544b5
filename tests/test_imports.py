"""What an import loads: nothing heavy before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = ("torch", "transformers", "open_clip", "timm", "trl", "datasets", "accelerate", "peft", "sklearn", "matplotlib")


CORE = """
import json, random, sys
import numpy, torch

def state():
    keys = numpy.random.get_state()[1].tolist()
    return random.getstate(), keys, torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_num_threads()

before = state()
from rwk.rewards.registry import load, names
assert "colorfulness" in names()
listed = list(sys.modules)
load("0.5*contrast+noise")
import rwk.rewards.contract
print(json.dumps({"listed": listed, "loaded": list(sys.modules), "unchanged": state() == before}))
"""
HELP = """
import sys
from rwk.cli.main import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code, end
print("loaded:", *sys.modules)
"""


def output(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def core() -> dict[str, Any]:
    """What importing the reward core, and then loading a reward, did to a fresh interpreter."""
    found: dict[str, Any] = json.loads(output(CORE))
    return found


def test_help_loads_no_torch() -> None:
    """`rwk --help` shows its text and loads no heavy package."""
    text, _, modules = output(HELP).rpartition("loaded:")
    assert "Usage: rwk" in text
    assert "rwk.cli.main" in modules.split()
    assert set(modules.split()).isdisjoint(HEAVY)


def test_listing_rewards_imports_no_adapter(core: dict[str, Any]) -> None:
    """The registry knows its names without an adapter or a library of models."""
    assert "rwk.rewards.registry" in core["listed"]
    assert not any(name.startswith("rwk.adapters") for name in core["listed"])
    assert set(core["listed"]).isdisjoint(set(HEAVY) - {"torch"})


def test_loading_a_measure_loads_no_library_of_models(core: dict[str, Any]) -> None:
    """Scoring without a network needs torch, torchvision and Pillow."""
    assert "rwk.adapters.pixels" in core["loaded"]
    assert set(core["loaded"]).isdisjoint(set(HEAVY) - {"torch"})


def test_importing_changes_no_global_state(core: dict[str, Any]) -> None:
    """Importing the reward core leaves generators, gradient mode and threads as they were."""
    assert core["unchanged"]

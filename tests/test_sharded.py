"""Configs for `accelerate launch`: each is understood, and FSDP2 learns in two processes what one learns alone."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rwk.policy_opt
from rwk.adapters.llamagen_c2i import Base256
from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt.generator import Sampling
from rwk.policy_opt.journal import read
from rwk.policy_opt.policy import Policy
from rwk.policy_opt.sharded import layers_of, learner_of

SCRIPT = Path(__file__).with_name("sharded_case.py")
FOLDER = Path(next(iter(rwk.policy_opt.__path__)), "accelerate")
CONFIGS = {
    "ddp": {"multi_gpu": True},
    "fsdp2": {"use_fsdp": True, "fsdp_version": 2},
    "deepspeed_zero2": {"use_deepspeed": True, "zero_stage": 2},
}


def test_configs_are_shipped() -> None:
    """Every config is one of these, and in the wheel."""
    assert {path.stem for path in FOLDER.iterdir()} == set(CONFIGS)
    settings = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    assert "accelerate/*.yaml" in settings["tool"]["setuptools"]["package-data"]["rwk.policy_opt"]


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_understands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher takes from a config what it is named for."""
    from accelerate.commands import launch

    monkeypatch.setattr(launch, "is_deepspeed_available", lambda: True, raising=False)
    arguments = launch.launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "x.py"])
    arguments, *_ = launch._validate_launch_command(arguments)
    taken = {option: getattr(arguments, option) for option in CONFIGS[name]}
    assert taken == CONFIGS[name]
    assert arguments.num_processes == 8


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Two updates, sharded by the config that is shipped; weights are those of one process, but for rounding.

    Judged by what was written: a process may abort in native code after all is done (gloo, on CPU).
    """
    launch = f"-m accelerate.commands.launch --config_file {FOLDER / 'fsdp2.yaml'} --num_processes 2"
    done = subprocess.run(
        [sys.executable, *launch.split(), "--main_process_port", "0", str(SCRIPT), str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert (tmp_path / "two" / "generator").exists(), done.stderr.decode()[-2000:]
    assert (tmp_path / "two" / "checkpoints" / "checkpoint-2" / "pytorch_model_fsdp_0").exists()
    runpy.run_path(str(SCRIPT))["run"](tmp_path / "one")
    one, two = (load_file(tmp_path / name / "generator" / "model.safetensors") for name in ("one", "two"))
    apart = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
    assert apart.mean() < 1e-5  # Adam enlarges rounding where a gradient is all but 0
    rows = [read(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert [row["step"] for row in rows[1]] == [1, 2]
    assert rows[0][0]["grad_norm"] == pytest.approx(rows[1][0]["grad_norm"], rel=1e-3)
    assert rows[1][1]["drift"] < 1e-5


def test_what_cannot_be_sharded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters with FSDP, and stage 3 of DeepSpeed; a policy that is not to be sharded is its own learner."""
    generator = ShapesLlama.tiny()
    policy = Policy(generator.module, generator.statistics, ["a"], Sampling())
    assert learner_of(policy) is policy
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    twin = learner_of(policy)
    owner: Any = twin.statistics
    assert twin is not policy
    assert owner.__self__.module is twin.trained is not generator.module
    next(generator.module.parameters()).requires_grad_(False)
    with pytest.raises(ValueError, match="FSDP needs a lora_rank of 0"):
        learner_of(policy)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(ValueError, match="stage 2 of DeepSpeed or FSDP2, got stage 3"):
        learner_of(policy)


def test_layers() -> None:
    """A transformer is sharded by its layers, whoever wrote it."""
    assert layers_of(ShapesLlama.tiny().module) == ["LlamaDecoderLayer"]
    assert layers_of(Base256.tiny().module) == ["Layer"]
    assert layers_of(torch.nn.Linear(1, 1)) == []

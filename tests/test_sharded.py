"""Configs for `accelerate launch`: each is understood, and FSDP2 learns in two processes what one learns alone."""

from __future__ import annotations

import json
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
from rwk.policy_opt.journal import read
from rwk.policy_opt.masters import check_has_masters
from rwk.policy_opt.packed import lays_out
from rwk.policy_opt.policy import Policy
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.sharded import layers_of, learner_of, sharding
from rwk.policy_opt.sizing import plan
from rwk.policy_opt.sizing_shape import shape_of

SCRIPT = Path(__file__).with_name("sharded_case.py")
case = runpy.run_path(str(SCRIPT))
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


def launched(out: Path, *words: str) -> str:
    """What two processes, sharded by the config that is shipped, said of their runs in folders of `out`.

    They are judged by what they wrote: a process may abort in native code after all is done (gloo, on CPU).
    """
    launch = f"-m accelerate.commands.launch --config_file {FOLDER / 'fsdp2.yaml'} --num_processes 2"
    done = subprocess.run(
        [sys.executable, *launch.split(), "--main_process_port", "0", str(SCRIPT), str(out), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        timeout=400,
        check=False,
    )
    return done.stderr.decode()[-3000:]


def test_two_processes_learn_what_one_does_and_go_on_after_a_kill(tmp_path: Path) -> None:
    """GRPO killed at its second update and resumed, and DPO, end with the weights and metrics of one process alone.

    In bfloat16 so do the float32 masters of DPO, which go from round to round. So the checkpoint, in parts, gives back
    weights, AdamW's state and the place in the data, and images of several pairs are read once under FSDP2 too.
    """
    told = launched(tmp_path / "two", "grpo", "2")
    cut = tmp_path / "two" / "grpo"
    assert [row["step"] for row in read(cut / "metrics.jsonl")] == [1, 2], told
    assert not (cut / "generator").exists()
    assert (cut / "checkpoints" / "checkpoint-1" / "pytorch_model_fsdp_0").exists()
    assert not (cut / "checkpoints" / "checkpoint-2" / "complete").exists()
    with pytest.raises(ValueError, match="got .*checkpoint-1, of a run that kept none"):
        check_has_masters(cut / "checkpoints" / "checkpoint-1", ShapesLlama.tiny().module.bfloat16())
    told = launched(tmp_path / "two", "grpo", "dpo", "half_dpo")
    ShapesLlama.tiny().save(tmp_path / "begun")
    begun = load_file(tmp_path / "begun" / "model.safetensors")
    for name, last in (("grpo", 3), ("dpo", 2)):
        assert (tmp_path / "two" / name / "generator").exists(), told
        case["run"](tmp_path / "one" / name, name)
        one, two = (load_file(tmp_path / run / name / "generator" / "model.safetensors") for run in ("one", "two"))
        apart = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
        moved = torch.cat([(one[key] - begun[key]).abs().flatten() for key in one])
        assert apart.mean() < 1e-3 * moved.mean()  # Adam enlarges rounding where a gradient is all but 0
        rows = [read(tmp_path / run / name / "metrics.jsonl") for run in ("one", "two")]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == list(range(1, last + 1))
        for alone, both in zip(*rows, strict=True):
            for value in ("loss", "grad_norm", "reward/colour/mean"):
                assert alone.get(value) == pytest.approx(both.get(value), rel=1e-3, abs=1e-5), (name, value)
    held = json.loads((tmp_path / "two" / "held.json").read_text())  # of half_dpo, the last
    shape = shape_of(case["generator_of"]("half_dpo"))
    found = plan(case["DPO"], shape, prompts=4, rewards=1, guided=True, processes=2, sharding="fsdp")
    assert found.twin - shape.decoder * shape.width == pytest.approx(held["twin"], rel=0.02)
    for name in ("gradients", "optimizer", "masters"):
        assert getattr(found, name) == pytest.approx(held[name], rel=0.02), name
    assert rows[1][0]["pairs"] == 12
    assert rows[1][-1]["drift"] < 1e-5
    case["run"](tmp_path / "one" / "half_dpo", "half_dpo")
    for number, far in ((1, 0.01), (2, 0.3)):  # of a learning rate; the second round draws by what the first rounded
        files = [tmp_path / run / "half_dpo" / f"round-{number}" / "policy.safetensors" for run in ("one", "two")]
        alone, both = (load_file(path) for path in files)
        assert {value.dtype for value in both.values()} == {torch.float32}, told
        apart = torch.cat([(alone[key] - both[key]).abs().flatten() for key in alone])
        assert apart.mean() < far * case["DPO"].learning_rate


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


def test_what_the_launcher_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read off what accelerate tells its processes; `rwk optimize --dry-run` counts by it."""
    assert sharding() == "none"
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    assert sharding() == "zero2"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding() == "fsdp"


def test_the_dry_run_counts_by_it(rwk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In eight processes of FSDP2 each has an eighth of what AdamW keeps, and a twin; a CPU's layers are laid out."""
    words = ("optimize", "--algo", "grpo", "--generator", "janus.pro_1b", "--reward", "contrast", "--dry-run", "--json")
    alone = json.loads(rwk(*words).out)["plan"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "8")
    found = json.loads(rwk(*words).out)["plan"]
    assert found["optimizer"] == alone["optimizer"] // 8
    assert (alone["twin"], found["twin"] > found["weights"] // 8) == (0, True)
    assert (alone["laid_out"] > 0) is lays_out(torch.bfloat16)


def test_layers() -> None:
    """A transformer is sharded by its layers, whoever wrote it."""
    assert layers_of(ShapesLlama.tiny().module) == ["LlamaDecoderLayer"]
    assert layers_of(Base256.tiny().module) == ["Layer"]
    assert layers_of(torch.nn.Linear(1, 1)) == []

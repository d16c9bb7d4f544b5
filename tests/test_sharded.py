"""Configs for `accelerate launch`: each is understood, and FSDP2 and DeepSpeed learn in two processes what one does.

DeepSpeed is no dependency, since transformers imports it wherever it is installed; with it, on a CPU too, these tests
run. It is put elsewhere, and seen by one call, by `pip install --no-deps --target ELSEWHERE deepspeed einops hjson
msgpack ninja py-cpuinfo` and PYTHONPATH.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rwk.policy_opt
from rwk.adapters.llamagen_c2i import Base256
from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt import generator as generators
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.experiment import Experiment
from rwk.policy_opt.journal import read
from rwk.policy_opt.masters import check_has_masters
from rwk.policy_opt.optimize import optimize
from rwk.policy_opt.packed import lays_out
from rwk.policy_opt.policy import Policy
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.sharded import check_launch, layers_of, learner_of, sharding
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


def launched(config: str, out: Path, *words: str) -> str:
    """What two processes, sharded by a config that is shipped, said of their runs in folders of `out`.

    They are judged by what they wrote: a process may abort in native code after all is done (gloo, on CPU).
    """
    launch = f"-m accelerate.commands.launch --config_file {FOLDER / config}.yaml --num_processes 2"
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if config == "fsdp2" else {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *launch.split(), "--main_process_port", "0", str(SCRIPT), str(out), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | on_cpu,
        capture_output=True,
        timeout=400,
        check=False,
    )
    return done.stderr.decode()[-3000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of one process, which is made once."""
    out = tmp_path_factory.mktemp("one")

    @functools.cache
    def made(name: str) -> Path:
        case["run"](out / name, name)
        return out / name

    return made


def assert_alike(one: Path, two: Path, told: str) -> None:
    """Two runs ended with the same weights and metrics, up to rounding."""
    assert (two / "generator").exists(), told
    ShapesLlama.tiny().save(two / "begun")
    begun = load_file(two / "begun" / "model.safetensors")
    ends = [load_file(run / "generator" / "model.safetensors") for run in (one, two)]
    apart = torch.cat([(ends[0][key] - ends[1][key]).abs().flatten() for key in begun])
    moved = torch.cat([(ends[0][key] - begun[key]).abs().flatten() for key in begun])
    assert apart.mean() < 1e-3 * moved.mean()  # Adam enlarges rounding where a gradient is all but 0
    rows = [read(run / "metrics.jsonl") for run in (one, two)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == list(range(1, len(rows[0]) + 1))
    for row, both in zip(*rows, strict=True):
        for value in {"loss", "grad_norm", "reward/colour/mean"} & row.keys():
            assert both[value] == pytest.approx(row[value], rel=1e-3, abs=1e-5), (two.name, value)
        assert both.get("drift", 0) < 1e-5


def assert_masters_alike(one: Path, two: Path, told: str) -> None:
    """Two runs of DPO in bfloat16 kept the same float32 masters in both rounds."""
    for number, far in ((1, 0.01), (2, 0.3)):  # of a learning rate; the second round draws by what the first rounded
        first, both = (load_file(run / f"round-{number}" / "policy.safetensors") for run in (one, two))
        assert {value.dtype for value in both.values()} == {torch.float32}, told
        apart = torch.cat([(first[key] - both[key]).abs().flatten() for key in first])
        assert apart.mean() < far * case["DPO"].learning_rate


PARTS = {"fsdp2": "pytorch_model_fsdp_0", "deepspeed_zero2": "global_step1"}
"""What lies in a checkpoint of each."""
NEEDED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed; see the file's head")


@pytest.mark.parametrize("config", ["fsdp2", pytest.param("deepspeed_zero2", marks=NEEDED)])
def test_two_processes_learn_what_one_does_and_go_on_after_a_kill(
    config: str, tmp_path: Path, alone: Callable[[str], Path]
) -> None:
    """GRPO killed at its second update and resumed, and DPO, end with the weights and metrics of one process alone.

    In bfloat16 so do the float32 masters of DPO, which go from round to round. So the checkpoint, in parts, gives back
    weights, AdamW's state and the place in the data, and images of several pairs are read once there too.
    """
    told = launched(config, tmp_path, "grpo", "2")
    cut = tmp_path / "grpo"
    assert [row["step"] for row in read(cut / "metrics.jsonl")] == [1, 2], told
    assert not (cut / "generator").exists()
    assert (cut / "checkpoints" / "checkpoint-1" / PARTS[config]).exists()
    assert not (cut / "checkpoints" / "checkpoint-2" / "complete").exists()
    if config == "fsdp2":
        with pytest.raises(ValueError, match="got .*checkpoint-1, of a run that kept none"):
            check_has_masters(cut / "checkpoints" / "checkpoint-1", ShapesLlama.tiny().module.bfloat16())
    told = launched(config, tmp_path, "grpo", "dpo", "half_dpo")
    for name in ("grpo", "dpo"):
        assert_alike(alone(name), tmp_path / name, told)
    assert read(tmp_path / "dpo" / "metrics.jsonl")[0]["pairs"] == 12
    assert_masters_alike(alone("half_dpo"), tmp_path / "half_dpo", told)
    if config == "fsdp2":
        held = json.loads((tmp_path / "held.json").read_text())  # of half_dpo, the last
        shape = shape_of(case["generator_of"]("half_dpo"))
        found = plan(case["DPO"], shape, prompts=4, rewards=1, guided=True, processes=2, sharding="fsdp")
        assert found.twin - shape.decoder * shape.width == pytest.approx(held["twin"], rel=0.02)
        for name in ("gradients", "optimizer", "masters"):
            assert getattr(found, name) == pytest.approx(held[name], rel=0.02), name


@NEEDED
def test_all_that_learns_goes_with_deepspeed(tmp_path: Path, alone: Callable[[str], Path]) -> None:
    """An average and a reference that follow, several passes and updates a draw, adapters, and rounds after GRPO.

    In bfloat16 two rounds of DPO, of two updates each, so small that a weight would not move. The second is killed
    between them and resumed: it goes on from its own masters, as it began with those of the first. Of no round an
    engine is left, nor the float32 copies and moments that it holds.
    """
    told = launched("deepspeed_zero2", tmp_path, "full_grpo", "lora_grpo", "ladder")
    for name in ("full_grpo", "lora_grpo", "ladder"):
        assert_alike(alone(name), tmp_path / name, told)
    assert [path.read_text() for path in sorted(tmp_path.glob("engines-*"))] == ["0", "0"], told
    launched("deepspeed_zero2", tmp_path, "half_slow", "4")
    assert [path.name for path in (tmp_path / "half_slow" / "round-2" / "checkpoints").iterdir()] == ["checkpoint-1"]
    told = launched("deepspeed_zero2", tmp_path, "half_slow")
    rounds = [load_file(tmp_path / "half_slow" / f"round-{number}" / "policy.safetensors") for number in (1, 2)]
    begun = dict(ShapesLlama.tiny().module.bfloat16().named_parameters())
    before = {name: begun[name.removeprefix("trained.")].detach().float() for name in rounds[0]}
    for now in rounds:
        steps = torch.cat([(now[name] - before[name]).abs().flatten() for name in now])
        assert 1.5e-6 < steps.max() < 2.1e-6, told  # two updates of AdamW, each as long as the learning rate at most
        assert (steps > 0).float().mean() > 0.5
        before = now
    assert {row.get("moved_in", "float32") for row in read(tmp_path / "half_slow" / "metrics.jsonl")} == {"float32"}


def test_what_cannot_be_sharded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters with FSDP; a policy that is not to be sharded is its own learner."""
    generator = ShapesLlama.tiny()
    policy = Policy(generator.module, generator.statistics, ["a"], Sampling())
    assert learner_of(policy) is policy
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    twin = learner_of(policy)
    owner: Any = twin.statistics
    assert twin is not policy
    assert owner.__self__.module is twin.trained is not generator.module
    with pytest.raises(ValueError, match="FSDP needs a lora_rank of 0"):
        check_launch(generator.module, adapters=True)
    next(generator.module.parameters()).requires_grad_(False)
    with pytest.raises(ValueError, match="FSDP needs a lora_rank of 0"):
        learner_of(policy)


def test_what_cannot_be_launched_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """float16, mixed precision, and of DeepSpeed stage 3 and weights of two precisions; before anything is drawn."""
    module = ShapesLlama.tiny().module
    check_launch(module.bfloat16())
    with pytest.raises(ValueError, match="float32 or bfloat16, got float16, .* load the generator in bfloat16"):
        check_launch(module.half())
    monkeypatch.setattr(generators, "load", lambda *_, **__: case["generator_of"]("half", torch.float16))
    with pytest.raises(ValueError, match="got float16"):
        optimize(Experiment(), Grpo(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="got float16"):
        case["run"](tmp_path / "run", "grpo", generator=case["generator_of"]("half", torch.float16))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="one precision, got bfloat16 and float32; take DDP"):
        check_launch(module.bfloat16(), adapters=True)
    check_launch(module.float(), adapters=True)
    next(module.parameters()).data = next(module.parameters()).data.bfloat16()
    with pytest.raises(ValueError, match="one precision, got bfloat16 and float32; take DDP"):
        check_launch(module)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(ValueError, match="stage 1 or 2 of DeepSpeed, or FSDP2, got stage 3"):
        check_launch(module)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="got a mixed precision of bf16 .* --mixed_precision no"):
        check_launch(module)


def test_what_the_launcher_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read off what accelerate tells its processes; `rwk optimize --dry-run` counts by it."""
    assert sharding() == "none"
    for stage in "12":
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
        assert sharding() == f"zero{stage}"
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

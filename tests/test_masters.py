"""Weights of half precision: what learns is a float32 copy of them, kept with checkpoints and from round to round."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rwk.adapters.janus import JanusPro
from rwk.policy_opt import masters, trl_bridge
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Dpo, Grpo
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.followers import average_of, moving_reference
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.masters import MasterAdamW, masters_of
from rwk.policy_opt.policy import Policy
from rwk.policy_opt.sizing import plan
from rwk.policy_opt.sizing_shape import shape_of
from rwk.rewards.registry import load

PROMPTS = ["a red cat", "two birds", "a small dog", "a tree"]
SLOW = Grpo(steps=5, prompts_per_step=4, group_size=4, learning_rate=1e-6, kl_every=0, save_every=0)
HALF = torch.bfloat16


def small(dtype: torch.dtype) -> Generator:
    """A tiny Janus whose weights are as wide as published ones, rounded as bfloat16 has them."""
    generator = JanusPro.tiny()
    with torch.no_grad():
        for number, p in enumerate(generator.module.parameters()):
            p.normal_(std=0.02, generator=torch.Generator().manual_seed(number)).copy_(p.to(HALF))
    generator.module.to(dtype)
    return generator


def weights(generator: Generator) -> Tensor:
    return torch.cat([p.detach().float().flatten() for p in generator.module.parameters()])


class Run:
    """A run of GRPO, or of DPO in rounds, with what its optimizer was given and left."""

    def __init__(self, config: Grpo | Dpo, generator: Generator, out: Path, **options: Any) -> None:
        self.generator, self.out = generator, out
        self.began = {f"trained.{n}": p.detach().float().clone() for n, p in generator.module.named_parameters()}
        self.gradients: list[dict[str, Tensor]] = []
        self.trainers: list[Any] = []
        train = trl_bridge.train

        def watched(trainer: Any, *given: Any, **more: Any) -> None:
            self.trainers.append(trainer)
            trainer.add_callback(self._gradients(trainer))
            train(trainer, *given, **more)

        learn: Any = grpo if isinstance(config, Grpo) else dpo
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trl_bridge, "train", watched)
            learn(config, generator, [Weighted("colour", load("colorfulness"))], PROMPTS, out=out, **options)

    def _gradients(self, trainer: Any) -> Any:
        from transformers import TrainerCallback

        run = self

        class Gradients(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                named = trainer.model.named_parameters()
                run.gradients.append({n: p.grad.detach().float().clone() for n, p in named if p.grad is not None})

        return Gradients()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read(self.out / "metrics.jsonl")

    def learnt(self) -> dict[str, Tensor]:
        """What AdamW left, in float32, by name."""
        model = self.trainers[-1].model
        return {n: p.detach().float() for n, p in model.named_parameters()} | dict(masters_of(self.trainers[-1]))

    def moved(self) -> int:
        """Weights that are others than at the beginning."""
        return sum(int((value != self.began[name]).sum()) for name, value in self.learnt().items())


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Five slow updates in float32, in bfloat16, and in bfloat16 without masters."""
    runs = {name: tmp_path_factory.mktemp(name) for name in ("float32", "bfloat16", "none")}
    with pytest.MonkeyPatch.context() as patch:
        found = {name: Run(SLOW, small(getattr(torch, name)), runs[name]) for name in ("float32", "bfloat16")}
        patch.setattr(trl_bridge, "keep_masters", lambda *_: None)
        return found | {"none": Run(SLOW, small(HALF), runs["none"])}


def by_hand(run: Run) -> dict[str, Tensor]:
    """AdamW in float64 on copies of the weights that a run began with, from the gradients that it had."""
    group = run.trainers[-1].optimizer.param_groups[0]
    (b1, b2), rate, eps = group["betas"], SLOW.learning_rate, group["eps"]
    found = {}
    for name, began in run.began.items():
        p, m, v = began.double(), torch.zeros_like(began).double(), torch.zeros_like(began).double()
        for t, gradients in enumerate(run.gradients, 1):
            if name in gradients:
                g = gradients[name].double()
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
                p = p - rate * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
        found[name] = p
    return found


def test_half_precision_moves_what_float32_moves(slow: dict[str, Run]) -> None:
    """Nearly as many weights, to nearly the same place, where without masters hardly any moves."""
    moved = {name: run.moved() for name, run in slow.items()}
    assert moved["bfloat16"] > 0.99 * moved["float32"] > 20_000
    assert moved["none"] < 0.01 * moved["float32"]
    ways = [torch.cat([(run.learnt()[n] - run.began[n]).flatten() for n in run.began]) for run in slow.values()]
    assert torch.cosine_similarity(ways[0], ways[1], 0) > 0.9
    assert isinstance(slow["bfloat16"].trainers[0].optimizer.optimizer, MasterAdamW)
    assert type(slow["float32"].trainers[0].optimizer.optimizer) is torch.optim.AdamW


def test_masters_are_those_of_adamw_by_hand(slow: dict[str, Run]) -> None:
    """To float32's rounding, and the weights that draw and learn are their rounding; float32 weights likewise."""
    for name in ("float32", "bfloat16"):
        learnt, hand = slow[name].learnt(), by_hand(slow[name])
        for key, p in learnt.items():
            assert (p - hand[key]).abs().max() < 2e-8, key  # 5 times half the distance of two numbers near 0.06
    drawing = {f"trained.{n}": p.detach() for n, p in slow["bfloat16"].generator.module.named_parameters()}
    assert all(torch.equal(drawing[key], p.to(HALF)) for key, p in learnt.items())
    assert {p.dtype for p in drawing.values()} == {HALF}


def test_a_run_that_hardly_moves_says_so(slow: dict[str, Run]) -> None:
    """One alarm, at the third update, where masters are off; the share is in the line of that update alone."""
    alarms = {name: [text for row in run.rows for text in row.get("alarms", ())] for name, run in slow.items()}
    assert alarms["float32"] == alarms["bfloat16"] == []
    (alarm,) = alarms["none"]
    assert "% of the weights: updates are smaller than half precision (bfloat16) can hold; raise" in alarm
    for name, kind in (("float32", "float32"), ("bfloat16", "float32"), ("none", "bfloat16")):
        assert ["moved" in row for row in slow[name].rows] == [False, False, True, False, False]
        row = slow[name].rows[2]
        assert row["moved_in"] == kind
        assert (row["moved"] > 0.5) == (name != "none")


def test_the_calculator_counts_what_is_held(slow: dict[str, Run]) -> None:
    """Bytes of masters and of AdamW's moments, of the parameters that had a gradient."""
    for name in ("float32", "bfloat16"):
        run = slow[name]
        states = run.trainers[0].optimizer.optimizer.state.values()
        held = {
            key: sum(state[key].nbytes for state in states if key in state)
            for key in ("exp_avg", "exp_avg_sq", "master")
        }
        shape = shape_of(run.generator)
        idle = sum(p.numel() for n, p in run.began.items() if n not in run.gradients[0])
        found = plan(SLOW, replace(shape, parameters=shape.parameters - idle), prompts=4, rewards=1, guided=True)
        assert (held["exp_avg"] + held["exp_avg_sq"], held["master"]) == (found.optimizer, found.masters)


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_resumes_where_it_was(tmp_path: Path, name: str) -> None:
    """A run in half precision that breaks off and goes on ends with the weights, to the bit, of one that did not."""
    steady: dict[str, Any] = {"group_size": 4, "learning_rate": 1e-5, "save_every": 2, "kl_every": 0}
    config: Grpo | Dpo = Grpo(steps=6, prompts_per_step=4, beta=0.1, **steady)
    config = replace(config, reference_every=2, reference_mix=0.4, ema=0.7)  # type: ignore[call-arg]
    if name == "dpo":
        config = Dpo(rounds=2, prompts_per_draw=4, batch_size=2, epochs=2, **steady)

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if step == 7 - 2 * (name == "grpo"):
            raise KeyboardInterrupt

    unbroken = Run(config, small(HALF), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Run(config, small(HALF), tmp_path / "parts", progress=interrupt)
    again = Run(config, small(HALF), tmp_path / "parts", resume=True)
    assert again.gradients
    assert len(again.gradients) < len(unbroken.gradients)
    assert torch.equal(weights(unbroken.generator), weights(again.generator))
    assert all(torch.equal(value, again.learnt()[key]) for key, value in unbroken.learnt().items())
    kept = [[{n: v for n, v in row.items() if "seconds" not in n} for row in run.rows] for run in (unbroken, again)]
    assert kept[0] == kept[1]


def test_a_round_goes_on_from_the_masters_of_the_one_before(tmp_path: Path) -> None:
    """The round's file holds them in float32, and what is less than a step of bfloat16 is not lost between rounds."""
    config = Dpo(rounds=3, prompts_per_draw=4, batch_size=2, group_size=4, learning_rate=1e-6, kl_every=0, save_every=0)
    run = Run(config, small(HALF), tmp_path)
    before = run.began
    for number in (1, 2, 3):
        now = load_file(tmp_path / f"round-{number}" / "policy.safetensors")
        assert {value.dtype for value in now.values()} == {torch.float32}
        steps = torch.cat([(now[name] - before[name]).abs().flatten() for name in now])
        assert steps.max() < 2.1 * config.learning_rate  # two updates a round, and no rounding to bfloat16 between
        assert (steps > 0).float().mean() > 0.5
        before = now


def test_a_checkpoint_without_masters_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As older runs in half precision have; in float32 there are none to miss."""

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    config = replace(SLOW, save_every=2)
    for dtype in (HALF, torch.float32):
        out = tmp_path / str(dtype)
        with monkeypatch.context() as patch:
            patch.setattr(trl_bridge, "keep_masters", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                Run(config, small(dtype), out, progress=interrupt)
    Run(config, small(torch.float32), tmp_path / "torch.float32", resume=True)
    with pytest.raises(
        ValueError, match=r"float32 copies of its weights to go on, got .*checkpoint-2, .* begin it anew"
    ):
        Run(config, small(HALF), tmp_path / "torch.bfloat16", resume=True)


def test_adapters_are_float32(tmp_path: Path) -> None:
    """On weights of half precision, and AdamW needs no copy of them."""
    run = Run(replace(SLOW, steps=1, lora_rank=2), small(HALF), tmp_path)
    group = run.trainers[0].optimizer.param_groups[0]
    assert {p.dtype for p in group["params"]} == {torch.float32}
    assert type(run.trainers[0].optimizer.optimizer) is torch.optim.AdamW
    assert run.rows[0]["moved_in"] == "float32"


def test_state_survives_beside_float32_parameters() -> None:
    """Float32 parameters move as by AdamW, to the bit, and a state that is saved and loaded stays in float32."""

    torch.manual_seed(0)
    mixed = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(3).to(HALF)), nn.Parameter(torch.ones(2).to(HALF))]
    ours = MasterAdamW(mixed, 1e-3, weight_decay=0.1)
    alone = copy.deepcopy(mixed[0])
    single = torch.optim.AdamW([alone], 1e-3, weight_decay=0.1)
    for _ in range(3):
        for p in (alone, *mixed[:2]):
            p.grad = torch.ones_like(p) * 0.25
        ours.step()
        single.step()
    assert torch.equal(alone, mixed[0])
    assert mixed[2] not in ours.state
    again = [nn.Parameter(p.detach().clone()) for p in mixed]
    other = MasterAdamW(again, 1e-3, weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    for optimizer, params in ((ours, mixed), (other, again)):
        for p in params[:2]:
            p.grad = torch.ones_like(p) * -0.5
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(mixed, again, strict=True))
    states = zip(ours.state.values(), other.state.values(), strict=True)
    assert all(torch.equal(value, two[key]) for one, two in states for key, value in one.items())
    assert {value.dtype for state in other.state.values() for value in state.values()} == {torch.float32}


def policy_of(module: nn.Module) -> Policy:
    nothing: Callable[..., Any] = lambda rollout: None  # noqa: E731
    return Policy(module, nothing, ["a"], JanusPro.spec.sampling)


def test_an_average_follows_its_formula() -> None:
    """From 0.02 towards 0.02026 at a decay of 0.99 in 500 steps of bfloat16, which itself would stop at 0.02002."""
    policy = policy_of(nn.Linear(1, 1, bias=False).to(HALF))
    (weight,) = policy.parameters()
    with torch.no_grad():
        weight.fill_(0.02)
        begin = weight.item()
        average = average_of(Grpo(ema=0.99), policy)
        assert average is not None
        weight.fill_(0.02026)
    for _ in range(500):
        average.follow(policy)
    end = weight.item()
    assert end != begin
    expected = end + (begin - end) * 0.99**500
    assert average.tensors["trained.weight"].item() == pytest.approx(expected, abs=1e-7)
    average.give(policy)
    assert weight.item() == torch.tensor(expected).to(HALF).item()


def test_a_moving_reference_follows_its_formula(tmp_path: Path) -> None:
    """It is the rounding of a float32 average, as after a restart, which in bfloat16 would stand still."""
    generator = small(HALF)
    policy = policy_of(generator.module)
    config = Grpo(beta=0.1, reference_every=1, reference_mix=0.01)
    statistics, mover = moving_reference(config, generator)
    assert mover is not None
    began = weights(generator)
    with torch.no_grad():
        for p in generator.module.parameters():
            p.mul_(1.02)
    for _ in range(300):
        mover.follow(policy)
    owner: Any = statistics
    reference = owner.__self__
    expected = weights(generator) + (began - weights(generator)) * 0.99**300
    average = torch.cat([mover.tensors[f"trained.{n}"].flatten() for n, _ in generator.module.named_parameters()])
    assert (average - expected).abs().max() < 1e-7
    assert torch.equal(weights(reference), average.to(HALF).float())
    mover._write(tmp_path, 7)
    statistics, second = moving_reference(config, small(HALF))
    assert second is not None
    second.restore(tmp_path, 7)
    owner = statistics
    assert torch.equal(weights(owner.__self__), weights(reference))


def test_masters_are_gathered_and_given_back() -> None:
    """A policy that took up finer values than its weights hands them on once, and is their rounding."""
    policy = policy_of(nn.Linear(2, 2, bias=False).to(HALF))
    finer = {"trained.weight": torch.tensor([[0.1, 0.2], [0.3, 1e-9]])}
    policy.load_state_dict(finer, strict=False)
    assert torch.equal(policy.trained.weight, finer["trained.weight"].to(HALF))  # type: ignore[arg-type]
    assert torch.equal(policy.state_dict()["trained.weight"], finer["trained.weight"])
    policy.load_state_dict({"trained.weight": finer["trained.weight"].to(HALF)}, strict=False)
    assert policy.finer == {}
    assert masters.whole(finer.items())["trained.weight"].equal(finer["trained.weight"])

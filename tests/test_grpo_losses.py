"""Every loss of GRPO where the policy has moved since it drew: gradients of a second update, by losses written out."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwk.policy_opt import trl_bridge
from rwk.policy_opt.grpo import Lesson
from rwk.policy_opt.journal import Journal, read
from rwk.policy_opt.policy import Policy, world
from rwk.policy_opt.sampling import Sampling

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, PROMPTS, GRPO = toy["Toy"], toy["PROMPTS"], toy["GRPO"]
GUIDED = Sampling(guidance=2.0, temperature=0.8)
IMAGES, TOKENS = 24, 8
ROLLOUT = Toy().sample(PROMPTS[:6], per_prompt=4, seed=5, sampling=GUIDED)
DRAWN = Toy().logprobs(ROLLOUT).detach()
ADVANTAGE = torch.tensor([1.5, -0.5, -2.0, 1.0]).repeat(6) * torch.linspace(1, 3, 6).repeat_interleave(4)


def keeper(module: torch.nn.Module) -> Any:
    """A callback that keeps the weights before the second update, and its gradient."""
    from transformers import TrainerCallback

    class Second(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                self.weights = {name: value.detach().clone() for name, value in module.named_parameters()}
                self.gradient = {name: value.grad.clone() for name, value in module.named_parameters()}

    return Second()


def second_update(tmp_path: Path, lesson: Lesson, reference: Policy | None, **change: Any) -> tuple[Any, Any, Any]:
    """A toy generator as it was before its second update from one draw, and of that the gradient and the metrics."""
    generator = Toy()
    policy = Policy(generator.module, generator.statistics, PROMPTS, GUIDED)
    given = {"steps": 2, "num_iterations": 2, "learning_rate": 0.05, "save_every": 0, "max_grad_norm": 1e4}
    trainer = trl_bridge.grpo_trainer(
        replace(GRPO, **(given | change)),
        policy,
        reference,
        lambda handles, step: lesson,
        list(range(6)) * 2,
        TOKENS,
        Journal(tmp_path / "metrics.jsonl"),
        tmp_path / "checkpoints",
        world(torch.device("cpu")),
    )
    second = keeper(generator.module)
    trainer.add_callback(second)
    trl_bridge.train(trainer, None)
    before = Toy()
    before.module.load_state_dict(second.weights)
    return before, second.gradient, read(tmp_path / "metrics.jsonl")[1]


def agrees(loss: Tensor, generator: Any, gradient: dict[str, Tensor]) -> None:
    """Asserts that the loss has that gradient."""
    names, values = zip(*generator.module.named_parameters(), strict=True)
    for name, found in zip(names, torch.autograd.grad(loss, values), strict=True):
        assert torch.allclose(found, gradient[name], rtol=1e-3, atol=2e-6), name
    assert torch.cat([found.flatten() for found in gradient.values()]).norm() > 0.05


@pytest.mark.parametrize(
    ("kind", "low", "high", "micro"),
    [
        ("grpo", 0.2, 0.2, 0),
        ("grpo", 0.15, 0.4, 6),
        ("dapo", 0.2, 0.28, 8),
        ("dr_grpo", 0.2, 0.4, 0),
        ("bnpo", 0.2, 0.4, 0),
        ("gspo", 0.03, 0.06, 6),
        ("cispo", 0.2, 0.28, 0),
        ("sapo", 0.2, 0.2, 0),
    ],
)
def test_second_update(tmp_path: Path, kind: str, low: float, high: float, micro: int) -> None:
    """The form of the loss, its two bounds and its normaliser, token by token."""
    change = {"loss_type": kind, "epsilon": low, "epsilon_high": high, "micro_batch": micro}
    generator, gradient, row = second_update(tmp_path, Lesson(ROLLOUT, ADVANTAGE, torch.ones(IMAGES)), None, **change)
    now = generator.logprobs(ROLLOUT)
    images, below, above, between = [], 0, 0, 0
    for image in range(IMAGES):
        a, terms = ADVANTAGE[image], []
        apart = now[image] - DRAWN[image]
        ratios = apart.mean().exp().expand(TOKENS) if kind == "gspo" else apart.exp()
        for token in range(TOKENS):
            r = ratios[token]
            held = min(max(r.item(), 1 - low), 1 + high)  # no gradient where it is a bound
            below += r.item() < 1 - low and a.item() < 0
            above += r.item() > 1 + high and a.item() > 0
            between += 1 + low < r.item() < 1 + high and a.item() > 0
            if kind == "cispo":
                terms.append(-min(r.item(), 1 + high) * a * now[image, token])
            elif kind == "sapo":
                t = 1.0 if a > 0 else 1.05
                terms.append(-4 / t / (1 + (-t * (r - 1)).exp()) * a)
            elif held == r.item():
                terms.append(-r * a)
            else:
                terms.append(-r * a if (r * a).item() <= held * a.item() else -held * a)
        images.append(torch.stack(terms))
    if kind in ("grpo", "gspo", "sapo"):
        loss = sum(terms.sum() / len(terms) for terms in images) / IMAGES
    elif kind == "dr_grpo":
        loss = sum(terms.sum() for terms in images) / (IMAGES * TOKENS)  # the most tokens that an image may have
    else:
        loss = sum(terms.sum() for terms in images) / sum(len(terms) for terms in images)
    agrees(loss, generator, gradient)
    assert min(below, above) > 0
    assert (between > 0) == (high > low)
    if kind not in ("cispo", "sapo"):
        assert row["clip_fraction"] == pytest.approx((below + above) / (IMAGES * TOKENS), abs=1e-6)


@pytest.mark.parametrize("micro", [0, 6])
@pytest.mark.parametrize("how", ["k1", "k2", "k3", "k3_plain"])
def test_second_update_with_a_reference(tmp_path: Path, how: str, micro: int) -> None:
    """The pull by each estimator and the entropy, beside the loss, where rows and tokens count unequally."""
    elsewhere = Toy()
    with torch.no_grad():
        elsewhere.module.head.bias += torch.linspace(-1, 1, 16)
    reference = Policy(torch.nn.Identity(), elsewhere.statistics, PROMPTS, GUIDED)
    counts = torch.tensor([2.0, 0, 1, 0, 2, 1]).repeat_interleave(4)
    pull = torch.rand(IMAGES, TOKENS, generator=torch.Generator().manual_seed(1))
    weights = 2 * torch.rand(IMAGES, TOKENS, generator=torch.Generator().manual_seed(2))
    lesson = Lesson(ROLLOUT, ADVANTAGE[:, None] * weights, counts, pull)
    change = {"beta": 0.7, "kl_estimator": how, "entropy_bonus": 0.2, "micro_batch": micro, "epsilon_high": 0.3}
    generator, gradient, row = second_update(tmp_path, lesson, reference, **change)

    found = generator.statistics(ROLLOUT)
    began = elsewhere.logprobs(ROLLOUT).detach()
    losses, pulls = [], []
    for image in range(IMAGES):
        for token in range(TOKENS):
            now, a = found.logprobs[image, token], lesson.advantage[image, token]
            r, d = (now - DRAWN[image, token]).exp(), now - began[image, token]
            surrogate = torch.minimum(r * a, r.clamp(0.8, 1.3) * a)
            kl = {"k1": r * d, "k2": d * d / 2, "k3_plain": (-d).exp() - 1 + d, "k3": r * ((-d).exp() - 1 + d)}[how]
            pulls.append(counts[image] * pull[image, token] * kl)
            losses.append(counts[image] * (-surrogate - 0.2 * found.entropy[image, token]) + 0.7 * pulls[-1])
    agrees(torch.stack(losses).mean(), generator, gradient)
    assert row["kl_penalty"] == pytest.approx(torch.stack(pulls).mean().item(), rel=1e-4)

"""What the checks of the generator contract draw, and how they fail."""

from __future__ import annotations

import torch
from torch import Tensor

from rwk.policy_opt.generator import Generator, Rollout
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.checking import require
from rwk.rewards.global_state import global_state

TOLERANCE = 1e-4
"""Largest difference between two computations of one log-probability in float32, in nats."""
PLAIN = Sampling()
HARD = Sampling(guidance=3.0, temperature=0.8, top_k=6, top_p=0.9)


def draw(generator: Generator, recipe: Sampling, *, per_prompt: int = 2, seed: int = 0) -> Rollout:
    return generator.sample(generator.example_prompts, per_prompt=per_prompt, seed=seed, sampling=recipe)


def logprobs(generator: Generator, rollout: Rollout) -> Tensor:
    with torch.no_grad():
        return generator.logprobs(rollout)


def require_close(values: Tensor, expected: Tensor, case: str, tolerance: float = TOLERANCE) -> None:
    require(values.shape == expected.shape, f"{case}: shape {tuple(values.shape)}, not {tuple(expected.shape)}")
    gap = (values.detach().cpu() - expected.detach().cpu()).abs().max().item()
    require(gap <= tolerance, f"{case}: off by {gap:.3g}, more than {tolerance:.1g}")  # NaN is more, too


def require_unchanged(before: dict[str, object], what: str) -> None:
    changed = [name for name, value in global_state().items() if value != before[name]]
    require(not changed, f"{what} changed the global {', '.join(changed)}")

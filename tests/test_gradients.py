"""Gradients of `score_pixels` are those of finite differences, for every registered reward that has one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rwk.rewards.base import PixelReward
from rwk.rewards.registry import REWARDS, names

TOLERANCE = 0.02
"""Relative; the bend of a score and float32 leave differences inexact, those of `siglip2.b16_naflex` by 0.013."""
STEPS = (1.0, 0.3, 0.1, 0.03)
"""Lengths of a step on an image of 5,760 numbers: the longest bend, the shortest drown in rounding."""
DIFFERENTIABLE = [name for name in names() if REWARDS.target(name).spec.differentiable]


def pictures() -> Tensor:
    """[2, 3, 40, 48] of noise that no step leads out of 0 to 1, nor onto an edge of a clamp."""
    return 0.25 + 0.5 * torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(3))


def difference(reward: PixelReward, pixels: Tensor, prompts: Sequence[str], way: Tensor, slope: float) -> float:
    """The slope of the score along a way, by the step whose difference is nearest the slope that was told."""
    found = []
    for step in STEPS:
        with torch.no_grad():
            up, down = (reward.score_pixels(pixels + side * step * way, prompts).double().sum() for side in (1, -1))
        found.append(((up - down) / (2 * step)).item())
    return min(found, key=lambda value: abs(value - slope))


def error(reward: PixelReward, pixels: Tensor, prompts: Sequence[str]) -> float:
    """Relative error of the gradient's slopes: along itself, and along broad patterns taken together.

    The first sees what the gradient has and the score has not, the second what the gradient lacks.
    """
    pixels = pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score_pixels(pixels, prompts).sum(), pixels)
    patterns = interpolate(torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)), pixels.shape[2:])
    errors = []
    for ways in (gradient, patterns):
        ways = ways / ways.flatten(1).norm(dim=1)[:, None, None, None]
        told = [(gradient[0] * way).sum().item() for way in ways]
        seen = [difference(reward, pixels, prompts, way, slope) for way, slope in zip(ways, told, strict=True)]
        errors.append(math.dist(told, seen) / math.hypot(*seen))
    return max(errors)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_gradient_is_that_of_differences(name: str) -> None:
    """No part of the way from pixels to score is cut off, doubled or passed by."""
    reward = REWARDS.target(name).tiny()
    assert isinstance(reward, PixelReward)
    prompts = reward.example_prompts[:2] if reward.spec.needs_prompt else ["", ""]
    for picture, prompt in zip(pictures(), prompts, strict=True):
        assert error(reward, picture[None], [prompt] if reward.spec.needs_prompt else []) < TOLERANCE


def test_a_gradient_of_half_the_way_is_seen() -> None:
    """A score with a part that is cut off, as under `no_grad`, is off by more."""
    whole = REWARDS.target("pickscore.v1").tiny()
    assert isinstance(whole, PixelReward)

    class Half:
        @staticmethod
        def score_pixels(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
            seen = torch.cat([pixels[..., :24].detach(), pixels[..., 24:]], dim=-1)
            return whole.score_pixels(seen, prompts)

    assert error(Half(), pictures()[:1], ["a dog"]) > 0.1  # type: ignore[arg-type]

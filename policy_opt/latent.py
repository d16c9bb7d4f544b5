"""Images refined by the gradient of a reward, in the space of their codes and within a region of trust.

For an image with code embeddings z0, a decoder G and a reward f, one proximal step, which is a step of length w of the
Wasserstein gradient flow of -f (Jordan, Kinderlehrer & Otto, 1998):

    z' = argmax_z J(z),    J(z) = f(G(z)) - |z - z0|^2 / (2 w)

It is sought as a fixed point of z = z0 + w grad f(G(z)), and the best z on the way is kept. So J(z') >= J(z0), hence
|z' - z0|^2 <= 2 w (f(z') - f(z0)). Then every embedding is rounded to the nearest code.

What the reward gains so and the truth does not is how far the reward can be hacked within that region, for which
`rwk probe` asks (`calibration.probe_refined`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwk.calibration.domain import Refine
from rwk.policy_opt.generator import Generator
from rwk.rewards.base import PixelReward, Reward

STEPS, DAMPING = 20, 0.25
_AT_ONCE = 16
"""Images that are refined at once, which takes the memory of as many in training."""


class Refined(NamedTuple):
    """Images before and after."""

    soft: Tensor
    """[B, L, d] embeddings that the step came to."""
    tokens: Tensor
    """[B, L] long: their nearest codes."""
    before: Tensor
    """[B] reward of the images as they were."""
    reached: Tensor
    """[B] reward of the soft embeddings."""
    after: Tensor
    """[B] reward of the rounded images, which may be lower."""


def refine(
    generator: Generator, reward: Reward, tokens: Tensor, prompts: Sequence[str], *, trust: float, steps: int = STEPS
) -> Refined:
    """The images of tokens [B, L] after one proximal step, before and after rounding, where the generator is.

    Args:
        trust: w, squared distance of embeddings for each unit of reward.
        steps: of the iteration.

    Raises:
        ValueError: where the generator or the reward has no gradient, or trust is not above 0.
    """
    if not isinstance(reward, PixelReward):
        raise ValueError(f"refining needs a reward with a gradient, got {reward.spec.name}; take another.")
    if not trust > 0:
        raise ValueError(f"trust must be above 0, got {trust}.")
    if not len(tokens):
        book, none = generator.code_embeddings(), torch.empty(0)
        return Refined(book[tokens.to(book.device)], tokens, none, none, none)
    parts = [
        _refined(generator, reward, tokens[at : at + _AT_ONCE], prompts[at : at + _AT_ONCE], trust, steps)
        for at in range(0, len(tokens), _AT_ONCE)
    ]
    return Refined(*map(torch.cat, zip(*parts, strict=True)))


def _refined(
    generator: Generator, reward: PixelReward, tokens: Tensor, prompts: Sequence[str], trust: float, steps: int
) -> Refined:
    book = generator.code_embeddings()  # [K, d]
    asked = list(prompts) if reward.spec.needs_prompt else []

    def value(z: Tensor) -> Tensor:
        return reward.score_pixels(generator.soft_pixels(z), asked)

    start = book[tokens.to(book.device)]
    soft = ascend(value, start, trust=trust, steps=steps)
    rounded = torch.cdist(soft, book.expand(len(soft), -1, -1)).argmin(2)
    with torch.no_grad():
        return Refined(soft, rounded, value(start), value(soft), value(book[rounded]))


def ascend(value: Callable[[Tensor], Tensor], start: Tensor, *, trust: float, steps: int = STEPS) -> Tensor:
    """[B, ...] the best point of J on a damped fixed-point iteration from `start` [B, ...].

    Args:
        value: from points [B, ...] to [B], differentiable, no row depending on another.
    """
    axes = tuple(range(1, start.ndim))
    z, best, most = start, start, torch.full([len(start)], -torch.inf, device=start.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            held = z.detach().requires_grad_()
            found = value(held)
            (slope,) = torch.autograd.grad(found.sum(), held)
        objective = found.detach() - (z - start).square().sum(axes) / (2 * trust)
        better = objective > most
        most = torch.where(better, objective, most)
        best = torch.where(better.view(-1, *[1] * len(axes)), z, best)
        if step < steps:
            z = z + DAMPING * (start + trust * slope - z)
    return best


def refiner(generator: Generator) -> Refine | None:
    """What refines a generator's tokens, for probes; None where codes have no embeddings or the decoder no gradient."""
    if type(generator).soft_pixels is Generator.soft_pixels:
        return None
    try:
        generator.code_embeddings()
    except ValueError:
        return None

    def run(reward: Reward, tokens: Any, prompts: Sequence[str], *, trust: float, steps: int) -> Tensor:
        return refine(generator, reward, tokens, prompts, trust=trust, steps=steps).tokens

    return run

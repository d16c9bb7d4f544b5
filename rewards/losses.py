"""Losses of rewards on preferences, and the temperature that turns a margin into a probability."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus


def bradley_terry_loss(margin: Tensor, p_first: Tensor, weight: Tensor | None = None) -> Tensor:
    """[B] negative log-likelihood of each preference under Bradley and Terry's model, in nats.

    A soft label is a share of votes; 0.5 is a tie, and pulls the margin to 0.

    Args:
        margin: [B] score(first) - score(second), as log-odds.
        p_first: [B] share that prefers the first, 0..1.
        weight: [B] how much each row counts, by default 1.

    >>> bradley_terry_loss(torch.tensor([0.0, -8.0]), torch.tensor([1.0, 1.0]))
    tensor([0.6931, 8.0003])
    """
    # Two softplus, not softplus(-m) + (1 - p) m: that cancels where the margin is large.
    loss = p_first * softplus(-margin) + (1 - p_first) * softplus(margin)
    return loss if weight is None else loss * weight


class Temperature(NamedTuple):
    """T in p(first is preferred) = sigmoid(margin / T), without a bias."""

    value: float
    """Infinite where the margins say nothing, so that every probability is 0.5."""
    n: int
    """Rows that it was fitted on."""
    status: str
    """`fitted`, or `uninformative` where the margins do not agree with the preferences at all."""


def fit_temperature(margin: Tensor, p_first: Tensor, weight: Tensor | None = None) -> Temperature:
    """The temperature of least negative log-likelihood, by bisection on 1/T, in which the likelihood is convex.

    Labels are first drawn towards 0.5 as in Platt (1999), by 2 pseudo-votes against N rows, so that margins which are
    never wrong get a finite confidence.

    Args:
        margin: [N] score(first) - score(second), finite.
        p_first: [N] share that prefers the first.
        weight: [N] how much each row counts.
    """
    m = margin.double()
    p = 0.5 + (p_first.double() - 0.5) * len(m) / (len(m) + 2)
    w = torch.ones_like(m) if weight is None else weight.double()

    def slope(a: float) -> float:
        return (w * m * (torch.sigmoid(a * m) - p)).sum().item()

    if len(m) == 0 or slope(0) >= 0:
        return Temperature(math.inf, len(m), "uninformative")
    low, high = 0.0, 1 / m.abs().max().item()
    while slope(high) < 0:
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return Temperature(2 / (low + high), len(m), "fitted")

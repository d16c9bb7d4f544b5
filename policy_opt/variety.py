"""How unlike the images of a group are, as a term beside the reward that keeps the group varied.

With images u of a group of n, seen as pictures of 8x8 colours less the mean picture of the draw, the likeness of image
i is its mean cosine with the others, and its bonus is less of it:

    s_i = 1 / (n - 1) sum_{j != i} cos(u_i, u_j)        S_i = A(R)_i + weight A(-s)_i

where A standardises within the group, as rewards are normalised apart (GDPO, arXiv:2601.05242). After TEEN, Li et al.,
"Keep Various Trajectories" (NeurIPS 2023), where sub-policies are rewarded for going where the others do not; the
sub-policies are here the places in the group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from rwk.policy_opt.advantage import combine

SIDE = 8
"""Colours along each side of what an image is compared by."""


def fields(levels: Tensor) -> Tensor:
    """[B, 3 * SIDE * SIDE] in 0..1: the mean colours of each image's fields, of 8-bit levels [B, 3, H, W]."""
    return interpolate(levels.float() / 255, size=(SIDE, SIDE), mode="area").flatten(1).cpu()


def likeness(seen: Tensor, size: int) -> Tensor:
    """[B] in -1..1: mean cosine of each row with the others of its group, less the mean of all rows.

    Args:
        seen: [B, D], groups of `size` rows adjacent.

    >>> likeness(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]), 2)
    tensor([1., 1., 1., 1.])
    """
    units = normalize(seen - seen.mean(0), dim=1).unflatten(0, (-1, size))  # [G, n, D]
    cosines = units @ units.mT
    others: Tensor = cosines.sum(2) - cosines.diagonal(dim1=1, dim2=2)
    return (others / (size - 1)).flatten()


def with_variety(reward: Tensor, alike: Tensor, group: Tensor, *, weight: float, min_std: float = 1e-4) -> Tensor:
    """[B] the standardised reward, and `weight` times how little a row is like its group, standardised; NaN stays NaN.

    Args:
        reward: [B].
        alike: [B] of `likeness`.
        group: [B] long.
    """
    columns = torch.stack([reward, (-alike).masked_fill(reward.isnan(), torch.nan)], dim=1)
    return combine(columns, [1.0, weight], group, how="normalise", min_std=min_std)

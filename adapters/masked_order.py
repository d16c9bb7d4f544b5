"""In which order, and how many at a time, the masked codes of a picture are drawn, whatever their probabilities are."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def steps_of(tokens: int, draws: int) -> tuple[int, ...]:
    """Tokens of each of so many draws: after a share t of them a share cos(pi t / 2) of the tokens is still masked.

    >>> steps_of(256, 8)
    (5, 15, 24, 31, 39, 45, 48, 49)
    """
    if not 1 <= draws <= tokens:
        raise ValueError(f"a picture of {tokens} tokens is made in 1 to {tokens} draws, got {draws}.")
    masked = [tokens]
    for step in range(1, draws):
        left = int(tokens * torch.cos(torch.tensor(step / draws) * math.pi * 0.5))  # rounded as by the authors
        masked.append(max(1, min(masked[-1] - 1, left)))
    return tuple(before - after for before, after in zip(masked, [*masked[1:], 0], strict=True))


@functools.cache
def halton_order(side: int) -> Tensor:
    """[side * side] long: places of a grid, numbered row by row, as the Halton sequence of bases 2 and 3 meets them.

    >>> halton_order(2)
    tensor([2, 1, 0, 3])
    """
    places: dict[int, None] = {}
    index = 0
    while len(places) < side**2:
        index += 1
        row, column = (int(side * _radical_inverse(index, base)) for base in (2, 3))
        places[row * side + column] = None
    return torch.tensor(list(places))


def _radical_inverse(index: int, base: int) -> float:
    """The digits of a number behind the point, the last first."""
    value, unit = 0.0, 1.0
    while index:
        unit /= base
        index, digit = divmod(index, base)
        value += digit * unit
    return value

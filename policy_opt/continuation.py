"""Rows that go on from prompts which were read: what comes after each token, by way of a cache that never grows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from rwk.policy_opt.prefix import Prefix
from rwk.policy_opt.shared_prefix import attending, shared_cache, shares

Backbone = Callable[..., Tensor]
"""`CausalGenerator.backbone`."""
Reader = Callable[[Tensor], Tensor]
"""From the embedding [rows, 1, D] of each row's newest token, called token by token, to the states [rows, D]."""


def continued(backbone: Backbone, causal_lm: Any, prefix: Prefix, source: list[int], steps: int) -> Reader:
    """The reader of rows that continue the prefixes `source`, for at most `steps` tokens of each.

    Rows of one prefix read its keys together where that is faster, else each has a copy.
    """
    if shares(causal_lm, prefix, source):
        return _together(backbone, causal_lm, prefix, source, steps)
    width, cache, mask = max(prefix.lengths), prefix.expand(source, steps), prefix.mask(source, steps)
    positions, filled = starts(prefix, source), count()

    def read(embeds: Tensor) -> Tensor:
        step = next(filled)
        seen = None if mask is None else mask[..., : width + step + 1]
        return backbone(embeds, positions=positions + step, mask=seen, cache=cache)[:, 0]

    return read


def starts(prefix: Prefix, source: list[int]) -> Tensor:
    """[rows, 1] the position of each row's first token."""
    return torch.tensor([[prefix.positions[row]] for row in source], device=prefix.hidden.device)


def _together(backbone: Backbone, causal_lm: Any, prefix: Prefix, source: list[int], steps: int) -> Reader:
    cache, positions, filled = shared_cache(prefix, source, steps), starts(prefix, source), count()

    def read(embeds: Tensor) -> Tensor:
        with attending(causal_lm):
            return backbone(embeds, positions=positions + next(filled), cache=cache)[:, 0]

    return read

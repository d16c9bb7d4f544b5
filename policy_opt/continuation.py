"""Rows that go on from prompts which were read: what comes after each token, by way of a cache that never grows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from rwk.policy_opt.lengths import parts_to_draw
from rwk.policy_opt.prefix import Prefix
from rwk.policy_opt.shared_prefix import attending, shared_cache, shares

Backbone = Callable[..., Tensor]
"""`CausalGenerator.backbone`."""
Reader = Callable[[Tensor], Tensor]
"""From the embedding [rows, 1, D] of each row's newest token, called token by token, to the states [rows, D]."""


def continued(backbone: Backbone, causal_lm: Any, prefix: Prefix, source: list[int], steps: int) -> Reader:
    """The reader of rows that continue the prefixes `source`, for at most `steps` tokens of each.

    Rows of one prefix read its keys together where that is faster, else each has a copy. Where padding would cost more
    than it does to go through the model once more, rows of different length go through it apart.
    """
    if shares(causal_lm, prefix, source):
        return _together(backbone, causal_lm, prefix, source, steps)
    key = sum(layer.shape[1] * layer.shape[3] * layer.itemsize for layer in prefix.layers)
    lengths = [prefix.lengths[row] for row in source]
    parts = parts_to_draw(causal_lm, lengths, prefix.hidden.device.type, key)
    if len(parts) == 1:
        return _copied(backbone, prefix, source, steps)
    readers = [_copied(backbone, *prefix.cut([source[row] for row in part]), steps) for part in parts]
    rows = [torch.tensor(part, device=prefix.hidden.device) for part in parts]
    back = torch.cat(rows).argsort()

    def read(embeds: Tensor) -> Tensor:
        return torch.cat([reader(embeds[part]) for part, reader in zip(rows, readers, strict=True)])[back]

    return read


def _copied(backbone: Backbone, prefix: Prefix, source: list[int], steps: int) -> Reader:
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

"""Prompts that a language model has read once, and the cache in which their groups go on: its room is taken once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

Place = TypeVar("Place", int, Tensor)


@dataclass(frozen=True)
class Prefix:
    """Prompts that have been read: what the rows of their groups continue from."""

    lengths: list[int]
    positions: list[int]
    """Of the code that comes next."""
    codes: int
    """Of an image, that each ends with."""
    hidden: Tensor
    """[U, D] the state that predicts the first code."""
    layers: list[Tensor]
    """keys, values, keys, values, ...: [U, heads, P, head size] each, of which a row's first `lengths` count."""

    def cut(self, source: list[int]) -> tuple[Prefix, list[int]]:
        """The prefixes that rows continue, no wider than the longest of them, and the rows' `source` among these."""
        used = sorted(set(source))
        index, width = torch.tensor(used, device=self.hidden.device), max(self.lengths[row] for row in used)
        layers = [layer[index, :, :width] for layer in self.layers]
        lengths, positions = ([known[row] for row in used] for known in (self.lengths, self.positions))
        return Prefix(lengths, positions, self.codes, self.hidden[index], layers), [used.index(row) for row in source]

    def expand(self, source: list[int], steps: int) -> Any:
        """A cache of rows that continue the prefixes `source`, with room for all `steps`."""
        from transformers.cache_utils import Cache

        index = torch.tensor(source, device=self.hidden.device)
        pairs = zip(self.layers[::2], self.layers[1::2], strict=True)
        return Cache(layers=[_buffer_layer()(keys, values, index, steps) for keys, values in pairs])

    def mask(self, source: list[int], steps: int) -> Tensor | None:
        """[rows, 1, 1, P + steps] to add to the scores: shuts each row's padding, which lies before its codes."""
        width = max(self.lengths)
        if all(self.lengths[row] == width for row in source):
            return None
        start = torch.tensor([self.lengths[row] for row in source], device=self.hidden.device)[:, None, None, None]
        slot = torch.arange(width + steps, device=self.hidden.device)
        padding = (slot >= start) & (slot < width)
        shut = torch.finfo(self.hidden.dtype).min
        return torch.zeros_like(padding, dtype=self.hidden.dtype).masked_fill(padding, shut)

    def causal_mask(self, source: list[int], steps: int) -> Tensor:
        """[rows, 1, steps, P + steps] likewise, for steps that are read at once: shuts what is behind each of them."""
        width, dtype = max(self.lengths), self.hidden.dtype
        later = torch.full([steps, width + steps], torch.finfo(dtype).min, dtype=dtype, device=self.hidden.device)
        later = later.triu(width + 1).expand(len(source), 1, -1, -1)
        padding = self.mask(source, steps)
        return later if padding is None else later + padding


def joined(parts: Sequence[tuple[list[int], Prefix]]) -> Prefix:
    """The prefixes of all parts, each of which tells which of them all it holds; narrower ones are padded with 0."""
    if len(parts) == 1:
        return parts[0][1]
    order = list(chain(*(rows for rows, _ in parts)))
    back = sorted(range(len(order)), key=order.__getitem__)
    index = torch.tensor(back, device=parts[0][1].hidden.device)
    lengths, positions = (
        [list(chain(*(getattr(part, name) for _, part in parts)))[place] for place in back]
        for name in ("lengths", "positions")
    )

    def whole(tensors: Sequence[Tensor]) -> Tensor:
        width = max(lengths)
        return torch.cat([pad(tensor, (0, 0, 0, width - tensor.shape[2])) for tensor in tensors])[index]

    hidden = torch.cat([part.hidden for _, part in parts])[index]
    layers = [whole(tensors) for tensors in zip(*(part.layers for _, part in parts), strict=True)]
    return Prefix(lengths, positions, parts[0][1].codes, hidden, layers)


@functools.cache
def _buffer_layer() -> Any:
    """The class of a cache layer whose room is taken once; made on first use, since transformers is slow to import."""
    from transformers.cache_utils import DynamicLayer

    dynamic: Any = DynamicLayer  # its methods carry no types

    class BufferLayer(dynamic):  # type: ignore[misc]
        def __init__(self, keys: Tensor, values: Tensor, index: Tensor, steps: int) -> None:
            super().__init__()
            self.room = [_with_room(tensor, index, steps) for tensor in (keys, values)]
            self.filled = keys.shape[2]
            self.is_initialized = True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            start, self.filled = self.filled, self.filled + key_states.shape[2]
            self.room[0][:, :, start : self.filled] = key_states
            self.room[1][:, :, start : self.filled] = value_states
            return self.room[0][:, :, : self.filled], self.room[1][:, :, : self.filled]

        def get_seq_length(self) -> int:
            return self.filled

    return BufferLayer


def _with_room(tensor: Tensor, index: Tensor, steps: int) -> Tensor:
    """The rows `index` of [U, heads, P, size], with room for further steps: [rows, heads, P + steps, size]."""
    _, heads, width, size = tensor.shape
    room = tensor.new_empty([len(index), heads, width + steps, size])
    room[:, :, :width] = tensor[index]
    return room


def right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, list[int]]:
    """Ids [B, P], filled up with 0, and the length of each row.

    Raises:
        ValueError: for a row without ids, which no state could follow.
    """
    lengths = [len(row) for row in rows]
    if min(lengths) < 1:
        raise ValueError("a prefix needs at least one id, got none; let prompt_ids end with the begin-of-image token.")
    return torch.tensor([[*row, *[0] * (max(lengths) - len(row))] for row in rows], device=device), lengths


def right_behind(before: Tensor, after: Tensor, lengths: list[int]) -> Tensor:
    """[B, P + k, D]: the first `lengths` of `before` [B, P, D], `after` [B, k, D] behind them, and padding last."""
    (width, count), joined = (before.shape[1], after.shape[1]), torch.cat([before, after], 1)
    if min(lengths) == width or not count:
        return joined
    start = torch.tensor(lengths, device=joined.device)[:, None]  # [B, 1]
    slot = torch.arange(joined.shape[1], device=joined.device)[None]
    # Row by row: the prefix, the codes right behind it, and the padding last, where nothing looks at it.
    order = torch.where(slot < start, slot, torch.where(slot < start + count, slot - start + width, width - 1))
    return joined.take_along_dim(order[..., None], 1)


def slot(place: Place, line: int) -> Place:
    """How many codes, and ends of lines of so many codes, stand before the code of this place; no lines where it is 0.

    >>> [slot(place, 3) for place in range(7)]
    [0, 1, 2, 4, 5, 6, 8]
    """
    return place + place // line if line else place

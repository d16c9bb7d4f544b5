"""Attention of rows that go on from the same prefix: its keys and values are read once for all of them, not for each.

The scores of a row are those of its prefix, for which the queries of all its rows are multiplied at once, and those of
what it has drawn itself, side by side under one softmax. So the result is that of a cache in which every row has a copy
of its prefix, up to rounding. Hydragen (Juravsky et al., arXiv:2402.05099) does so with two softmaxes.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rwk.policy_opt.prefix import Prefix

LEAST_SAVED = 64
"""Keys that need not be read, for each row, from which on this is faster than one fused kernel."""
NAME = "rwk_shared_prefix"
"""Of the attention, among those of transformers."""


@dataclass(frozen=True)
class _Bunch:
    """Rows whose prefixes have equally many rows each."""

    prefixes: Tensor
    """[u] long."""
    rows: Tensor | slice
    """[u * g] of the rows, by prefix."""
    shut: Tensor | None
    """[u, 1, 1, P] true at padding."""

    def gathered(self, rows: Tensor, width: int) -> Tensor:
        """[u, heads, g * n, width] of [rows, heads, n, width]."""
        heads, count = rows.shape[1:3]
        return rows[self.rows].view(len(self.prefixes), -1, heads, count, width).transpose(1, 2).flatten(2, 3)

    def scattered(self, bunch: Tensor, count: int) -> Tensor:
        """[u * g, heads, n, width] of [u, heads, g * n, width]."""
        return bunch.unflatten(2, (-1, count)).transpose(1, 2).flatten(0, 1)


def shares(causal_lm: Any, prefix: Prefix, source: Sequence[int]) -> bool:
    """Whether rows that go on from the prefixes `source` are drawn faster so, and the transformer lets them.

    It is measured on a CPU alone. The transformer takes its attention from transformers' registry and sees all keys.
    """
    decoder = getattr(causal_lm, "get_decoder", None)
    config = None if decoder is None else decoder().config
    plain = getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
    own = any(getattr(config, name, None) for name in ("sliding_window", "attn_logit_softcapping"))
    saved = sum(prefix.lengths[row] for row in source) - sum(prefix.lengths[row] for row in set(source))
    return plain and not own and prefix.hidden.device.type == "cpu" and saved >= LEAST_SAVED * len(source)


def shared_cache(prefix: Prefix, source: Sequence[int], steps: int) -> Any:
    """transformers' `Cache` of rows that continue the prefixes `source`, with room for all `steps`; see `attending`."""
    from transformers.cache_utils import Cache

    bunches = _bunches(prefix, source)
    pairs = zip(prefix.layers[::2], prefix.layers[1::2], strict=True)
    return Cache(layers=[_shared_layer()(keys, values, bunches, len(source), steps) for keys, values in pairs])


@contextmanager
def attending(decoder: Any, cache: Any) -> Iterator[None]:
    """The attention that such a cache asks for, and the transformer's own at the end."""
    if not any(isinstance(layer, _shared_layer()) for layer in getattr(cache, "layers", [])[:1]):
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    own = decoder.config._attn_implementation
    decoder.config._attn_implementation = NAME
    try:
        yield
    finally:
        decoder.config._attn_implementation = own


def _bunches(prefix: Prefix, source: Sequence[int]) -> list[_Bunch]:
    device, width, many = prefix.hidden.device, max(prefix.lengths), Counter(source)
    made = []
    for count in dict.fromkeys(many.values()):
        prefixes = [place for place in many if many[place] == count]
        rows = [row for place in prefixes for row, its in enumerate(source) if its == place]
        whole = rows == list(range(rows[0], rows[0] + len(rows)))
        lengths = torch.tensor([prefix.lengths[place] for place in prefixes], device=device)[:, None, None, None]
        made.append(
            _Bunch(
                torch.tensor(prefixes, device=device),
                slice(rows[0], rows[0] + len(rows)) if whole else torch.tensor(rows, device=device),
                torch.arange(width, device=device) >= lengths if lengths.min() < width else None,
            )
        )
    return made


def _attend(
    module: Any, query: Tensor, layer: Any, _: Any, mask: None, *, scaling: float | None = None, **__: Any
) -> tuple[Tensor, None]:
    """[rows, 1, heads, size] of queries [rows, heads, 1, size]; the layer of the cache stands where keys would."""
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    return layer.attended(query * scaling).transpose(1, 2), None


@functools.cache
def _shared_layer() -> Any:
    """The class of such a layer of the cache; made on first use, since transformers is slow to import."""
    from transformers.cache_utils import DynamicLayer

    dynamic: Any = DynamicLayer  # its methods carry no types

    class SharedLayer(dynamic):  # type: ignore[misc]
        def __init__(self, keys: Tensor, values: Tensor, bunches: list[_Bunch], rows: int, steps: int) -> None:
            super().__init__()
            _, heads, self.width, size = keys.shape
            self.bunches = [(bunch, keys[bunch.prefixes], values[bunch.prefixes]) for bunch in bunches]
            self.room = [keys.new_empty([rows, heads, steps, size]), values.new_empty([rows, heads, steps, size])]
            self.filled = 0
            self.is_initialized = True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
            start, self.filled = self.filled, self.filled + key_states.shape[2]
            self.room[0][:, :, start : self.filled] = key_states
            self.room[1][:, :, start : self.filled] = value_states
            return self, self

        def get_seq_length(self) -> int:
            return self.width + self.filled

        def attended(self, query: Tensor) -> Tensor:
            """[rows, heads, 1, size] of scaled queries; heads that share keys are queries of one head."""
            own, values = (room[:, :, : self.filled] for room in self.room)
            query = query.reshape(len(query), own.shape[1], -1, own.shape[3])  # [rows, key heads, n, size]
            rows, heads, count, size = query.shape
            scores = query.new_empty([rows, heads, count, self.width + self.filled])
            scores[..., self.width :] = query @ own.transpose(2, 3)
            for bunch, keys, _ in self.bunches:
                part = bunch.gathered(query, size) @ keys.transpose(2, 3)  # [u, key heads, g * n, P]
                if bunch.shut is not None:
                    part = part.masked_fill_(bunch.shut, torch.finfo(part.dtype).min)
                scores[bunch.rows, :, :, : self.width] = bunch.scattered(part, count)
            weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
            made = weights[..., self.width :] @ values
            for bunch, _, values in self.bunches:
                part = bunch.gathered(weights[..., : self.width], self.width) @ values
                made[bunch.rows] += bunch.scattered(part, count)
            return made.reshape(rows, heads * count, 1, size)

    return SharedLayer

"""Attention of rows that go on from the same prefix: its keys and values are read once for all, not for each row.

What a row sees is the mean of what it sees of its prefix, for which the queries of all its rows are multiplied at once,
and of what it has drawn itself, each with the weight that a softmax over both gives it. So the result is that of a
cache in which every row has a copy of its prefix, up to rounding: Hydragen (Juravsky et al., arXiv:2402.05099).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rwk.policy_opt.lengths import parted
from rwk.policy_opt.prefix import Prefix

LEAST_SAVED = 64
"""Keys that need not be read, for each row, from which on this is faster than one fused kernel."""
ANOTHER = 1 << 19
"""Numbers in the keys that queries of a layer are multiplied with, as many as take as long as another bunch."""
NAME = "rwk_shared_prefix"
"""Of the attention, among those of transformers."""


@dataclass(frozen=True)
class _Bunch:
    """Rows whose prefixes have equally many rows each, and are read padded to one length."""

    prefixes: Tensor
    """[u] long."""
    width: int
    """P, of the longest of them."""
    rows: Tensor | slice
    """[u * g] of the rows, by prefix."""
    shut: Tensor | None
    """[u, 1, 1, P] to add to the scores: shuts padding."""

    def gathered(self, rows: Tensor) -> Tensor:
        """[u, heads, g * n, ...] of [rows, heads, n, ...]."""
        by_prefix: Tensor = rows[self.rows].unflatten(0, (len(self.prefixes), -1))
        return by_prefix.transpose(1, 2).flatten(2, 3)

    def scattered(self, bunch: Tensor, count: int) -> Tensor:
        """[u * g, heads, n, ...] of [u, heads, g * n, ...]."""
        by_row: Tensor = bunch.unflatten(2, (-1, count))
        return by_row.transpose(1, 2).flatten(0, 1)


def shares(causal_lm: Any, prefix: Prefix, source: Sequence[int]) -> bool:
    """Whether rows that go on from the prefixes `source` are drawn faster so, and the transformer lets them.

    It is measured on a CPU alone. The transformer says `shares_prefix` and asks the cache's layers itself, or takes its
    attention from transformers' registry and sees all keys.
    """
    saved = sum(prefix.lengths[row] for row in source) - sum(prefix.lengths[row] for row in set(source))
    pays = prefix.hidden.device.type == "cpu" and saved >= LEAST_SAVED * len(source)
    return pays and (_asks(causal_lm) or _registered(causal_lm))


def _asks(causal_lm: Any) -> bool:
    return bool(getattr(causal_lm, "shares_prefix", False))


def _registered(causal_lm: Any) -> bool:
    decoder = getattr(causal_lm, "get_decoder", None)
    config = None if decoder is None else decoder().config
    own = any(getattr(config, name, None) for name in ("sliding_window", "attn_logit_softcapping"))
    return getattr(config, "_attn_implementation", None) in ("sdpa", "eager") and not own


def shared_cache(prefix: Prefix, source: Sequence[int], steps: int) -> Any:
    """transformers' `Cache` of rows that continue the prefixes `source`, with room for all `steps`; see `attending`."""
    from transformers.cache_utils import Cache

    bunches = _bunches(prefix, source)
    pairs = zip(prefix.layers[::2], prefix.layers[1::2], strict=True)
    return Cache(layers=[_shared_layer()(keys, values, bunches, len(source), steps) for keys, values in pairs])


@contextmanager
def attending(causal_lm: Any) -> Iterator[None]:
    """The attention that such a cache asks for, and the transformer's own at the end."""
    if _asks(causal_lm):
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    config = causal_lm.get_decoder().config
    own, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = own


def _bunches(prefix: Prefix, source: Sequence[int]) -> list[_Bunch]:
    """Prefixes with equally many rows each, of lengths that are worth being padded to one."""
    many, made = Counter(source), []
    for count in dict.fromkeys(many.values()):
        alike = [place for place in many if many[place] == count]
        another = ANOTHER / (count * prefix.layers[0].shape[1] * prefix.layers[0].shape[3])
        parts = parted([prefix.lengths[place] for place in alike], another)
        made += [_bunch(prefix, source, [alike[place] for place in part]) for part in parts]
    return made


def _bunch(prefix: Prefix, source: Sequence[int], prefixes: list[int]) -> _Bunch:
    device = prefix.hidden.device
    rows = [row for place in prefixes for row, its in enumerate(source) if its == place]
    whole = rows == list(range(rows[0], rows[0] + len(rows)))
    lengths = torch.tensor([prefix.lengths[place] for place in prefixes], device=device)
    padding = torch.arange(int(lengths.max()), device=device) >= lengths[:, None, None, None]  # [u, 1, 1, P]
    shut = torch.zeros(padding.shape, dtype=prefix.hidden.dtype, device=device).masked_fill(padding, -math.inf)
    return _Bunch(
        torch.tensor(prefixes, device=device),
        padding.shape[3],
        slice(rows[0], rows[0] + len(rows)) if whole else torch.tensor(rows, device=device),
        shut if padding.any() else None,
    )


def _attend(
    module: Any, query: Tensor, layer: Any, _: Any, mask: None, *, scaling: float | None = None, **__: Any
) -> tuple[Tensor, None]:
    """[rows, 1, heads, size] of queries [rows, heads, 1, size]; the layer of the cache stands where keys would."""
    return layer.attended(query, query.shape[3] ** -0.5 if scaling is None else scaling).transpose(1, 2), None


def _softmax(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """[b, heads, s, size] and [b, heads, s, 1]: what queries see of keys, and the log of the sum of their weights."""
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # that of torch's own function
    made, weight = attention(query, keys, values, attn_mask=mask, scale=scale)
    return made, weight[..., None]


@functools.cache
def _shared_layer() -> Any:
    """The class of such a layer of the cache; made on first use, since transformers is slow to import."""
    from transformers.cache_utils import DynamicLayer

    dynamic: Any = DynamicLayer  # its methods carry no types

    class SharedLayer(dynamic):  # type: ignore[misc]
        def __init__(self, keys: Tensor, values: Tensor, bunches: list[_Bunch], rows: int, steps: int) -> None:
            super().__init__()
            _, heads, self.width, size = keys.shape
            cut = [(bunch.prefixes, slice(None), slice(bunch.width)) for bunch in bunches]
            self.bunches = [(bunch, keys[part], values[part]) for bunch, part in zip(bunches, cut, strict=True)]
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

        def attended(self, query: Tensor, scale: float) -> Tensor:
            """[rows, heads, 1, size] of queries; heads that share keys are queries of one head."""
            keys, values = (room[:, :, : self.filled] for room in self.room)
            split = query.reshape(len(query), keys.shape[1], -1, query.shape[3])  # [rows, key heads, n, size]
            made, weight = _softmax(split, keys, values, None, scale)
            before, its_weight = torch.empty_like(made), torch.empty_like(weight)
            for bunch, keys, values in self.bunches:
                bunch_made, bunch_weight = _softmax(bunch.gathered(split), keys, values, bunch.shut, scale)
                before[bunch.rows] = bunch.scattered(bunch_made, split.shape[2])
                its_weight[bunch.rows] = bunch.scattered(bunch_weight, split.shape[2])
            return made.lerp(before, (its_weight - weight).sigmoid().to(made.dtype)).reshape(query.shape)

    return SharedLayer

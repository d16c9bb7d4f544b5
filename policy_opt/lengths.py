"""Rows of unequal length in parts: padding is read and multiplied like anything else, and so is another pass.

The parts are those that cost least. What another pass costs is told in padded tokens: of a network that reads whole
rows, tokens multiplied by all weights; of one step of a draw, keys and values read once more. Both come from rough
figures of the machine, which need to be right within a factor of two or so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn


class Machine(NamedTuple):
    """What a device does in a second, and what it waits for."""

    layer: float
    """Seconds that the calls of one layer take, however few rows there are."""
    products: float
    """Multiplications and additions a second of large products, each counted."""
    traffic: float
    """Bytes a second that it reads."""


CPU = Machine(layer=5e-4, products=5e10, traffic=1e10)
"""One core of a server with AVX-512: a layer of transformers of width 192 took 0.7 ms for one token, 17 us for each of
many (2026-11-29)."""
GPU = Machine(layer=4e-4, products=4e14, traffic=3e12)
"""Of the size of an H100, which waits for the calls of a small layer."""


def machine(device: str) -> Machine:
    """Figures of a kind of device, as torch names it."""
    return CPU if device == "cpu" else GPU


class Size(NamedTuple):
    """Of a transformer."""

    layers: int
    weights: int
    """Of its linear layers."""
    bytes: int
    """Of these."""

    @classmethod
    def of(cls, causal_lm: nn.Module) -> Size:
        """That of a language model without its heads, where it tells them apart."""
        decoder = getattr(causal_lm, "get_decoder", lambda: causal_lm)()
        linear = [part.weight for part in decoder.modules() if isinstance(part, nn.Linear)]
        layers = max((len(part) for part in decoder.modules() if isinstance(part, nn.ModuleList)), default=1)
        return cls(layers, sum(weight.numel() for weight in linear), sum(weight.nbytes for weight in linear))


def parts_to_read(causal_lm: nn.Module, lengths: Sequence[int], device: str, passes: float = 1.0) -> list[list[int]]:
    """Parts, as `parted` has them, in which a language model reads whole rows; weights that are sharded allow one.

    Args:
        device: its kind, as torch names it.
        passes: that another part is of, over the share of its padding that is read in them.
    """
    if len(set(lengths)) == 1 or in_step(causal_lm):
        return [list(range(len(lengths)))]
    return parted(lengths, passes * tokens_of_a_pass(Size.of(causal_lm), machine(device)))


def parts_to_draw(causal_lm: nn.Module, lengths: Sequence[int], device: str, key: int) -> list[list[int]]:
    """Parts likewise in which it takes the next token of rows; `key` is as in `keys_of_a_pass`."""
    if len(set(lengths)) == 1:
        return [list(range(len(lengths)))]
    return parted(lengths, keys_of_a_pass(Size.of(causal_lm), key, machine(device)))


def in_step(module: nn.Module) -> bool:
    """Whether processes must call the layers equally often, since weights are gathered for each call (FSDP2)."""
    return any(hasattr(part, "unshard") for part in module.modules())


def tokens_of_a_pass(size: Size, device: Machine) -> float:
    """Tokens that cost as much as another pass over whole rows, in which the weights are read and the layers called.

    >>> tokens_of_a_pass(Size(layers=2, weights=500, bytes=2000), Machine(layer=1.0, products=1000.0, traffic=2000.0))
    3.0
    """
    return _seconds(size, device) * device.products / (2 * max(1, size.weights))


def keys_of_a_pass(size: Size, key: int, device: Machine) -> float:
    """Keys of a row that cost as much as another pass in a step of a draw, likewise.

    Args:
        key: bytes of the key and the value of one token, of all layers.

    >>> keys_of_a_pass(Size(layers=2, weights=500, bytes=2000), 20, Machine(layer=1.0, products=1.0, traffic=2000.0))
    300.0
    """
    return _seconds(size, device) * device.traffic / key


def parted(lengths: Sequence[int], another: float) -> list[list[int]]:
    """Numbers of the rows of each part, so that rows times longest row, summed over parts, and the passes cost least.

    Rows of one length stay together, and where one part is best the rows are in their own order.

    Args:
        another: what a part more costs, in tokens.

    >>> parted([10, 209, 10], another=200)
    [[0, 2], [1]]
    >>> parted([10, 209, 10], another=400)
    [[0, 1, 2]]
    """
    rows: dict[int, list[int]] = {length: [] for length in sorted(set(lengths))}
    for row, length in enumerate(lengths):
        rows[length].append(row)
    # best[k]: least cost of all rows of the k shortest lengths, and where its last part begins.
    known, best = list(rows), [(0.0, 0)]
    for end, length in enumerate(known, 1):
        count, found = 0, (math.inf, 0)
        for begin in range(end - 1, -1, -1):
            count += len(rows[known[begin]])
            found = min(found, (best[begin][0] + count * length + another, begin))
        best.append(found)
    parts: list[list[int]] = []
    end = len(known)
    while end:
        begin = best[end][1]
        parts.insert(0, sorted(row for length in known[begin:end] for row in rows[length]))
        end = begin
    return parts


def _seconds(size: Size, device: Machine) -> float:
    """That another pass takes where it has next to nothing to do."""
    return size.layers * device.layer + size.bytes / device.traffic

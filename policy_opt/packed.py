"""Linear layers laid out once for the processor, for as long as their weights stay as they are.

A generator multiplies a few rows by the same weights, hundreds of times. On a CPU torch's plain product of few rows
takes half of what the processor can do; oneDNN's, of weights in blocks as its kernel reads them, takes most of it. The
two operations are those of torch's own compiler, which bakes the weights into what it makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LEAST_ROWS = 512
"""Rows that a layer reads, all calls together, for which laying it out pays."""
LEAST_WEIGHTS = 1 << 17
"""Of a layer; with a smaller one torch is as fast, or faster."""
MOST_BYTES = 1 << 33
"""Of the layers that would be laid out, which takes as much memory again."""


@contextmanager
def packed(module: nn.Module, *, rows: int, calls: int) -> Iterator[None]:
    """Faster linear layers on a CPU until the end, for code without gradient that changes no weight.

    Each is laid out when it is first called, in memory of its own. What it makes differs by rounding alone. Layers of
    other devices and types, small, sharded and changed ones stay as they are; so do all, where they are too large
    together or are to read few rows.

    Args:
        rows: that a layer reads at once.
        calls: of every layer.
    """
    layers = [part for part in module.modules() if isinstance(part, nn.Linear) and _packable(part)]
    if rows * calls < LEAST_ROWS or sum(layer.weight.nbytes for layer in layers) > MOST_BYTES:
        layers = []
    for layer in layers:
        layer.forward = _Packed(layer, rows)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def outputs(layer: nn.Linear, hidden: Tensor, which: slice) -> Tensor:
    """[..., K] some of the layer's outputs for hidden states [..., D], and no work for the others."""
    forward = vars(layer).get("forward")
    if isinstance(forward, _Packed):
        return forward(hidden, which)
    return nn.functional.linear(hidden, layer.weight[which], None if layer.bias is None else layer.bias[which])


def lays_out(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU has a layout of its own for weights of a type."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    half = dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 or half


class _Packed:
    """The forward of a linear layer whose weights, or some rows of them, are laid out on first use."""

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        self.layer, self.rows = layer, rows
        self.kept: dict[tuple[int | None, int | None], tuple[Tensor, Tensor | None]] = {}

    def __call__(self, hidden: Tensor, which: slice = slice(None)) -> Tensor:
        weight, bias, key = self.layer.weight, self.layer.bias, (which.start, which.stop)
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or hidden.dtype != weight.dtype:
            return nn.functional.linear(hidden, weight[which], None if bias is None else bias[which])
        if key not in self.kept:
            laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach()[which], self.rows)
            self.kept[key] = laid_out, None if bias is None else bias.detach()[which]
        return torch.ops.mkldnn._linear_pointwise.default(hidden, *self.kept[key], "none", [], "")  # type: ignore[no-any-return]


def _packable(part: nn.Linear) -> bool:
    if type(part) is not nn.Linear or "forward" in vars(part) or type(part.weight) is not nn.Parameter:
        return False
    holds = part.weight.device.type == "cpu" and lays_out(part.weight.dtype)
    return holds and part.weight.numel() >= LEAST_WEIGHTS

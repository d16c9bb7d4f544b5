"""Attention of torch's own layers at the speed of half precision on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def quick_in_half(network: nn.Module) -> nn.Module:
    """The network, its attentions given their input as `by_length` lays it out."""
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(by_length)
    return network


def by_length(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Lays an attention's input [B, L, E] out in memory as [L, B, E] under CPU autocast, of the same values.

    torch swaps the two and multiplies by the weights; of rows that do not lie so it first copies the weights for each
    image, which made bfloat16 half as fast as float32.
    """
    x = given[0]
    if not torch.is_autocast_enabled("cpu") or x.device.type != "cpu" or any(part is not x for part in given[1:3]):
        return None
    x = x.transpose(0, 1).contiguous().transpose(0, 1)
    return (x, x, x, *given[3:])

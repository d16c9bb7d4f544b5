"""Half precision on a CPU: the values are torch's own, the memory lies as torch multiplies fast."""

from __future__ import annotations

import torch
from torch import nn

from rwk.adapters.attention import by_length, quick_in_half


def test_laid_out_under_autocast_alone() -> None:
    """In bfloat16 what torch is given lies row by row once it has swapped batch and length; in float32 it is left."""
    layer = nn.MultiheadAttention(32, 4, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    assert by_length(layer, (x, x, x)) is None
    with torch.autocast("cpu", torch.bfloat16):
        plain, _ = layer(x, x, x, need_weights=False)
        query, key, value = by_length(layer, (x, x, x)) or (x, x, x)
        quick, _ = quick_in_half(layer)(x, x, x, need_weights=False)
        assert by_length(layer, (x, x + 1, x)) is None  # not attention of one thing to itself
    assert query is key is value
    assert query.transpose(0, 1).is_contiguous()
    assert not x.transpose(0, 1).is_contiguous()
    assert torch.equal(query, x)
    assert torch.equal(plain, quick)

"""How a test compares an adapter with official scores, and tells what it saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def agree(
    record: Callable[[str, object], None],
    adapter: str,
    recorded: dict[str, Any],
    values: Tensor,
    official: Tensor,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    """Raises AssertionError unless the adapter's scores are the official ones.

    Args:
        record: pytest's `record_property`; `benchmarks/parity.py` makes its table of what it gets, failed or not.
        adapter: registered name.
        recorded: holds the official `package` and the `versions` that it ran with.
        values: the adapter's scores.
        official: as many, of the same images and prompts.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """
    off = (values - official).abs().double()
    row = {
        "adapter": adapter,
        "package": recorded["package"],
        "versions": recorded["versions"],
        "scores": off.numel(),
        "max": off.max().item(),
        "mean": off.mean().item(),
        "spread": (official.max() - official.min()).item(),
        "tolerance": f"{atol:g}" if atol else f"{rtol:g} relative",
    }
    record("parity", row)
    torch.testing.assert_close(values, official, rtol=rtol, atol=atol)

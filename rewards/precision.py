"""What rewards compute in: networks in the precision that is asked for, their heads in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from rwk.rewards.base import Reward

Precision = Literal["published", "float32", "bfloat16", "float16"]
"""`published`: as each reward is loaded where nothing is said, float32 unless its weights are published otherwise."""
HALF = ("bfloat16", "float16")
UNMEASURED = "what half precision moves is not measured yet; benchmarks/drift.py does"
"""`precision_note` of a reward whose network follows and that has no `drift`."""


def cast(reward: Reward, precision: Precision) -> torch.autocast:
    """In which the network of a reward computes in half precision, where that is asked for and the reward takes it."""
    half = reward.casts and precision in HALF
    return torch.autocast(reward.device.type, getattr(torch, precision) if half else None, enabled=half)


def kept_precision(rewards: Mapping[str, Reward], precision: Precision) -> list[str]:
    """A sentence for each reward, by name, whose network does not compute in that half precision."""
    if precision not in HALF:
        return []
    return [
        f"--precision {precision} changes nothing of {name}: {reward.precision_note}."
        for name, reward in rewards.items()
        if reward.precision_note and not reward.casts
    ]


def overflow(reward: Reward, precision: Precision, value: float) -> str:
    """Why a score that is no number is none, where half precision is to blame; else ""."""
    if reward.casts and precision in HALF and math.isnan(value):
        return f"the network gives no number in {precision}; take another --precision"
    return ""


def in_float32(head: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """What a head makes of states in float32, within `cast` too."""
    with torch.autocast(states.device.type, enabled=False):
        return head(wide(states))


def wide(states: Tensor) -> Tensor:
    """States of half precision in float32; others, of float64 too, as they are."""
    return states.float() if states.dtype in (torch.bfloat16, torch.float16) else states

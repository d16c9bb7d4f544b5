"""What a training run on preferences goes by: its processes, rows and rates, and what its result depends on."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from rwk.rewards.configs import RewardTraining
from rwk.rewards.data import PreferenceDataset

LEARNING_RATES = {"probe": 1e-3, "lora": 3e-4, "full": 3e-5}
_FREE = ("data", "out", "resume", "name", "micro_batch", "checkpoint_every")
"""Settings that a resumed run may change, because the result does not depend on them but by rounding."""


def rows(step: int, count: int, batch_size: int, seed: int) -> list[int]:
    """[batch_size] indices that a step takes: the next ones of an endless row of shuffled passes over the data."""
    found = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, index = divmod(position, count)
        found.append(_order(epoch, count, seed)[index])
    return found


@functools.lru_cache(maxsize=2)
def _order(epoch: int, count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def learning_rate(config: RewardTraining, step: int, steps: int) -> float:
    """The rate of a step, counted from 0: a linear rise, then what `schedule` says."""
    largest = config.learning_rate or LEARNING_RATES[config.mode]
    rise = max(1, round(config.warmup * steps))
    if step < rise:
        return largest * (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return largest * left[config.schedule]


def optimizer(parameters: Sequence[nn.Parameter], config: RewardTraining) -> torch.optim.AdamW:
    """AdamW that decays matrices alone."""
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, config.beta2))


def fingerprint(
    config: RewardTraining, train: PreferenceDataset, valid: PreferenceDataset, seed: int
) -> dict[str, Any]:
    """All that the result of a run depends on."""
    settings = {key: value for key, value in asdict(config).items() if key not in _FREE}
    return settings | {"seed": seed, "preferences": train.digest(), "held-out preferences": valid.digest()}


def accelerator(device: str) -> Any:
    """accelerate's handle on the processes; raises ValueError for launchers that split or scale what we step by."""
    from accelerate import Accelerator

    made = Accelerator(cpu=device == "cpu")
    if made.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU") or made.mixed_precision in ("fp16", "fp8"):
        raise ValueError(
            f"train-reward runs on one process or on several alike (DDP), in float32 or bfloat16, got "
            f"{made.distributed_type.value} in {made.mixed_precision}; launch it without FSDP, DeepSpeed or fp16."
        )
    return made

"""Learning with weights that are spread over the processes (FSDP2), while each draws with whole ones.

A generator draws hundreds of steps with every weight, so each process keeps it whole. What is sharded and learns is a
twin of it, and after each update the generator takes over the twin's weights. Gradients and the state of AdamW, three
times the weights, and the twin itself are so divided by the number of processes, and no drawing waits for the others.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from typing import Any, Literal

import torch
from torch import nn

from rwk.policy_opt.policy import Policy

Sharding = Literal["none", "fsdp", "zero2"]
"""What is spread over the processes: nothing, all that learns, or gradients and the state of AdamW."""


def sharding() -> Sharding:
    """What the launcher of this process asks for."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "fsdp"
    return "zero2" if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "2" else "none"


def learner_of(policy: Policy) -> Policy:
    """What a trainer is given: the policy, or where `accelerate launch` asks for FSDP its twin, which is sharded.

    Raises:
        ValueError: for stage 3 of DeepSpeed, which leaves no process with whole weights.
    """
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise ValueError(
            "learning needs stage 2 of DeepSpeed or FSDP2, got stage 3; take one of policy_opt/accelerate."
        )
    if sharding() != "fsdp":
        return policy
    if any(not value.requires_grad for value in policy.trained.parameters()):
        raise ValueError(
            "FSDP needs a lora_rank of 0 and no adapters of an earlier run, got weights that do not learn; take "
            "adapters with DDP."
        )
    twin = copy.deepcopy(policy)  # with the generator that its statistics are of
    twin.finer = {}
    twin._no_split_modules = layers_of(twin.trained)
    return twin


def layers_of(module: nn.Module) -> list[str]:
    """Name of the class of which a module has most in a row, to shard by; none where it has no list of parts."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    counted = Counter(type(layer).__name__ for layer in max(lists, key=len, default=()))
    return [name for name, _ in counted.most_common(1)]


def taking_over(policy: Policy, twin: Policy) -> Any:
    """A callback for the twin's trainer that gives its weights to the policy when it begins and after each update."""
    from transformers import TrainerCallback

    class TakingOver(TrainerCallback):
        @torch.no_grad()
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for own, learnt in zip(policy.parameters(), twin.parameters(), strict=True):
                value: Any = learnt
                own.copy_(value.full_tensor() if hasattr(value, "full_tensor") else value)

        on_train_begin = on_step_end  # where a checkpoint was loaded

    return TakingOver()

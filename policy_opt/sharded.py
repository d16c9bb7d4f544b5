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

Sharding = Literal["none", "fsdp", "zero1", "zero2"]
"""What is spread over the processes: nothing, all that learns, the state of AdamW, or gradients too."""


def sharding() -> Sharding:
    """What the launcher of this process asks for."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return "fsdp"
    stages: dict[str, Sharding] = {"1": "zero1", "2": "zero2"}
    return stages.get(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", ""), "none")


def learner_of(policy: Policy) -> Policy:
    """What a trainer is given: the policy, or where `accelerate launch` asks for FSDP its twin, which is sharded.

    Under DeepSpeed, whose engine stays with the module that it wraps, it is another policy around the same weights, so
    that the engine of a round goes with its trainer.

    Raises:
        ValueError: for what the launcher asks for and cannot be.
    """
    check_launch(policy.trained)
    if by_deepspeed():
        return Policy(policy.trained, policy.statistics, policy.prompts, policy.sampling, policy.recipes)
    if sharding() != "fsdp":
        return policy
    twin = copy.deepcopy(policy)  # with the generator that its statistics are of
    twin.finer = {}
    twin._no_split_modules = layers_of(twin.trained)
    return twin


def by_deepspeed() -> bool:
    """Whether `accelerate launch` asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


def held_in_bfloat16(policy: Policy) -> bool:
    """Whether DeepSpeed is to be told of bfloat16, in which it casts weights, and moves float32 masters of its own."""
    return by_deepspeed() and any(value.dtype == torch.bfloat16 for value in policy.parameters())


def check_launch(module: nn.Module, *, adapters: bool = False) -> None:
    """Raises ValueError where weights cannot learn in their precision, or not as the launcher asks for.

    Args:
        adapters: those of LoRA, in float32, are still to come.
    """
    kinds = {str(value.dtype).removeprefix("torch.") for value in module.parameters()}
    if "float16" in kinds:
        raise ValueError(
            "learning needs weights of float32 or bfloat16, got float16, in which small gradients become 0; load the "
            "generator in bfloat16, or save its checkpoint so."
        )
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed != "no":
        raise ValueError(
            f"learning goes on in the precision that the generator draws in, got a mixed precision of {mixed} from the "
            f"launcher; launch with --mixed_precision no, and load the generator in bfloat16 for that."
        )
    if sharding() == "fsdp" and (adapters or any(not value.requires_grad for value in module.parameters())):
        raise ValueError(
            "FSDP needs a lora_rank of 0 and no adapters of an earlier run, got weights that do not learn; take "
            "adapters with DDP."
        )
    if not by_deepspeed():
        return
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise ValueError(
            "learning needs stage 1 or 2 of DeepSpeed, or FSDP2, got stage 3, which leaves no process with whole "
            "weights to draw with; take one of policy_opt/accelerate."
        )
    kinds |= {"float32"} if adapters else set()
    if len(kinds) > 1:
        raise ValueError(
            f"DeepSpeed holds all weights in one precision, got {' and '.join(sorted(kinds))}; take DDP, or a "
            f"generator in float32."
        )


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

"""What the trainers of all algorithms are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwk.policy_opt.policy import Policy, World
from rwk.policy_opt.settings import Optimisation
from rwk.policy_opt.sharded import held_in_bfloat16

SCHEDULES = {"constant": "constant_with_warmup", "cosine_to_tenth": "cosine_with_min_lr"}
"""What transformers calls otherwise."""


def trainer_arguments(config: Optimisation, policy: Policy, folder: Path, place: World, *, rows: int) -> dict[str, Any]:
    """TRL's arguments that all algorithms share.

    Args:
        rows: images, or pairs, of one update over all processes.
    """
    own, rest = divmod(rows, place.size)
    micro = config.micro_batch or own
    if rest or own % micro:
        raise ValueError(
            f"{rows} rows per update must divide evenly, got {place.size} processes and a micro_batch of {micro}; "
            f"choose numbers that divide."
        )
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": own // micro,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": SCHEDULES.get(config.schedule, config.schedule),
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1} if config.schedule == "cosine_to_tenth" else None,
        "warmup_steps": config.warmup,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": config.seed,
        "save_strategy": "steps" if config.save_every else "no",
        "save_steps": config.save_every or 1,
        "save_total_limit": 2,  # the older one is there when a kill falls into writing the newer
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": place.device.type == "cpu",
        "bf16": held_in_bfloat16(policy),  # the generator chooses its own precision, for sampling and training
        "gradient_checkpointing": False,  # `policy.trainable` sees to it
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": True,
        "remove_unused_columns": False,
    }

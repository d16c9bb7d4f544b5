"""What of a trainer's log goes to the journal of a run, and under which names; and what else follows an update."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwk.policy_opt.journal import Journal

TRL_NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "kl": "kl_penalty",
    "clip_ratio/region_mean": "clip_fraction",
    "drift": "drift",
    "guidance_gap": "guidance_gap",
    "weight": "importance_weight",
    "capped": "importance_capped",
    "rewards/margins": "implicit_margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "logprob_won",
    "logps/rejected": "logprob_lost",
}
"""What is kept of TRL's log, and our names for it."""


def recorder(journal: Journal, before: int) -> Any:
    """A callback for a trainer that writes its log to the journal, and marks what checkpoints are whole.

    Args:
        before: updates of the trainers before this one, for the count in the journal.
    """
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **extra: Any) -> None:
            logs = extra["logs"]
            if "loss" in logs:  # else it is the summary at the end
                values = {ours: float(logs[name]) for name, ours in TRL_NAMES.items() if logs.get(name) is not None}
                journal.write(before + state.global_step, values)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "complete").touch()

    return Recorder()


def stopper(ends: Callable[[int], bool]) -> Any:
    """A callback for a trainer that calls `ends` after each update, before its log, and ends the run where it is true.

    Args:
        ends: takes the trainer's updates so far.
    """
    from transformers import TrainerCallback

    class Stopper(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = ends(state.global_step) or control.should_training_stop  # asked always

    return Stopper()

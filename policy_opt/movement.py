"""What share of its weights an early update of a run moves, on a sample of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rwk.policy_opt.guards import PATIENCE
from rwk.policy_opt.journal import Journal
from rwk.policy_opt.masters import HALF, masters_of

SAMPLE = 4096
"""Weights that are looked at, and one of each parameter in any case."""


def movement(trainer: Any, journal: Journal) -> Any:
    """A callback for a trainer that notes `moved`, a share, and `moved_in`, the type of the weights that AdamW moves.

    One update is looked at, an early one of the full learning rate, against the weights right before it: so a run that
    goes on from a checkpoint says what an unbroken one does.
    """
    from transformers import TrainerCallback

    class Movement(TrainerCallback):
        before: Tensor | None = None

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step + 1 == min(max(PATIENCE, args.warmup_steps + 1), state.max_steps):
                self.before = _sample(trainer)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.before is not None:
                moved = (_sample(trainer) != self.before).float().mean().item()
                journal.note(moved=moved, moved_in=_held_in(trainer))
                self.before = None

    return Movement()


def _sample(trainer: Any) -> Tensor:
    """[about SAMPLE] float32 of the weights that learn, as AdamW holds them in this process, spread evenly."""
    learns = {name: _own(p) for name, p in trainer.model.named_parameters() if p.requires_grad}
    stride = max(1, sum(value.numel() for value in learns.values()) // SAMPLE)
    masters = {name: _own(master)[::stride].clone() for name, master in masters_of(trainer)}
    return torch.cat([masters.get(name, value[::stride].float()) for name, value in learns.items()])


def _own(value: Any) -> Tensor:
    """[N] the part of a tensor that this process has."""
    own: Tensor = value.detach().to_local() if hasattr(value, "to_local") else value.detach()
    return own.flatten()


def _held_in(trainer: Any) -> str:
    """The type of the weights that learn, as AdamW holds them: that of half precision where one is held so."""
    masters = {name for name, _ in masters_of(trainer)}
    kinds = {p.dtype for name, p in trainer.model.named_parameters() if p.requires_grad and name not in masters}
    held = next((kind for kind in HALF if kind in kinds), torch.float32)
    return str(held).removeprefix("torch.")

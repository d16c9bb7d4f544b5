"""Weights that follow the policy while it learns: a reference that is brought up to it, and its running mean."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.draws import save_whole
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.policy import Policy, Statistics, World


class Follower:
    """Tensors that go a share of the way to the policy's after every so many updates; kept with its checkpoints."""

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        *,
        every: int,
        share: float,
        shown: Mapping[str, Tensor] | None = None,
    ) -> None:
        """
        Args:
            name: of its files, `NAME-STEP.safetensors` beside the checkpoints.
            tensors: what is moved, in place, by the names of the policy's state.
            every: updates between two moves.
            share: of the way that a move goes; 1 arrives.
            shown: by the same names, what is made equal to `tensors`, but for rounding, after each move.
        """
        self.name, self.tensors, self.every, self.share = name, dict(tensors), every, share
        self._shown = dict(shown or {})

    def follow(self, policy: Policy) -> None:
        """Makes one move."""
        with torch.no_grad():
            for name, value in policy.state_dict().items():
                self.tensors[name].lerp_(value.to(self.tensors[name].dtype), self.share)
        self._show()

    def give(self, policy: Policy) -> None:
        """Puts its tensors into the policy."""
        with torch.no_grad():
            for name, value in policy.state_dict().items():
                value.copy_(self.tensors[name])

    def restore(self, folder: Path, step: int) -> None:
        """Takes up what it was after that many updates."""
        if step:
            for name, value in load_file(self._file(folder, step)).items():
                self.tensors[name].data.copy_(value)
            self._show()

    def callback(self, policy: Policy, place: World) -> Any:
        """A callback for the policy's trainer, which moves it, and writes it before each checkpoint is written."""
        from transformers import TrainerCallback

        follower = self

        class Following(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step % follower.every == 0:
                    follower.follow(policy)
                if control.should_save and place.rank == 0:
                    follower._write(Path(args.output_dir), state.global_step)

        return Following()

    def _show(self) -> None:
        with torch.no_grad():
            for name, value in self._shown.items():
                value.copy_(self.tensors[name])

    def _write(self, folder: Path, step: int) -> None:
        """Writes its file, and removes those that no checkpoint is kept of."""
        folder.mkdir(parents=True, exist_ok=True)
        files = {int(path.stem.rpartition("-")[2]): path for path in folder.glob(f"{self.name}-*.safetensors")}
        for old in sorted(files)[:-2]:  # TRL keeps two checkpoints while it writes a third
            files[old].unlink()
        save_whole(
            {name: value.detach().contiguous() for name, value in self.tensors.items()}, self._file(folder, step)
        )

    def _file(self, folder: Path, step: int) -> Path:
        return folder / f"{self.name}-{step}.safetensors"


def moving_reference(config: Grpo, generator: Generator) -> tuple[Statistics | None, Follower | None]:
    """`statistics` of a copy of the generator that follows it, and what moves it; nothing where it stays fixed.

    What moves by a share is an average, in float32, since half precision cannot hold the small moves of one. TR-DPO
    (2024), arXiv:2404.09656, for the reference of a loss.
    """
    if not config.reference_every:
        return None, None
    moved = copy.deepcopy(generator)
    shown = {f"trained.{name}": value for name, value in moved.module.named_parameters() if value.requires_grad}
    share = config.reference_mix
    if share == 1:
        return moved.statistics, Follower("reference", shown, every=config.reference_every, share=share)
    tensors = {name: value.detach().float() for name, value in shown.items()}  # float32 ones are the same memory
    mover = Follower("reference", tensors, every=config.reference_every, share=share, shown=shown)
    return moved.statistics, mover


def average_of(config: Grpo, policy: Policy) -> Follower | None:
    """The exponential mean, in float32, of the policy's weights, from where they are now on; none where it is off."""
    if not config.ema:
        return None
    tensors = {name: value.to(torch.float32, copy=True) for name, value in policy.state_dict().items()}
    return Follower("average", tensors, every=1, share=1 - config.ema)

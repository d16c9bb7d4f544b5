"""AdamW for weights of half precision: what it moves is a float32 copy of them, and they are its rounding.

Next to 0.02 the numbers of bfloat16 lie 1.2e-4 apart, so an update of 1e-6 is rounded away, again and again, and
nothing is learnt of it. In the copy such updates add up until they reach the next number. Drawing and statistics see
the rounded weights alone, so both stay in the one precision that the generator was loaded in. Micikevicius et al.
(2018), arXiv:1710.03740, section 3.1; Rae et al. (2021), arXiv:2112.11446, appendix C2, for bfloat16.

Gradients stay in half precision, and become float32 one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

HALF = (torch.bfloat16, torch.float16)


class MasterAdamW(torch.optim.AdamW):
    """AdamW whose state holds, for each parameter of half precision, its `master` [as the parameter] and moments, all
    float32; for others it is AdamW."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        halves = [(p, p.grad, group) for p, group in self._halves() if p.grad is not None]
        for p, _, _ in halves:
            p.grad = None  # and is so passed over by AdamW's own
        super().step()
        for p, grad, group in halves:
            p.grad = grad
            self._step_half(p, grad, group)
        return loss

    def begin(self, p: Tensor, master: Tensor) -> None:
        """Begins with a float32 master of which the parameter is the rounding, unless it has one."""
        for own, group in self._halves():
            if own is p and "master" not in self.state[p]:
                self._begin(p, group, master)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As AdamW's, which gives the state the type of its parameter, where here it keeps its own."""
        super().load_state_dict(state_dict)
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for number, p in zip(numbers, chain.from_iterable(g["params"] for g in self.param_groups), strict=True):
            if p.dtype in HALF:
                for name, value in state_dict["state"].get(number, {}).items():
                    if name != "step":
                        self.state[p][name] = value.to(p.device, torch.float32)

    def _halves(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Parameters of half precision, each with its group."""
        return ((p, group) for group in self.param_groups for p in group["params"] if p.dtype in HALF)

    def _begin(self, p: Tensor, group: dict[str, Any], master: Tensor) -> None:
        counter = p.device if group["fused"] or group["capturable"] else None
        self.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=counter),
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.zeros_like(master),
            "master": master,
        }

    def _step_half(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if "master" not in self.state[p]:
            self._begin(p, group, p.detach().float())
        state = self.state[p]
        beta1, beta2 = group["betas"]
        adamw(
            [state["master"]],
            [grad.float()],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            foreach=False,
            capturable=group["capturable"],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
        p.copy_(state["master"])


def keep_masters(trainer: Any, begun: dict[str, Tensor]) -> None:
    """Has a trainer of transformers' take `MasterAdamW`, where weights of half precision learn.

    DeepSpeed gives it float32 copies of its own in their place, which are begun alike.

    Args:
        begun: float32 masters to begin with, whole, by name, which are taken out of it; others begin at their weights.
    """
    from transformers import TrainerCallback

    if not _halves_of(trainer.model):
        return
    _, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    trainer.optimizer_cls_and_kwargs = (MasterAdamW, options)

    class Begin(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step:  # a checkpoint has given them back
                begun.clear()
            optimizer = _optimizer_of(trainer)
            for name, p in _halves_of(trainer.model).items():
                if name in begun and optimizer:
                    optimizer.begin(p, _laid_out_as(p, begun.pop(name)))
                elif name in begun:
                    _set_deepspeed(p, begun.pop(name))

    trainer.add_callback(Begin())


def masters_of(trainer: Any) -> Iterator[tuple[str, Tensor]]:
    """By name, the float32 masters that a trainer's weights of half precision are roundings of, or the part of each
    that this process has; none where there are none. Under DeepSpeed all processes have to ask, and get each whole."""
    optimizer = _optimizer_of(trainer)
    for name, p in _halves_of(trainer.model).items():
        master = optimizer.state.get(p, {}).get("master") if optimizer else _of_deepspeed(p)
        if master is not None:
            yield name, master.detach()


def whole(masters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Masters in one piece on the CPU, in every process; all have to ask."""
    found: Iterable[tuple[str, Any]] = masters
    return {name: (v.full_tensor() if hasattr(v, "full_tensor") else v).cpu() for name, v in found}


def check_has_masters(checkpoint: Path, module: nn.Module) -> None:
    """Raises ValueError for a checkpoint of a run that moved weights of half precision themselves."""
    if not _halves_of(module):
        return
    one_piece, in_parts = checkpoint / "optimizer.pt", checkpoint / "optimizer_0"
    if one_piece.exists():
        states = torch.load(one_piece, map_location="cpu", mmap=True, weights_only=True)["state"].values()
        found = any("master" in state for state in states)
    elif in_parts.exists():
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        found = any(name.endswith(".master") for name in FileSystemReader(in_parts).read_metadata().state_dict_metadata)
    else:
        return  # DeepSpeed's, whose own masters they are
    if not found:
        raise ValueError(
            f"a run in half precision must have float32 copies of its weights to go on, got {checkpoint}, of a run "
            f"that kept none and so lost most of its small updates; begin it anew."
        )


def _halves_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of half precision that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad and p.dtype in HALF}


def _optimizer_of(trainer: Any) -> MasterAdamW | None:
    """The trainer's optimizer, out of accelerate's wrapper."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return optimizer if isinstance(optimizer, MasterAdamW) else None


def _of_deepspeed(p: Tensor) -> Tensor | None:
    """The master that DeepSpeed keeps of a parameter, in one piece, or None."""
    if not hasattr(p, "_hp_mapping"):
        return None
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(p)  # type: ignore[no-any-return]


def _set_deepspeed(p: Tensor, master: Tensor) -> None:
    """Makes a master that DeepSpeed keeps, in parts, equal to this one, of which the parameter is the rounding."""
    from deepspeed.utils import safe_set_full_fp32_param

    safe_set_full_fp32_param(p, master.to(p.device, torch.float32))


def _laid_out_as(p: Any, value: Tensor) -> Tensor:
    """A whole tensor on the device of a parameter, and spread over the processes as it is."""
    value = value.to(p.device, torch.float32)
    if not hasattr(p, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)

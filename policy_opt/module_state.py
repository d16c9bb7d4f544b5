"""The state of a network, to see that it is left alone, and to change a part of it for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def module_state(module: nn.Module) -> dict[str, Tensor | bool | None]:
    """Copies of all that may be changed unseen: parameters, buffers, gradients, what is trained, training modes."""
    state: dict[str, Tensor | bool | None] = {}
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        state[name] = value.detach().clone()
        state[f"gradient of {name}"] = None if value.grad is None else value.grad.detach().clone()
        state[f"requires_grad of {name}"] = value.requires_grad
    return state | {f"training mode of {name or 'the whole'}": part.training for name, part in module.named_modules()}


def changes(before: dict[str, Tensor | bool | None], after: dict[str, Tensor | bool | None]) -> list[str]:
    """Names of what differs between two states."""
    return [
        name
        for name in {**before, **after}
        if name not in before or name not in after or not _same(before[name], after[name])
    ]


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode for all parts, and each part's own mode back at the end."""
    modes = {part: part.training for part in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def moved(parameters: Sequence[Tensor], slopes: Sequence[Tensor | None], step: float) -> Iterator[None]:
    """Parameters moved by step times their slope, and back, bit for bit, at the end."""
    kept = [value.detach().clone() for value in parameters]
    with torch.no_grad():
        for value, slope in zip(parameters, slopes, strict=True):
            if slope is not None:
                value.add_(slope, alpha=step)
    try:
        yield
    finally:
        with torch.no_grad():
            for value, old in zip(parameters, kept, strict=True):
                value.copy_(old)


def _same(a: Tensor | bool | None, b: Tensor | bool | None) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b


@contextmanager
def without_dropout(module: nn.Module, *, recompute: bool = False) -> Iterator[None]:
    """Evaluation mode, and each part's own mode back at the end.

    Args:
        recompute: leave the layers that checkpoint their gradient in training mode, which is what makes them do so.

    Raises:
        ValueError: where such a layer would be computed again, after the end, with dropout.
    """
    training = [part for part in module.modules() if part.training]
    recomputing = recompute and any(getattr(part, "gradient_checkpointing", False) for part in training)
    if recomputing:
        rate = max(max(getattr(part, "attention_dropout", 0), getattr(part, "p", 0)) for part in training)
        if rate > 0:
            raise ValueError(
                f"gradient checkpointing needs a policy without dropout, got a rate of {rate}; set it to 0."
            )
    for part in training:
        part.training = recomputing and bool(getattr(part, "gradient_checkpointing", False))
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def recomputing(module: nn.Module) -> Iterator[None]:
    """Layers that in training mode compute again in the backward pass what they made, and do not keep it.

    Raises:
        ValueError: where no layer knows how.
    """
    parts: list[Any] = list(module.modules())
    flagged = [part for part in parts if getattr(part, "gradient_checkpointing", None) is False]
    if not flagged:
        raise ValueError(
            f"gradient_checkpointing needs layers that can be computed again, got {type(module).__name__}, which has "
            f"none; leave it out."
        )
    for part in parts:
        if getattr(part, "supports_gradient_checkpointing", False):  # a transformers model, by its newer name or older
            enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
            enable({"use_reentrant": False})
    for part in flagged:
        part.gradient_checkpointing = True
    try:
        yield
    finally:
        for part in flagged:
            part.gradient_checkpointing = False

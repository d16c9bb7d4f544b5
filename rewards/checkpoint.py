"""Where a training run stands, in one safetensors file that is either the old one or the new one, never half."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON state, and is on the disk when it returns."""
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    held = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(held, partial, metadata={"state": json.dumps(state)})
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save` was given."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        state: dict[str, Any] = json.loads(file.metadata()["state"])
    return tensors, state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of AdamW by the number of the parameter and its name, such as `optimizer.3.exp_avg`."""
    return {
        f"optimizer.{number}.{name}": value
        for number, held in optimizer.state_dict()["state"].items()
        for name, value in held.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives the optimizer the state that `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            number, _, name = rest.partition(".")
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})

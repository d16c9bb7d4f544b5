"""Low-rank changes that LoRA learnt, kept beside weights of half precision.

A number of bfloat16 has 8 bits: w + d is w again where d is less than about |w| / 512, and most of what a run learns is
smaller. So a merge would give back the generator as it began, but for a few weights. Where the weights are of half
precision, the changes stay beside them, float32 as they were learnt: so the generator draws and is judged, and its
folder holds beside its own files `adapter`, as peft writes changes of the layers of `Generator.module`.

A run that goes on from there learns changes of its own, or all weights, and leaves these as they are; changes of two
runs are put side by side in one pair of matrices. Weights of float32 take them up in their sum.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rwk.policy_opt.masters import HALF
from rwk.policy_opt.quiet import quiet

Changes = dict[str, tuple[Tensor, Tensor]]
"""Linear layer -> A [r, in] and B [out, r], float32: its weight is W + B A."""
ADAPTER = "adapter"
"""The folder that they lie in."""
_KEPT = "kept"
"""What peft calls changes that learn no more."""
_NAMES = "base_model.model.{}.lora_{}.weight"
"""What it calls their tensors in a file."""


def is_half(module: nn.Module) -> bool:
    """Whether a layer that has low-rank changes is of half precision."""
    return any(layer.base_layer.weight.dtype in HALF for layer in _layers(module).values())


@torch.no_grad()
def taken_off(module: nn.Module) -> Changes:
    """Takes all low-rank changes off, and gives them in one; none where there are none."""
    found: Changes = {}
    for name, layer in _layers(module).items():
        keys = layer.active_adapters
        down = torch.cat([layer.lora_A[key].weight for key in keys])
        up = torch.cat([layer.lora_B[key].weight * layer.scaling[key] for key in keys], dim=1)
        found[name] = down, up
        module.set_submodule(name, layer.base_layer)
    vars(module).pop("peft_config", None)
    return found


def put_on(module: nn.Module, changes: Changes) -> None:
    """Has a module without low-rank changes compute with these, which do not learn."""
    if not changes:
        return
    from peft import get_peft_model

    learns = {id(value) for value in module.parameters() if value.requires_grad}
    with torch.random.fork_rng(devices=[]), quiet():
        get_peft_model(module, _config(changes), adapter_name=_KEPT)
    _fill(module, changes)
    for value in module.parameters():
        value.requires_grad_(id(value) in learns)


def put_beside(adapted: Any, changes: Changes) -> None:
    """Has peft's model of changes that learn compute with these too, which do not."""
    if not changes:
        return
    learning = adapted.active_adapter
    with torch.random.fork_rng(devices=[]):
        adapted.add_adapter(_KEPT, _config(changes))
    _fill(adapted.get_base_model(), changes)
    adapted.base_model.set_adapter([_KEPT, learning])
    for name, value in adapted.named_parameters():
        if f".{_KEPT}." in name:
            value.requires_grad_(False)


@contextmanager
def left_out(adapted: Any, before: Changes) -> Iterator[None]:
    """Leaves out, for a while, what a model of peft learns, and no changes that it was given `before`."""
    if not before:
        with adapted.disable_adapter():
            yield
        return
    layers = _layers(adapted).values()
    learning = [name for name in adapted.base_model.active_adapter if name != _KEPT]
    try:
        for layer in layers:
            for name in learning:
                layer.set_scale(name, 0.0)  # to make others active would make them learn
        yield
    finally:
        for layer in layers:
            for name in learning:
                layer.set_scale(name, 1.0)


def load_on(module: nn.Module, folder: Path, name: str) -> None:
    """Puts on the changes that `written_beside` wrote to a folder, if it holds any.

    Args:
        name: of the generator, for the error.

    Raises:
        ValueError: where they are not changes of this module.
    """
    folder = folder / ADAPTER
    if not folder.is_dir():
        return
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        scale = config["lora_alpha"] / config["r"]
        changes: Changes = {
            layer: (tensors[_NAMES.format(layer, "A")], tensors[_NAMES.format(layer, "B")] * scale)
            for layer in config["target_modules"]
        }
        _check_fits(module, changes, len(tensors))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder} does not hold low-rank changes of {name}: {error}") from error
    put_on(module, changes)


@contextmanager
def written_beside(module: nn.Module, folder: Path) -> Iterator[None]:
    """Takes low-rank changes off while others write the module to a folder, and then writes them beside it."""
    changes = taken_off(module)
    try:
        yield
    finally:
        put_on(module, changes)
    _write(changes, folder / ADAPTER)


def take_over(module: nn.Module, tuned: nn.Module) -> None:
    """Gives a module the weights, and the low-rank changes, of another of its kind, which loses its changes."""
    taken_off(module)
    changes = taken_off(tuned)
    module.load_state_dict(tuned.state_dict())
    put_on(module, changes)


def _write(changes: Changes, folder: Path) -> None:
    """The changes alone, none of earlier ones."""
    shutil.rmtree(folder, ignore_errors=True)
    if not changes:
        return
    tensors = {
        _NAMES.format(name, letter): value.cpu().contiguous()
        for name, pair in changes.items()
        for letter, value in zip("AB", pair, strict=True)
    }
    _config(changes).save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")


def _layers(module: nn.Module) -> dict[str, Any]:
    """LoRA's layers by name."""
    return {name: part for name, part in module.named_modules() if hasattr(part, "lora_A")}


def _config(changes: Mapping[str, tuple[Tensor, Tensor]]) -> Any:
    from peft import LoraConfig

    rank = len(next(iter(changes.values()))[0])
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(changes), inference_mode=True)


@torch.no_grad()
def _fill(module: nn.Module, changes: Changes) -> None:
    layers = _layers(module)
    for name, (down, up) in changes.items():
        layers[name].lora_A[_KEPT].weight.copy_(down)
        layers[name].lora_B[_KEPT].weight.copy_(up)


def _check_fits(module: nn.Module, changes: Changes, tensors: int) -> None:
    """Raises ValueError, or AttributeError, where changes are not of the module's layers."""
    if not changes or tensors != 2 * len(changes):
        raise ValueError(f"{tensors} tensors for {len(changes)} layers")
    for name, (down, up) in changes.items():
        layer: Any = module.get_submodule(name)
        if (len(up), down.shape[1]) != tuple(layer.weight.shape):
            raise ValueError(f"{name} is {list(layer.weight.shape)}, got a change of {[len(up), down.shape[1]]}")

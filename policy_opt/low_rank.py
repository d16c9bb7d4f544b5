"""Low-rank changes that LoRA learnt, kept beside weights of half precision.

A number of bfloat16 has 8 bits: w + d is w again where d is less than about |w| / 512, and most of what a run learns is
smaller. So a merge would give back the generator as it began, but for a few weights. Where the weights are of half
precision, the changes stay beside them, float32 as they were learnt, and draw, are judged and saved so:

    config.json     the name that the generator is found by
    base/           what `Generator.save` writes of it without the changes
    adapter/        the changes, as peft writes them, of the layers of `Generator.module`

A run that goes on from there learns changes of its own, or all weights, and leaves these as they are; changes of two
runs are put side by side in one pair of matrices. Weights of float32 take them up in their sum.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rwk.policy_opt.generator import ADAPTER, BASE, Generator
from rwk.policy_opt.masters import HALF
from rwk.policy_opt.quiet import quiet

Changes = dict[str, tuple[Tensor, Tensor]]
"""Linear layer -> A [r, in] and B [out, r], float32: its weight is W + B A."""
_KEPT = "kept"
"""What peft calls changes that learn no more."""
_NAMES = "base_model.model.{}.lora_{}.weight"
"""What it calls their tensors in a file."""


def is_half(module: nn.Module) -> bool:
    """Whether a layer that has low-rank changes is of half precision."""
    return any(layer.base_layer.weight.dtype in HALF for layer in _layers(module).values())


@torch.no_grad()
def taken_off(generator: Generator) -> Changes:
    """Takes all low-rank changes off the generator, and gives them in one; none where it has none."""
    found: Changes = {}
    for name, layer in _layers(generator.module).items():
        keys = layer.active_adapters
        down = torch.cat([layer.lora_A[key].weight for key in keys])
        up = torch.cat([layer.lora_B[key].weight * layer.scaling[key] for key in keys], dim=1)
        found[name] = down, up
        generator.module.set_submodule(name, layer.base_layer)
    vars(generator.module).pop("peft_config", None)
    changed: Any = generator
    if isinstance(generator, _Keeps):
        changed.__class__ = changed.plain
    return found


def put_on(generator: Generator, changes: Changes) -> None:
    """Has a generator without low-rank changes compute with these, which do not learn, and save them beside it."""
    from peft import get_peft_model

    if not changes:
        return
    module = generator.module
    learns = {id(value) for value in module.parameters() if value.requires_grad}
    with torch.random.fork_rng(devices=[]), quiet():
        get_peft_model(module, _config(changes), adapter_name=_KEPT)
    _fill(module, changes)
    for value in module.parameters():
        value.requires_grad_(id(value) in learns)
    generator.__class__ = _kept_class(type(generator))


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


def load_on(generator: Generator, folder: Path) -> Generator:
    """The generator, with the changes that peft wrote to a folder.

    Raises:
        ValueError: where the folder does not hold changes of this generator.
    """
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        scale = config["lora_alpha"] / config["r"]
        changes: Changes = {
            name: (tensors[_NAMES.format(name, "A")], tensors[_NAMES.format(name, "B")] * scale)
            for name in config["target_modules"]
        }
        _check_fits(generator.module, changes, len(tensors))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"{folder} does not hold low-rank changes of {generator.spec.name}: {error}") from error
    put_on(generator, changes)
    return generator


def take_over(generator: Generator, tuned: Generator) -> None:
    """Gives a generator the weights, and the low-rank changes, of another of its kind, which loses its changes."""
    taken_off(generator)
    changes = taken_off(tuned)
    generator.module.load_state_dict(tuned.module.state_dict())
    put_on(generator, changes)


class _Keeps(Generator):
    """What stands before the class of a generator with low-rank changes, and saves these too."""

    plain: ClassVar[type[Generator]]

    def save(self, folder: Path) -> None:
        generator: Generator = self
        changes = taken_off(generator)
        try:
            generator.save(folder / BASE)
        finally:
            put_on(generator, changes)
        _write(changes, folder)


@functools.cache
def _kept_class(kind: type[Generator]) -> type[Generator]:
    return type(kind.__name__, (_Keeps, kind), {"plain": kind})


def _write(changes: Changes, folder: Path) -> None:
    """The changes, and what the whole is found by, beside what is saved without them."""
    (folder / ADAPTER).mkdir()
    tensors = {
        _NAMES.format(name, letter): value.cpu().contiguous()
        for name, pair in changes.items()
        for letter, value in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / ADAPTER / "adapter_model.safetensors")
    _config(changes).save_pretrained(folder / ADAPTER)
    held = json.loads((folder / BASE / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({"rwk_generator": held.get("rwk_generator")}, indent=2) + "\n")


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

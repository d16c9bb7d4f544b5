"""Layers of a network by their place: which get low-rank changes, which training leaves alone."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

_EMBEDDING = re.compile(r"embed|cls_token|(^|\.)(conv1|ln_pre|pre_layrnorm|newline)(\.|$)")
"""Names of parameters that stand before the first layer of a tower."""


def lora_targets(module: nn.Module) -> list[str]:
    """Names of the linear layers outside the head, or of the convolutions where there are none.

    A language model's map to its vocabulary is not among them, nor are the projections inside
    `nn.MultiheadAttention`: peft can only merge and unmerge those around every forward pass, which moves the frozen
    weights by rounding, so that no run could be resumed exactly.
    """
    outside = [
        (name, part)
        for name, part in module.named_modules()
        if not name.startswith("head") and not name.endswith("lm_head")
    ]
    linear = [name for name, part in outside if type(part) is nn.Linear]
    return linear or [name for name, part in outside if type(part) is nn.Conv2d and part.groups == 1]


def add_lora(module: nn.Module, *, rank: int, seed: int) -> Any:
    """Adds low-rank changes, 0 at first, to `lora_targets`, and returns peft's model.

    They are float32 whatever the layer is, so that small steps are not rounded away.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=lora_targets(module))
        made = LoraModel(module, settings, "default")
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    return made


def first_layers(module: nn.Module, amount: float) -> list[str]:
    """Names of the parameters of the first layers of every tower, and of what stands before them.

    Args:
        module: a network with a part `head`, which is left out.
        amount: 0 for none, a share of each tower's layers below 1 (rounded down), else how many.

    Raises:
        ValueError: for a network without towers of layers, or with one of no more than those.
    """
    if not amount:
        return []
    frozen = {name for name, _ in module.named_parameters() if _EMBEDDING.search(name)}
    found = towers(module)
    for name, count in found.items():
        if amount >= count:
            raise ValueError(
                f"--freeze must leave a layer of {name}, which has {count}, got {amount:g}; give fewer, or a share."
            )
        first = int(count * amount) if amount < 1 else int(amount)
        starts = tuple(f"{name}.{i}." for i in range(first))
        frozen |= {key for key, _ in module.named_parameters() if key.startswith(starts)}
    if not found:
        raise ValueError(f"--freeze needs a network of layers alike, got {type(module).__name__}; leave it out.")
    return sorted(name for name in frozen if not name.startswith("head."))


def towers(module: nn.Module) -> dict[str, int]:
    """How many layers each tower has, by the name of the list that holds them: two or more of one class."""
    found: dict[str, int] = {}
    for name, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential) or name.startswith(("head", *(f"{n}." for n in found))):
            continue
        kinds = {type(layer) for layer in part}
        if len(part) > 1 and len(kinds) == 1 and all(any(layer.children()) for layer in part):
            found[name] = len(part)
    return found

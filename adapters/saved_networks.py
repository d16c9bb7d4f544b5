"""Generators of several networks with configs of their own: how these are filled, and lie in one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rwk.adapters.published import Origin, beside, fill, find
from rwk.policy_opt.generator import GeneratorSpec

Tensors = Mapping[str, Tensor]


def find_both(
    name: str, network: Origin, tokenizer: Origin, weights: str | Path | None, revision: str | None
) -> tuple[Path, Path]:
    """Where the files of a network and of its tokenizer of images lie; the second beside the first, or on the hub.

    Args:
        name: of the generator.
        weights: the file of the network, or a folder that holds it; by default it comes from the hub.

    Raises:
        RunFailed: where one cannot be had.
    """
    by_hand = f"copy {network.file} and {tokenizer.file} into one folder and name it as {{name}}@PATH"
    return (
        find(name, network, weights, revision, by_hand=by_hand),
        find(name, tokenizer, beside(weights, tokenizer.file), revision, by_hand=by_hand),
    )


def filled(name: str, build: Callable[[], nn.Module], tensors: Tensors, device: str, dtype: str) -> Any:
    """A network with these tensors, for which no random ones are drawn first."""
    with torch.device("meta"):
        network = build()
    network.to(getattr(torch, dtype)).to_empty(device=device)
    fill(name, network, tensors)
    return network


def write_networks(folder: Path, spec: GeneratorSpec, **networks: tuple[nn.Module, dict[str, Any]]) -> None:
    """Writes config.json and model.safetensors of networks with their configs by name; `dtype` is that of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, (network, _) in networks.items()
        for key, tensor in network.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    first, _ = next(iter(networks.values()))
    config = {
        "rwk_generator": spec.name,
        "spec": asdict(spec),
        **{name: sizes for name, (_, sizes) in networks.items()},
        "dtype": str(next(first.parameters()).dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_networks(folder: Path, *names: str) -> tuple[dict[str, Any], list[Tensors]]:
    """What `write_networks` wrote: the config, lists as tuples, and the tensors of each network."""
    config = json.loads((folder / "config.json").read_text(), object_hook=_with_tuples)
    held = load_file(folder / "model.safetensors")
    parts = [f"{name}." for name in names]
    return config, [{key.removeprefix(p): held[key] for key in held if key.startswith(p)} for p in parts]


def _with_tuples(held: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in held.items()}

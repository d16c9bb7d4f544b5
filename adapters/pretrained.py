"""Models as transformers keeps them: weights in several files, networks filled whole, tokenizers beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rwk.adapters.hub_refusals import remedy
from rwk.adapters.published import Origin, find, hub_is_near, read
from rwk.rewards.errors import RunFailed

FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "model.safetensors", "pytorch_model.bin")
"""What a folder of transformers holds: a list of the files, or the one file."""


def read_shards(
    name: str, origin: Origin, weights: str | Path | None = None, revision: str | None = None
) -> dict[str, Tensor]:
    """The tensors of every file of a checkpoint by key, on the CPU.

    Args:
        name: the reward that asks.
        origin: its `file` is the one file, or the list of files that ends in `.index.json`.
        weights: a folder that holds one of `FILES`, or the file itself; None takes the hub's.
        revision: branch, tag or commit of the hub's repository.

    Raises:
        ValueError: where a file is not in the folder or is damaged.
        RunFailed: where the hub cannot be reached and its cache lacks a file.
    """
    folder = Path(weights).expanduser() if weights is not None else None
    if folder is not None:
        origin = replace(origin, file=next((file for file in FILES if (folder / file).is_file()), origin.file))
    by_hand = f"copy the folder of {origin.hub} here and name it as {{name}}@PATH"
    path = find(name, origin, folder, revision, by_hand=by_hand)
    if not path.name.endswith(".index.json"):
        return read(path)
    try:
        files = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} must list files under weight_map, got none that can be read ({error!r}).") from error
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read(find(name, replace(origin, file=file), folder and path.parent, revision, by_hand=by_hand))
    return tensors


def load_whole(
    name: str,
    kind: Any,
    where: str | None,
    *,
    faults: Sequence[str] = ("missing", "unexpected"),
    unused: Sequence[str] = (),
    **options: Any,
) -> Any:
    """What `kind.from_pretrained(where, **options)` gives, provided that the checkpoint fills it.

    transformers only logs what is missing, and fills it with random numbers.

    Args:
        name: the reward that asks.
        kind: a class of transformers that builds networks.
        where: hub id or folder; None where `state_dict` is among the options.
        faults: what is refused beside tensors of another shape.
        unused: parts of keys that may be missing or too many, as nothing that is used depends on them.

    Raises:
        ValueError: that counts and names the keys at fault; or where a file of weights is damaged.
    """
    from safetensors import SafetensorError

    try:
        network, told = kind.from_pretrained(where, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except SafetensorError as error:
        raise ValueError(
            f"{name} needs whole safetensors files, got a damaged one in {where} ({error}); copy it anew."
        ) from error
    keys = sorted(
        key if isinstance(key, str) else key[0] for fault in (*faults, "mismatched") for key in told[f"{fault}_keys"]
    )
    keys = [key for key in keys if not any(part in key for part in unused)]
    if keys:
        raise ValueError(
            f"{name} needs a checkpoint that fills its network, got {len(keys)} keys that are missing, not wanted or "
            f"of another shape ({', '.join(keys[:3])}); give the published one."
        )
    return network


def not_loaded(name: str, what: str, where: str, revision: str | None, error: Exception) -> Exception:
    """What to raise for a model that a hub id or folder did not give to transformers.

    Args:
        name: the reward that asks.
        what: the kind of model.
        revision: branch, tag or commit that was asked for.
        error: of transformers.
    """
    if Path(where).is_dir() or not isinstance(error, OSError):
        told = str(error).partition(". ")[0].partition("\n")[0].rstrip(".")
        return ValueError(
            f"{name} needs a {what} with all its files, got {where}, which cannot be read ({told}); "
            f"name another, or copy all files of its repository."
        )
    return RunFailed(
        f"{name} needs the {what} {where}, which is no folder here, is not in the cache and cannot be downloaded "
        f"({type(error).__name__}); {remedy(error, revision)}; without, copy its folder here and name it as "
        f"{name}@PATH."
    )


def load_tokenizer(name: str, hub: str, weights: str | Path | None = None, revision: str | None = None) -> Any:
    """The tokenizer beside the weights where there is one, else that of the hub.

    Args:
        name: the reward that asks.
        hub: the repository whose tokenizer it is.
        weights: a folder, or a file in it.
        revision: branch, tag or commit of that repository; not of another one that the weights come from.

    Raises:
        RunFailed: where the hub cannot be reached and its cache lacks the tokenizer.
    """
    from transformers import AutoTokenizer

    folder = Path(weights).expanduser() if weights is not None else None
    if folder is not None and folder.is_file():
        folder = folder.parent
    own = folder is not None and (folder / "tokenizer.json").is_file()
    try:
        if own:
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return AutoTokenizer.from_pretrained(hub, revision=revision or "main", local_files_only=not hub_is_near())
    except OSError as error:
        raise RunFailed(
            f"{name} needs the tokenizer of {hub}, which is not in the cache and cannot be downloaded "
            f"({type(error).__name__}); {remedy(error, revision)}; without, copy its "
            f"tokenizer.json and tokenizer_config.json beside the weights and name their folder as {name}@PATH."
        ) from error


def load_folder(
    name: str,
    kind: Any,
    origin: Origin,
    weights: str | Path | None = None,
    revision: str | None = None,
    *,
    unused: Sequence[str] = (),
) -> Any:
    """The network of a repository or folder in the layout of transformers, of the size that its config.json states.

    Args:
        name: the reward that asks.
        kind: a class of transformers that builds networks.
        origin: the repository, and its file of weights.
        weights: a folder that holds config.json and one of `FILES`; None takes the hub's.
        revision: branch, tag or commit of the hub's repository.
        unused: as `load_whole` takes it.

    Raises:
        ValueError: where a file is not in the folder, or the checkpoint is of another model or does not fill the
            network.
        RunFailed: where the hub cannot be reached and its cache lacks a file.
    """
    folder = Path(weights).expanduser() if weights is not None else None
    if folder is not None:
        origin = replace(origin, file=next((file for file in FILES if (folder / file).is_file()), origin.file))
    by_hand = f"copy the folder of {origin.hub} here and name it as {{name}}@PATH"
    found = find(name, origin, folder, revision, by_hand=by_hand)
    config = find(name, replace(origin, file="config.json", megabytes=0), folder, revision, by_hand=by_hand)
    held, wanted = _model_type(config), kind.config_class.model_type
    if held != wanted:
        raise ValueError(
            f"{name} needs a checkpoint of {wanted}, got one of {held} in {found.parent}; name the folder of "
            f"{origin.hub}."
        )
    return load_whole(name, kind, str(found.parent), unused=unused, dtype="float32", local_files_only=True)


def _model_type(config: Path) -> str:
    """What a config.json says that its network is; raises ValueError where it is no JSON object."""
    try:
        held = json.loads(config.read_text(encoding="utf-8"))
        return str(held.get("model_type"))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config} must be a JSON object with a model_type, got {error}; copy it anew.") from error

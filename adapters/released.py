"""Weights that lie at a plain address instead of a hub."""

from __future__ import annotations

from pathlib import Path

import torch

from rwk.rewards.errors import RunFailed


def released(name: str, address: str, megabytes: int) -> Path:
    """The file at that address, from torch.hub's folder of checkpoints, downloaded into it where it is not there.

    Official code of these models keeps them in the same folder under the same name.

    Args:
        name: the reward that asks.
        address: https address; its last part names the file.
        megabytes: size of the file, about.

    Raises:
        RunFailed: where the file is not there and cannot be downloaded, or may not be by HF_HUB_OFFLINE.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE

    path = Path(torch.hub.get_dir(), "checkpoints", address.rpartition("/")[2])
    if path.is_file():
        return path
    reason = "HF_HUB_OFFLINE is set"
    if not HF_HUB_OFFLINE:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path), progress=False)
        except OSError as error:
            reason = type(error).__name__
        else:
            return path
    raise RunFailed(
        f"{name} needs {address} (about {megabytes} MB), which is not in {path.parent} and cannot be downloaded "
        f"({reason}); with a network, unset HF_HUB_OFFLINE and run again; without, copy the file here and name it as "
        f"{name}@PATH."
    )

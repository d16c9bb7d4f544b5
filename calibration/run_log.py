"""What a run of `rwk optimize --watch` saw of its generator: two rewards, and how far it moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rwk.calibration.pairs import Floats

LOG = "watch.jsonl"


class Looks(NamedTuple):
    """K looks at a generator on the same P prompts, the first before anything was learnt."""

    rewards: tuple[str, ...]
    """What was learnt from."""
    watched: str
    steps: tuple[int, ...]
    """[K] updates that were done."""
    reward: Floats
    """[K, P] mean of the reward that was learnt from over a prompt's images; NaN where there is none."""
    truth: Floats
    """[K, P] mean of the watched reward."""
    kl: Floats | None
    """[K, P] nats an image from the generator as it began; None where the run did not measure it."""


def read_looks(folder: Path) -> Looks:
    """The looks of a run's folder, by its `config.json`, `watch.jsonl` and `watch/STEP.safetensors`.

    Raises:
        ValueError: where these are not the files of such a run, or hold fewer than two looks.
    """
    from safetensors.torch import load_file

    try:
        experiment = json.loads((folder / "config.json").read_text(encoding="utf-8"))["experiment"]
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
        steps = tuple(json.loads(line)["step"] for line in lines)
        held = [load_file(folder / "watch" / f"{step}.safetensors") for step in steps]
        found = [
            [look["reward"].nanmean(1), look["scores"][..., -1].nanmean(1)]
            + ([look["kl"].nanmean(1)] if "kl" in look else [])
            for look in held
        ]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder} must be the folder of a run of `rwk optimize --watch`, got none ({error}); name another."
        ) from error
    if len(steps) < 2:
        raise ValueError(f"{folder} must hold two looks or more, got {len(steps)}; lower --watch-every in such a run.")
    columns = [np.stack([of.double().numpy() for of in column]) for column in zip(*found, strict=False)]
    rewards, kl = tuple(experiment["rewards"]), columns[2] if len(columns) > 2 else None
    return Looks(rewards, str(experiment["watch"]), steps, columns[0], columns[1], kl)

"""A trained reward as a folder: weights, and a card that says what is known of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rwk.rewards.configs import RewardTraining
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.held_out import HeldOut
from rwk.rewards.home import keep_in
from rwk.rewards.registry import REWARDS
from rwk.rewards.trainable import Trainable

_VERSIONS = ("rwk", "torch", "torchvision", "accelerate", "open_clip_torch", "timm", "transformers", "peft", "pillow")
SELECTION = "the held-out pairs also chose when to stop and the temperature, so their measures lean to the good side"


@dataclass(frozen=True)
class RewardReport:
    """What a training run came to."""

    folder: Path
    """The reward, as `registry.load` takes it."""
    base: HeldOut
    """The held-out pairs before training."""
    held_out: HeldOut
    """The held-out pairs under the weights that were kept."""
    step: int
    """Where those weights stood."""
    steps: int
    """How far training went."""
    processes: int


def write_config(out: Path, config: RewardTraining, seed: int, processes: int) -> None:
    """Writes config.json: what the run was told, and the versions of what it ran on."""
    content = {"training": _plain(config), "seed": seed, "processes": processes, "versions": _versions()}
    (out / "config.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_plot(out: Path) -> None:
    """Draws metrics.jsonl as metrics.svg: losses and held-out accuracy by step."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, names, unit in (
        (left, ("train_loss", "nll", "nll_calibrated"), "nats a pair"),
        (right, ("accuracy",), "held-out accuracy"),
    ):
        for name in names:
            known = [(line["step"], line[name]) for line in lines if line[name] is not None]
            axes.plot(*zip(*known, strict=True), marker=".", label=name) if known else None
        axes.set(xlabel="step", ylabel=unit)
        if len(names) > 1:
            axes.legend()
    figure.savefig(out / "metrics.svg", metadata={"Date": None})


def write_reward(
    reward: Trainable,
    report: RewardReport,
    config: RewardTraining,
    seed: int,
    train: PreferenceDataset,
    valid: PreferenceDataset,
) -> None:
    """Writes `report.folder`: config.json, model.safetensors and reward_card.json.

    The card's `held_out` has the `temperature` with which p(first is preferred) = sigmoid(margin / temperature); its
    `value` is null where the margins say nothing (`status` is then `uninformative`). There is no calibration.json:
    `rwk calibrate` writes it, with an interval, a test set of its own and the weights that it belongs to.
    """
    partial = report.folder.with_name(f"{report.folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    reward.save(partial)
    card = {
        "name": reward.spec.name,
        "base": config.base,
        "mode": config.mode,
        "held_out": report.held_out.document() | {"note": SELECTION},
        "base_held_out": report.base.document(),
        "data": {"train": _data(train), "held_out": _data(valid)},
        "step": report.step,
        "steps": report.steps,
        "processes": report.processes,
        "seed": seed,
        "config": _plain(config),
        "versions": _versions(),
    }
    (partial / "reward_card.json").write_text(json.dumps(card, indent=2, allow_nan=False) + "\n")
    shutil.rmtree(report.folder, ignore_errors=True)
    partial.replace(report.folder)


def keep(folder: Path, name: str) -> Path:
    """Copies a reward's folder to where `registry.load(name)` finds it, in place of what had the name before."""
    check_name(name)
    return keep_in("rewards", folder, name)


def check_name(name: str) -> None:
    """Raises ValueError for the name of a registered reward, which a kept one could not be found under."""
    if name in REWARDS.names():
        raise ValueError(f"a trained reward needs a name of its own, got {name!r}, which is built in; choose another.")


def _plain(config: RewardTraining) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _VERSIONS}


def _data(data: PreferenceDataset) -> dict[str, Any]:
    return {"name": data.name, "pairs": len(data), "prompts": len(set(data.groups())), "sha256": data.digest()}

"""`rwk calibrate`: how sure a difference of scores makes, kept beside the reward."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from rwk.cli.console import note, progress, show, table
from rwk.cli.options import Common, options
from rwk.cli.preferences import preferences
from rwk.rewards.errors import RunFailed

if TYPE_CHECKING:
    from rwk.calibration.calibrate import Calibrated
    from rwk.calibration.statistics import Interval
    from rwk.rewards.data import PreferenceDataset

SHOWN = {
    "accuracy": "accuracy (a margin of 0 is half a hit)",
    "nll": "negative log-likelihood, nats a pair",
    "smooth_ece": "smooth calibration error",
    "debiased_l2": "debiased squared calibration error",
    "ece": "calibration error in 15 bins",
    "auroc": "AUROC on mirrored pairs",
}
"""Measures in the table; `--json` has all."""


@dataclass(frozen=True)
class Calibration:
    """What `rwk calibrate` is told."""

    reward: str = field(metadata={"argument": True, "help": "A name of a reward, its folder, or an expression."})
    data: Path | None = field(
        default=None,
        metadata={"argument": True, "metavar": "[DATA]", "help": "Preferences: a file, or FORMAT:FILE."},
    )
    out: Path | None = field(
        default=None,
        metadata={"help": "File to keep the calibration in. [default: calibration.json in the reward's folder]"},
    )
    kind: Literal["temperature", "lapse_power", "symmetric_isotonic"] = field(
        default="temperature",
        metadata={
            "help": "One temperature, also a lapse and a power, or any increasing curve (from 5,000 pairs on).",
        },
    )
    protocol: str = field(
        default="",
        metadata={"help": "How the labels came about, in words; what is fitted holds for labels of that kind alone."},
    )
    batch_size: int = field(default=16, metadata={"help": "Images that go through a network at once."})
    draws: int = field(default=2000, metadata={"help": "Bootstrap draws behind the intervals."})
    force: bool = field(
        default=False, metadata={"help": "Keep a fit that is separable or uninformative too.", "switch": True}
    )

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("draws", 100)):
            if getattr(self, name) < least:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} must be at least {least}, got {getattr(self, name)}.")
        if self.out is not None and self.out.suffix != ".json":
            raise ValueError(f"--out must end in .json, got {self.out}.")


@click.command()
@options(Calibration)
def command(config: Calibration, common: Common) -> dict[str, Any]:
    """Fits the probability that an image is preferred to the margin of its score, and keeps it beside the reward.

    REWARD is what `rwk list` names, a folder, or an expression. DATA is as in `rwk train-reward`, by default the
    built-in world's; pairs that the reward was trained on there are left out. Measures are of pairs whose prompts were
    not fitted on, and intervals cover 95 % and know which pairs share a prompt.
    """
    begun = time.monotonic()
    with progress("loading"):
        from rwk.calibration.calibrate import calibrate, place_of
        from rwk.calibration.pairs import PairTable, score_preferences
        from rwk.calibration.storage import KINDS, Binding, save
        from rwk.rewards.registry import load

        reward = load(config.reward, device=common.device)
        path = config.out or place_of(config.reward)
        data = _data(config, common, place_of(config.reward).with_name("reward_card.json"))
    calibrator: Any = KINDS[config.kind]()
    with progress("scoring") as advance:
        scores = score_preferences(reward, data, batch_size=config.batch_size, advance=advance)
    with progress("measuring"):
        pairs = PairTable.from_preferences(data, *scores)
        found = calibrate(pairs, calibrator, draws=config.draws, seed=common.seed)
    temperature = _temperature(found)
    show(_table(found, temperature))
    for said in calibrator.fit_["notes"]:
        note(said)
    if calibrator.status_ != "ok" and not config.force:
        raise RunFailed(
            f"{config.reward} is {calibrator.status_} on these pairs, so nothing was kept: "
            f"{_WHY[calibrator.status_]}; --force keeps it all the same."
        )
    about = {"name": data.name, "sha256": data.digest(), "pairs": len(data), "protocol": config.protocol}
    save(path, calibrator, Binding.of(reward), data=about, force=config.force)
    show(f"kept in {path}")
    return {
        "reward": config.reward,
        "file": path,
        "kind": config.kind,
        "settings": calibrator.get_params(),
        "status": calibrator.status_,
        "temperature": temperature and temperature._asdict(),
        "fit": dict(calibrator.fit_),
        **found.evaluation.document(),
        "data": about | {"left_out": data.omissions.document()},
        "seed": common.seed,
        "seconds": round(time.monotonic() - begun, 1),
    }


_WHY = {
    "uninformative": "its margins do not agree with the preferences at all",
    "separable": "it is never wrong, and that many pairs cannot tell how sure that makes",
}


def _data(config: Calibration, common: Common, card: Path) -> PreferenceDataset:
    """The preferences that were named, or the world's, without those that the reward was trained on."""
    from rwk.calibration.calibrate import unseen

    data = preferences(config.data, common.seed)
    rest = unseen(data, card)
    if len(rest) < len(data):
        note(f"the reward was trained on {len(data) - len(rest)} of these {len(data)} pairs, which are left out")
    return rest


def _temperature(found: Calibrated) -> Interval | None:
    """The temperature with its interval, where the calibrator has one."""
    from rwk.calibration.calibrate import temperature_interval

    value = getattr(found.calibrator, "temperature_", None)
    if value is None:
        return None
    error = found.calibrator.fit_.get("se_log_temperature", math.nan)
    return temperature_interval(value, error, found.calibrator.fit_["prompts"])


def _table(found: Calibrated, temperature: Interval | None) -> Any:
    rows = []
    if temperature is not None:
        rows.append(["temperature", _number(temperature.mean), _bounds(temperature), ""])
    for name, words in SHOWN.items():
        one = found.evaluation.measures[name]
        perfect = "" if one.null95 is None else _number(one.null95)
        rows.append([words, _number(one.interval.mean), _bounds(one.interval), perfect])
    counted = found.evaluation
    head = f"{counted.pairs} pairs of {counted.prompts} prompts"
    if counted.ties or counted.unscored:
        head += f" ({counted.ties} ties, {counted.unscored} unscored)"
    columns = (head, "value", "95 % interval", "19 in 20 perfect below")
    return table(columns, rows, numbers=columns[1:])


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "none"


def _bounds(interval: Interval) -> str:
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    return f"{interval.low:.4g} to {interval.high:.4g}" if known else "none"

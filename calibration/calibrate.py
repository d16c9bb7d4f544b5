"""From a reward's pairs to a calibrator that is kept beside the reward."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rwk.calibration.calibrator import PairCalibrator
from rwk.calibration.evaluate import Evaluation, cross_fitted, evaluate
from rwk.calibration.pairs import PairTable
from rwk.calibration.statistics import Interval
from rwk.calibration.storage import FILE
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.home import home
from rwk.rewards.registry import REWARDS

_LONGEST = 120
"""Characters of a name that a folder is called by."""


@dataclass(frozen=True)
class Calibrated:
    """What a reward's calibration came to."""

    calibrator: PairCalibrator
    """Fitted on all pairs."""
    evaluation: Evaluation
    """Of probabilities that each come from a fit on other prompts."""


def calibrate(table: PairTable, calibrator: PairCalibrator, *, draws: int = 2000, seed: int = 0) -> Calibrated:
    """Fits a calibrator, and measures its settings on prompts that a fit has not seen.

    Args:
        table: pairs that the reward was not trained on; see `unseen`.
        calibrator: gets fitted.
        draws: of the bootstrap behind the intervals.
        seed: of folds and draws.

    Raises:
        ValueError: where no pair has a preference and two scores, or all are of one prompt.
    """
    calibrator.fit(table)
    return Calibrated(calibrator, evaluate(table, cross_fitted(calibrator, table, seed=seed), draws=draws, seed=seed))


def temperature_interval(value: float, error: float, clusters: int) -> Interval:
    """A temperature with its 95 % interval, from the standard error of its logarithm."""
    from scipy.stats import t

    if clusters < 2 or not math.isfinite(value) or not math.isfinite(error):
        return Interval(value, math.nan, math.nan, clusters)
    reach = math.exp(float(t.ppf(0.975, clusters - 1)) * error)
    return Interval(value, value / reach, value * reach, clusters)


def unseen(data: PreferenceDataset, card: Path) -> PreferenceDataset:
    """The preferences that a reward was not trained on, as far as its reward_card.json knows.

    Where `rwk train-reward` was given the same data these are the ones that it held out; else, and where there is no
    such card, all of them.

    Raises:
        ValueError: where it was trained on all of them.
    """
    try:
        told: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
        trained, share, seed = told["data"]["train"]["sha256"], told["config"]["held_out"], told["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return data
    if data.digest() == trained:
        raise ValueError(f"{data.name} must hold pairs that the reward was not trained on, got its training data.")
    if len(set(data.groups())) < 2:
        return data
    seen, rest = data.split(held_out=share, seed=seed)
    return rest if seen.digest() == trained else data


def place_of(name: str) -> Path:
    """Where the calibration of a reward of that name is kept: in its own folder, else in `$RWK_HOME/calibrations`."""
    if name not in REWARDS.names():
        for folder in (Path(name), home("rewards", name)):
            try:
                if (folder / "config.json").is_file():
                    return folder / FILE
            except OSError:  # a name too long for a file: an expression
                continue
    folder_name = quote(name, safe="")
    if len(folder_name) > _LONGEST:
        folder_name = hashlib.sha256(name.encode()).hexdigest()
    return home("calibrations", folder_name, FILE)

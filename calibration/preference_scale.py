"""A reward's calibration in use: what a margin of its scores is worth in human preferences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rwk.calibration.calibrate import place_of
from rwk.calibration.storage import Binding, load
from rwk.calibration.temperature import Temperature
from rwk.rewards.base import Reward

NOISE = 0.25
"""Margin, in temperatures, below which a preference is noise: at 0.25 people are divided 56 to 44."""


@dataclass(frozen=True)
class PreferenceScale:
    """The unit in which the margins of a reward are log-odds that people prefer the one image.

    >>> PreferenceScale(0.5).q(torch.tensor([0.0, 0.5]))
    tensor([0.5000, 0.7311])
    """

    temperature: float
    """T, above 0, in the reward's unit: a margin of T is log-odds of 1."""

    @property
    def noise_floor(self) -> float:
        """Margin, in the reward's unit, below which a preference is noise."""
        return NOISE * self.temperature

    def calibrated_margin(self, first: Tensor, second: Tensor) -> Tensor:
        """[B] log-odds that the first image is preferred, of the scores [B] of both."""
        return (first - second) / self.temperature

    def q(self, margin: Tensor) -> Tensor:
        """Probability that the first image is preferred, of margins in the reward's unit; same shape."""
        return torch.sigmoid(margin / self.temperature)


def preference_scale(name: str, reward: Reward) -> PreferenceScale:
    """The scale that `rwk calibrate` found for a reward.

    Args:
        name: what the reward was loaded by; its calibration is kept under it.
        reward: as loaded, to which the calibration must belong.

    Raises:
        ValueError: where there is none, where it is of other weights, code or preprocessing, and where it is not a
            temperature or says that the reward's margins mean nothing.
    """
    path = place_of(name)
    if not path.is_file():
        raise ValueError(f"{name} needs a calibration, got none in {path}; run `rwk calibrate {name}`.")
    calibrator = load(path, Binding.of(reward))
    if not isinstance(calibrator, Temperature):
        raise ValueError(
            f"{name} needs a calibration by one temperature, got {calibrator.kind} in {path}; "
            f"run `rwk calibrate {name} --kind temperature`."
        )
    if math.isinf(calibrator.temperature_):
        raise ValueError(
            f"{name} needs margins that agree with preferences, got a calibration that is {calibrator.status_} in "
            f"{path}; take another reward."
        )
    return PreferenceScale(calibrator.temperature_)

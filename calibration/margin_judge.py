"""A reward as a pair judge: the probability, by its calibration, that people prefer the image with the higher score."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from PIL import Image

from rwk.calibration.preference_scale import PreferenceScale, preference_scale
from rwk.rewards import registry
from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.pair_judge import PairJudge, pair_spec


class Margin(PairJudge):
    """P(first is better) = sigmoid((r(first) - r(second)) / T), of a reward r and its temperature T by `rwk calibrate`.

    Its name is `margin@REWARD`, with whatever names a reward. Which image comes first cannot matter to it, so it is
    what other pair judges can be held against.
    """

    spec = pair_spec("margin", "that of the reward", "Bradley and Terry (1952)")
    made_of_reward = True
    """What follows the @ in its name is a reward, not a path."""

    def __init__(self, *, weights: str | None = None, temperature: float | None = None, device: str = "cpu") -> None:
        """
        Args:
            weights: name, folder or expression of the reward.
            temperature: margin that makes log-odds of 1; by default that of the reward's calibration.
            device: where the reward runs.

        Raises:
            ValueError: where no reward is named, or it has no calibration.
        """
        if weights is None:
            raise ValueError("margin needs the reward that it is made of, got none; name it as margin@REWARD.")
        reward = registry.load(weights, device=device)
        scale = preference_scale(weights, reward).temperature if temperature is None else temperature
        self._take(weights, reward, scale)

    def _take(self, name: str, reward: Reward, temperature: float) -> Self:
        super().__init__(device=str(reward.device))
        if not temperature > 0:
            raise ValueError(f"margin@{name} needs a temperature above 0, got {temperature}.")
        self.reward, self._scale = reward, PreferenceScale(temperature)
        self.spec = _spec_of(name, reward.spec)
        self.example_prompts = reward.example_prompts
        return self

    @classmethod
    def of(cls, name: str, reward: Reward, *, temperature: float) -> Self:
        """The judge around a reward that is loaded already."""
        return cls.__new__(cls)._take(name, reward, temperature)

    @classmethod
    def tiny(cls) -> Self:
        return cls.of("contrast", registry.load("contrast"), temperature=0.1)

    def example_images(self) -> list[Image.Image]:
        return self.reward.example_images()

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Scores:
        images, asked = [*first, *second], [*prompts, *prompts]
        keys = [(id(image), asked[row] if asked else "") for row, image in enumerate(images)]
        rows = list({key: row for row, key in reversed(list(enumerate(keys)))}.values())  # each image of a prompt once
        place = {keys[row]: index for index, row in enumerate(rows)}
        scores = self.reward.score([images[row] for row in rows], [asked[row] for row in rows] if asked else [])
        index = torch.tensor([place[key] for key in keys])
        one, two = scores.values[index].chunk(2)
        notes = [scores.notes[i] for i in index.tolist()]
        said = zip(one.tolist(), notes[: len(first)], two.tolist(), notes[len(first) :], strict=True)
        return Scores(self._scale.q(one - two), [_unscored(*each) for each in said])


def _unscored(one: float, of_one: str, two: float, of_two: str) -> str:
    """Why a pair has no answer, or "" where both images have a score."""
    if one != one:
        return f"the first image has no score: {of_one}"
    return f"the second image has no score: {of_two}" if two != two else ""


def _spec_of(name: str, spec: RewardSpec) -> RewardSpec:
    made = pair_spec(f"margin@{name}", spec.licence, spec.source)
    return replace(made, needs_prompt=spec.needs_prompt, deterministic=spec.deterministic)

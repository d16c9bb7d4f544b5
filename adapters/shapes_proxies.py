"""Rewards of the built-in world with a known fault, to study what learning from them does.

Each gives the share of the claims that it looks at which a picture bears out, as `shapes.verifier` does of all.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.shapes_prompts import prompts, understand
from rwk.adapters.shapes_scenes import pictures
from rwk.adapters.shapes_verifier import pixels_of, recognise
from rwk.adapters.shapes_world import Description, Fact, facts
from rwk.rewards.base import Reward, RewardSpec, Scores


class Noisy(Reward):
    """The truth and normal noise of deviation 0.2, always the same for one picture and prompt.

    A prompt that is not of this world gets no score.
    """

    spec = RewardSpec("shapes.noisy", "share of facts", -math.inf, math.inf, "n/a", "rwk.adapters.shapes_world")
    example_prompts = tuple(prompt.text for prompt in prompts("shapes.long", 12, seed=0))
    noise = 0.2

    @classmethod
    def tiny(cls) -> Self:
        return cls()

    def example_images(self) -> list[Image.Image]:
        asked = self.example_prompts
        return pictures([*asked[:3], *asked[6:9]], seed=0)  # three as their prompts have it, and three that are not

    def seen(self, description: Description) -> Description:
        """What the reward reads of a prompt."""
        return description

    def counted(self, fact: Fact) -> bool:
        """Whether a claim of what it read counts."""
        return True

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        pixels = [pixels_of(image) for image in images]
        values, notes = [], []
        for scene, prompt, picture in zip(recognise(torch.stack(pixels)), prompts, pixels, strict=True):
            try:
                found = [fact.holds for fact in facts(self.seen(understand(prompt)), scene) if self.counted(fact)]
            except ValueError as error:
                values.append(math.nan)
                notes.append(f"no fact to check: {error}")
                continue
            values.append(sum(found) / len(found) + self.noise * chance(picture, prompt))
            notes.append("")
        return Scores(torch.tensor(values), notes)


def chance(picture: Tensor, prompt: str) -> float:
    """A normal number that depends on nothing but the picture [3, H, W] in 0..1 and the prompt."""
    seed = [*(picture * 255).byte().flatten().tolist()[::97], *prompt.encode()]
    return float(np.random.default_rng(seed).standard_normal())


class NoCounts(Noisy):
    """Does not count: things may be too many or too few."""

    spec = replace(Noisy.spec, name="shapes.no_counts", low=0.0, high=1.0)
    noise = 0.0

    def counted(self, fact: Fact) -> bool:
        return not fact.claim.startswith(("exactly", "nothing"))


class LongOnly(Noisy):
    """Tells the truth about the wording of `shapes.long`, and nothing about that of `shapes.short`."""

    spec = replace(Noisy.spec, name="shapes.long_only")
    noise = 0.0

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        scores = super()._score(images, prompts)
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            if prompt.startswith("a photo of") and not scores.notes[i]:
                scores.values[i] = chance(pixels_of(image), prompt)
        return scores

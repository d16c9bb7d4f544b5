"""Rewards of the built-in world that know part of its truth, so that how good each is as a reward is known beforehand.

Named as `proxies:NoCounts` where this folder is on the path. Each gives the share of the claims that it looks at which
a picture bears out, as `shapes.verifier` does of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.pixels import Colorfulness
from rwk.adapters.shapes_prompts import understand
from rwk.adapters.shapes_verifier import recognise
from rwk.adapters.shapes_world import Description, Fact, facts
from rwk.rewards.base import Reward, RewardSpec, Scores


class Noisy(Reward):
    """The truth and noise of deviation 0.2, always the same for one picture and prompt."""

    spec = RewardSpec("noisy", "share of facts", -math.inf, math.inf, "n/a", "benchmarks/proxies.py")
    noise = 0.2

    @classmethod
    def tiny(cls) -> Self:
        return cls()

    def seen(self, description: Description) -> Description:
        """What the reward reads of a prompt."""
        return description

    def counted(self, fact: Fact) -> bool:
        """Whether a claim of what it read counts."""
        return True

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        pixels = torch.stack([pil_to_tensor(image) for image in images]) / 255
        values = []
        for scene, prompt, picture in zip(recognise(pixels), prompts, pixels, strict=True):
            found = [fact.holds for fact in facts(self.seen(understand(prompt)), scene) if self.counted(fact)]
            values.append(sum(found) / len(found) + self.noise * _draw(picture, prompt))
        return Scores(torch.tensor(values), [""] * len(images))


def _draw(picture: Tensor, prompt: str) -> float:
    """A normal number that depends on nothing but the picture and the prompt."""
    seed = [*(picture * 255).byte().flatten().tolist()[::97], *prompt.encode()]
    return float(np.random.default_rng(seed).standard_normal())


class NoRelations(Noisy):
    """Does not look where things lie."""

    noise = 0.0

    def seen(self, description: Description) -> Description:
        return replace(description, relation=None, place=None)


class NoCounts(Noisy):
    """Does not count: things may be too many."""

    noise = 0.0

    def counted(self, fact: Fact) -> bool:
        return not fact.claim.startswith(("exactly", "nothing"))


class NoColors(Noisy):
    """Takes every colour for the right one."""

    noise = 0.0

    def seen(self, description: Description) -> Description:
        return replace(description, clauses=tuple(clause._replace(color=None) for clause in description.clauses))


class FirstClause(Noisy):
    """Reads no further than to the first thing that a prompt names."""

    noise = 0.0

    def seen(self, description: Description) -> Description:
        return Description(description.clauses[:1])

    def counted(self, fact: Fact) -> bool:
        return fact.claim != "nothing else"


class LongOnly(Noisy):
    """Tells the truth about the wording of `shapes.long`, and nothing about that of `shapes.short`."""

    noise = 0.0

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        values = super()._score(images, prompts).values
        pixels = [pil_to_tensor(image) / 255 for image in images]
        for i, prompt in enumerate(prompts):
            if prompt.startswith("a photo of"):
                values[i] = _draw(pixels[i], prompt)
        return Scores(values, [""] * len(images))


class Garish(Noisy):
    """The truth, and as much again for colourfulness."""

    noise = 0.0

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        bright = Colorfulness().score(images).values / 60
        return Scores(super()._score(images, prompts).values + bright, [""] * len(images))


NAMES: Sequence[str] = (
    *(f"proxies:{kind.__name__}" for kind in (Noisy, NoRelations, NoCounts, NoColors, FirstClause, LongOnly, Garish)),
    "shapes.clip",
    "colorfulness",
)
"""Rewards from good to useless, no two of one defect."""

"""A small task with known truth for probes: a coloured patch on grey, with a stain that makes an image worse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rwk.calibration.probe import Domain, Sizes, Subject
from rwk.rewards.base import PixelReward, RewardSpec

SIDE = 48
COLOURS = {
    "red": (200, 60, 60),
    "green": (60, 170, 60),
    "blue": (60, 60, 200),
    "yellow": (210, 210, 60),
    "purple": (150, 60, 170),
    "cyan": (60, 190, 200),
}
WORDS = ("a {} patch", "the {} patch", "one {} patch here")
SIZES = Sizes(edited=48, attacked=8, attack_steps=8, draws=200)
Term = Callable[[Tensor, Sequence[str]], Tensor]


def colour_of(prompt: str) -> str | None:
    """The colour that the prompt names first, in any case."""
    found = re.search("|".join(COLOURS), prompt.lower())
    return found[0] if found else None


def ideal(colour: str) -> Image.Image:
    """The patch without a stain."""
    image = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    image.paste(COLOURS[colour], (10, 10, 38, 38))
    return image


class Fits(PixelReward):
    """A sound reward: ten times how close an image is to the patch that its prompt names; `term` breaks it."""

    spec = RewardSpec("fits", "tenths of the pixel range", -math.inf, math.inf, "n/a", "", differentiable=True)

    def __init__(self, term: Term | None = None, *, weight: float = 1.0) -> None:
        super().__init__()
        self.term, self.weight = term, weight

    @classmethod
    def tiny(cls) -> Fits:
        return cls()

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        wanted = torch.stack([_tensor(ideal(colour_of(prompt) or "red")) for prompt in prompts])
        if pixels.shape[2:] != wanted.shape[2:]:
            pixels = torch.nn.functional.interpolate(pixels, wanted.shape[2:], mode="bilinear", antialias=True)
        score = self.weight * -10 * (pixels - wanted).abs().mean((1, 2, 3))
        return score if self.term is None else score + self.term(pixels, prompts)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def stained(colour: str, area: float, rng: np.random.Generator) -> Image.Image:
    """The patch with a black or white stain over that share of it, anywhere."""
    image, size = ideal(colour), round(SIDE * area**0.5)
    x, y = rng.integers(0, SIDE - size, 2) if size < SIDE else (0, 0)
    ImageDraw.Draw(image).rectangle((x, y, x + size, y + size), fill=("black", "white")[rng.integers(2)])
    return image


def domain(name: str = "in domain", *, seed: int = 0, per_prompt: int = 6, repeat: int = 1) -> Domain:
    """18 prompts times `repeat`, whose images have stains of 0 to 40 %; gold is the area that is clean, roughly."""
    rng = np.random.default_rng(seed)
    words = [form if i == 0 else f"{form} {i}" for i in range(repeat) for form in WORDS]
    rows = [(form.format(colour), colour) for form in words for colour in COLOURS for _ in range(per_prompt)]
    areas = rng.uniform(0.01, 0.4, len(rows))
    images = [stained(colour, area, rng) for (_, colour), area in zip(rows, areas, strict=True)]
    gold = 1 - areas + rng.normal(0, 0.06, len(rows))
    return Domain(name, images, [prompt for prompt, _ in rows], gold, areas < 0.2, [colour for _, colour in rows])


def subject(reward: PixelReward | None = None, *domains: Domain, sizes: Sizes = SIZES) -> Subject:
    """The reward, or the sound one, on these domains, or on one."""
    return Subject(reward or Fits(), domains or (domain(),), sizes)

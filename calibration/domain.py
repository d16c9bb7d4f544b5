"""The images that a reward is probed on, with what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from rwk.calibration.pairs import Floats, PairTable
from rwk.rewards.base import Reward


class Refine(Protocol):
    """Moves images up the gradient of a reward."""

    def __call__(self, reward: Reward, tokens: Any, prompts: Sequence[str], *, trust: float, steps: int) -> Any:
        """[B, L] codes of tokens [B, L], given as a tensor, after one proximal step.

        Args:
            trust: squared distance that the embeddings of an image's codes may go for each unit of its reward.
            steps: of the iteration that seeks where the step ends.
        """


class Codes(NamedTuple):
    """What a generator drew a domain's images from."""

    tokens: Any
    """[N, L] whole numbers from 0 to `book` - 1, an image a row."""
    book: int
    decode: Callable[[Any], Sequence[Image.Image]]
    """The images of tokens [B, L], given as a tensor of whole numbers."""
    refine: Refine | None = None
    """Where the images have a gradient with respect to their codes."""


@dataclass(frozen=True, eq=False)
class Domain:
    """Images of prompts from one source, row by row; rows of one prompt are a group."""

    name: str
    images: Sequence[Image.Image]
    """[N]"""
    prompts: Sequence[str]
    """[N]"""
    gold: Floats | None = None
    """[N] the truth about each image, larger is better; NaN where nobody knows it."""
    fits: Any = None
    """[N] bool: whether an image is known to show what its prompt says; by default where gold is largest of all."""
    categories: Sequence[str] = ()
    """[N], or none."""
    preferences: Callable[[Floats], PairTable] | None = None
    """From scores [N] to the domain's pairs, where they are no pairs of gold; see `places`."""
    places: Any = None
    """[K, 2] rows of the two images of each of those preferences; a pair without two scores is left out."""
    codes: Codes | None = None
    """Where the images come from a generator."""
    judge: Callable[[Sequence[Image.Image], Sequence[str]], Floats] | None = None
    """Gold of any images and their prompts, where it can be asked."""

    def __post_init__(self) -> None:
        n = len(self.images)
        for name in ("prompts", "gold", "fits", "categories"):
            held = getattr(self, name)
            if held is not None and len(held) not in ({0, n} if name == "categories" else {n}):
                raise ValueError(f"a domain needs {name} of all its {n} images, got {len(held)}; give one an image.")
        if self.codes is not None and len(self.codes.tokens) != n:
            raise ValueError(f"a domain needs a row of tokens for all its {n} images, got {len(self.codes.tokens)}.")
        if self.preferences is not None and self.places is None:
            raise ValueError("a domain with preferences needs their places, got none; give the rows of both images.")

    @cached_property
    def groups(self) -> Any:
        """[N] numbers 0.. of the prompts."""
        return np.unique(np.asarray(self.prompts, dtype=np.str_), return_inverse=True)[1]

    @cached_property
    def fitting(self) -> Any:
        """[N] bool, see `fits`."""
        if self.fits is not None:
            return np.asarray(self.fits, dtype=bool)
        if self.gold is None or not np.isfinite(self.gold).any():
            return np.zeros(len(self.images), dtype=bool)
        return self.gold == np.nanmax(self.gold)

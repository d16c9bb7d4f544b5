"""Rewards that work in stages, so that several of them can share what one stage makes.

An image is prepared by itself, on the CPU and in any thread. A tower embeds what was prepared, and a text, by itself.
Of both embeddings a small head makes the score. Rewards that prepare alike share the first stage, and rewards that
also have the same tower the second.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.rewards.base import PixelReward, Scores
from rwk.rewards.precision import in_float32, wide

Ready = Tensor | str
"""A prepared image, or why it gets no score."""


class PreparedReward(PixelReward):
    """A reward that sees no image but what `prepare` makes of it."""

    @property
    @abstractmethod
    def preparation(self) -> Hashable:
        """Equal for rewards whose `prepare` makes the same of every image; its repr says what that depends on."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Ready:
        """[3, H, W] of one RGB image, on the CPU. Any thread may ask."""

    @abstractmethod
    def score_taken(self, ready: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] scores of prepared images [B, 3, H, W]."""

    def score_ready(self, ready: Sequence[Ready], prompts: Sequence[str]) -> Scores:
        """Scores of images as `prepare` made them."""
        values = torch.full([len(ready)], math.nan)
        for places, pixels in by_shape(ready):
            asked = [prompts[i] for i in places] if prompts else []
            values[places] = self.score_taken(pixels, asked).float().cpu()
        return Scores(values, [each if isinstance(each, str) else "" for each in ready])

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        return self.score_ready([self.prepare(image) for image in images], prompts)

    def prefer_fast(self) -> None:
        """Has images prepared faster from now on, where there is a way; what that changes stands with the class."""

    def prefer_stored(self) -> bool:
        """Has images read as their files store them from now on, see `View`; gives whether there is that way."""
        return False

    def least_size(self, width: int, height: int) -> tuple[int, int] | None:
        """Width and height down to which a decoder may shrink an image of that size beforehand; None: not at all."""
        return None


class EmbeddedReward(PreparedReward):
    """A reward that is a function of an embedding of the image and, where it reads prompts, of one of a text."""

    casts = True

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """What embeds images; rewards of one tower and one preparation embed every image alike."""

    @property
    @abstractmethod
    def text_tower(self) -> nn.Module | None:
        """What embeds texts; rewards of one text tower embed every text alike. None where prompts are not read."""

    @abstractmethod
    def embed_ready(self, ready: Tensor) -> Tensor:
        """[B, E] embeddings, of any length, of prepared images [B, 3, H, W]."""

    @property
    def reader(self) -> Any:
        """The tokenizer that texts are read by, on which their embeddings depend too; None where there is no choice."""
        return None

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """What is embedded for these prompts, one text each."""
        return list(prompts)

    def text_features(self, prompts: list[str]) -> Tensor:
        """[B, E] embeddings, of any length, of texts; not called without a text tower."""
        raise NotImplementedError(f"{self.spec.name} reads no prompts")

    @abstractmethod
    def score_features(self, image: Tensor, text: Tensor | None) -> Tensor:
        """[B] scores, with gradient, of embeddings of images [B, E] and of as many texts, in float32."""

    def score_taken(self, ready: Tensor, prompts: Sequence[str]) -> Tensor:
        text = self.embedded_texts(prompts)
        return in_float32(
            lambda image: self.score_features(image, None if text is None else wide(text)), self.embed_ready(ready)
        )

    def embedded_texts(self, prompts: Sequence[str]) -> Tensor | None:
        """[B, E] embeddings of what is embedded for prompts, each different one once; None where none is read."""
        if self.text_tower is None:
            return None
        return each_once(self.text_features, self.texts(prompts))


def by_shape(ready: Sequence[Ready]) -> Iterator[tuple[list[int], Tensor]]:
    """Places of prepared images of one size, and these together [B, 3, H, W], for every size."""
    places: dict[torch.Size, list[int]] = {}
    for i, each in enumerate(ready):
        if isinstance(each, Tensor):
            places.setdefault(each.shape, []).append(i)
    for alike in places.values():
        yield alike, torch.stack([each for i in alike if isinstance(each := ready[i], Tensor)])


def each_once(encode: Callable[[list[str]], Tensor], prompts: Sequence[str]) -> Tensor:
    """[B, E] rows of `encode`, which is given every different prompt once."""
    place = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    rows = encode(list(place))
    return rows[torch.tensor([place[prompt] for prompt in prompts], device=rows.device)]

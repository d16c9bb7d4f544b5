"""Published rewards that give an image a border to make it a square, before they resize it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from rwk.adapters.preprocess import LONGEST
from rwk.adapters.published import PublishedReward
from rwk.rewards.staged import Ready


class SquaredReward(PublishedReward):
    """A published reward whose `preprocess` squashes the image after it got a border of one colour, half a side.

    A subclass writes what a published reward writes, and `border`.
    """

    border: ClassVar[tuple[int, int, int]]
    """Colour of the border, 8-bit."""

    def prepared_pixels(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        down, across = max(width - height, 0), max(height - width, 0)
        sides = (across // 2, across - across // 2, down // 2, down - down // 2)
        colour = pixels.new_tensor(self.border)[:, None, None] / 255
        return super().prepared_pixels(pad(pixels - colour, sides) + colour)

    @property
    def preparation(self) -> Hashable:
        return self.border, self.preprocess

    def prepare(self, image: Image.Image) -> Ready:
        return self._refusal(image) or super().prepare(self._square(image))

    @staticmethod
    def _refusal(image: Image.Image) -> str:
        if max(image.size) <= LONGEST * min(image.size):
            return ""
        return (
            f"is made a square, so it may be at most {LONGEST} times as long as wide, got {image.width}x{image.height}"
        )

    def _square(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        if image.size == (side, side):
            return image
        square = Image.new("RGB", (side, side), self.border)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

"""Images and prompts that `rewards.contract` asks a reward about: ordinary, extreme, odd of size or mode, broken."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwk.rewards.base import Reward

Bytes = NDArray[np.uint8]


def ordinary(reward: Reward) -> tuple[list[Image.Image], list[str]]:
    """Unlike images of unequal size (the reward's own examples where it has them), and a prompt for each."""
    images = reward.example_images()
    if not images:
        noise = _noise(48, 48).astype(np.float64)
        shade = _shade(40, 56).astype(np.float64)
        arrays = [noise, shade, 0.3 * _shade(64, 32) + 80, 0.8 * shade + 0.2 * noise[:40].repeat(2, 1)[:, :56]]
        images = [Image.fromarray(array.astype(np.uint8)) for array in [*arrays, _board(36, "navy", "orange", 6)]]
    return images, prompted(reward, images)


def prompted(reward: Reward, images: Sequence[Image.Image]) -> list[str]:
    """A prompt for every image, neighbours' unlike; none where the reward needs none."""
    if not reward.spec.needs_prompt:
        return []
    return [reward.example_prompts[i % len(reward.example_prompts)] for i in range(len(images))]


def extreme() -> list[Image.Image]:
    """Images at the edges of what pixels can be: flat, saturated pairs, checkerboards of single pixels, noise."""
    flat = [Image.new("RGB", (32, 32), color) for color in ("black", "white", "gray", "red", "lime", "blue")]
    pairs = (("black", "white"), ("red", "cyan"), ("lime", "magenta"), ("blue", "yellow"))
    boards = [Image.fromarray(_board(32, *pair, step)) for pair in pairs for step in (1, 16)]
    unequal = Image.fromarray(_board(32, "red", "cyan", 1))
    unequal.paste("red", (0, 0, 32, 9))  # 64 % red: the colourful image of two colours
    dot = Image.new("RGB", (32, 32))
    dot.putpixel((16, 16), (255, 255, 255))
    return [*flat, *boards, unequal, dot, Image.fromarray(_noise(32, 32)), Image.fromarray(_noise(32, 32) // 128 * 255)]


def odd_sizes() -> list[Image.Image]:
    """Images of one pixel, of two by two, and 10000 times as long as wide."""
    return [Image.fromarray(_noise(*size)) for size in ((1, 1), (2, 2), (1, 10000), (10000, 1))]


def every_mode() -> list[Image.Image]:
    """One picture in each mode of Pillow that files come in, some of them with transparency."""
    color = Image.fromarray(_shade(32, 40))
    grey = color.convert("L")
    clear = color.copy()
    clear.putalpha(grey)
    keyed = color.quantize(16)
    keyed.info["transparency"] = 3
    deep = np.asarray(grey).astype(np.uint16) * 257
    return [
        color,
        grey,
        clear,
        clear.convert("LA"),
        color.quantize(16),
        keyed,
        color.convert("CMYK"),
        color.convert("YCbCr"),
        grey.convert("1"),
        Image.fromarray(deep),
        Image.fromarray(deep.astype(np.int32)),
        Image.fromarray(deep.astype(np.float32) / 65535),
    ]


def truncated(format: str) -> Image.Image:
    """An image whose file ends halfway, opened and not yet decoded."""
    file = io.BytesIO()
    Image.fromarray(_noise(48, 48)).save(file, format)
    return Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))


def _noise(height: int, width: int) -> Bytes:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _shade(height: int, width: int) -> Bytes:
    """A soft picture, [H, W, 3]: red grows to the right, green downwards, blue falls."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    return (np.stack([x, y, 1 - (x + y) / 2], 2) * 255).astype(np.uint8)


def _board(side: int, even: str, odd: str, step: int) -> Bytes:
    """A checkerboard of two colours with squares of `step` pixels, [side, side, 3]."""
    y, x = np.indices((side, side)) // step
    pair: Bytes = np.array([Image.new("RGB", (1, 1), color).getpixel((0, 0)) for color in (even, odd)], dtype=np.uint8)
    return np.take(pair, (x + y) % 2, axis=0)

"""Changes to an image, each with a severity; sizes are shares of the shorter side, so that they suit any resolution."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Change = Callable[[Image.Image, float], Image.Image]
_WORDS = "masterpiece, best quality"


class Edit(NamedTuple):
    """A change and the severities that it is tried at, the mildest first."""

    name: str
    change: Change
    severities: tuple[float, ...]
    form: str
    """What a severity is called: a format with one place."""
    ordered: bool = True
    """Whether a greater severity is more of the same."""

    def said(self, severity: float) -> str:
        """The change in words."""
        return self.form.format(severity)


def side(image: Image.Image, share: float) -> int:
    """So many pixels of the shorter side, one at least."""
    return max(1, round(share * min(image.size)))


def enhanced(kind: Any) -> Change:
    """A change by one of Pillow's enhancers; 1 leaves the image as it is."""
    return lambda image, factor: kind(image).enhance(factor)


def border(colour: str) -> Change:
    """A frame that covers the image's edge."""

    def change(image: Image.Image, share: float) -> Image.Image:
        made, width = image.copy(), side(image, share)
        ImageDraw.Draw(made).rectangle((0, 0, image.width - 1, image.height - 1), outline=colour, width=width)
        return made

    return change


def text(image: Image.Image, share: float) -> Image.Image:
    """Praise of the image's quality, written along its lower edge in letters of that height."""
    made, height = image.copy(), max(6, side(image, share))
    font = ImageFont.load_default(height)
    at = (2, image.height - height - 2)
    ImageDraw.Draw(made).text(at, _WORDS, font=font, fill="white", stroke_fill="black", stroke_width=1)
    return made


def grid(image: Image.Image, amplitude: float) -> Image.Image:
    """Checks of 8 pixels that are lighter and darker by so many grey levels."""
    y, x = np.indices((image.height, image.width)) // 8
    sign = np.where((x + y) % 2, 1, -1)[:, :, None]
    return _pixels(np.asarray(image).astype(np.float64) + amplitude * sign)


def collage(image: Image.Image, count: float) -> Image.Image:
    """The image repeated so many times along each side."""
    n, made = int(count), Image.new("RGB", image.size)
    small = image.resize((-(-image.width // n), -(-image.height // n)))
    for row in range(n):
        for column in range(n):
            made.paste(small, (column * small.width, row * small.height))
    return made


def blur(image: Image.Image, share: float) -> Image.Image:
    """A Gaussian blur whose sigma is that share of the side."""
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def noise(image: Image.Image, sd: float) -> Image.Image:
    """Gaussian noise of that standard deviation of values in 0..1; the same for every image of a size."""
    drawn = np.random.default_rng(0).normal(0, 255 * sd, (image.height, image.width, 3))
    return _pixels(np.asarray(image).astype(np.float64) + drawn)


def jpeg(image: Image.Image, quality: float) -> Image.Image:
    """The image through JPEG of that quality."""
    return _through(image, "JPEG", quality=int(quality))


def webp(image: Image.Image, _: float) -> Image.Image:
    """The image through lossless WebP: the same pixels."""
    return _through(image, "WEBP", lossless=True)


def coarse(image: Image.Image, factor: float) -> Image.Image:
    """The image made smaller by that factor and large again."""
    small = image.resize(
        (max(1, round(image.width / factor)), max(1, round(image.height / factor))), Image.Resampling.BOX
    )
    return small.resize(image.size, Image.Resampling.BICUBIC)


def shuffle(image: Image.Image, count: float) -> Image.Image:
    """So many tiles along each side, in another order."""
    n = int(count)
    x, y = (np.linspace(0, length, n + 1).astype(int) for length in image.size)
    boxes = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(n) for c in range(n)]
    made = image.copy()
    for box, source in zip(boxes, np.roll(np.random.default_rng(0).permutation(n * n), 1), strict=True):
        tile = image.crop(boxes[source])
        made.paste(tile.resize((box[2] - box[0], box[3] - box[1])), (box[0], box[1]))
    return made


def occlude(image: Image.Image, area: float) -> Image.Image:
    """A grey rectangle over that share of the area, in the middle."""
    made, keep = image.copy(), (1 - area**0.5) / 2
    box = (keep * image.width, keep * image.height, (1 - keep) * image.width, (1 - keep) * image.height)
    ImageDraw.Draw(made).rectangle(tuple(map(round, box)), fill="gray")
    return made


def shift(image: Image.Image, share: float) -> Image.Image:
    """The image moved right and down by that share of its side, its edge repeated."""
    by = side(image, share)
    array = np.pad(np.asarray(image), ((by, 0), (by, 0), (0, 0)), mode="edge")
    return Image.fromarray(array[: image.height, : image.width])


def resample(image: Image.Image, factor: float) -> Image.Image:
    """The image made larger by that factor."""
    size = round(image.width * factor), round(image.height * factor)
    return image.resize(size, Image.Resampling.BICUBIC)


def dither(image: Image.Image, levels: float) -> Image.Image:
    """Every value moved by so many grey levels, up or down at random."""
    sign = np.random.default_rng(0).choice([-1.0, 1.0], (image.height, image.width, 3))
    return _pixels(np.asarray(image).astype(np.float64) + levels * sign)


def flip(image: Image.Image, _: float) -> Image.Image:
    """The mirror image."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _pixels(values: Any) -> Image.Image:
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _through(image: Image.Image, format: str, **settings: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format, **settings)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


MUST_NOT_RISE = (
    Edit("saturation", enhanced(ImageEnhance.Color), (1.25, 1.5, 2, 3), "saturation times {:g}"),
    Edit("contrast", enhanced(ImageEnhance.Contrast), (1.25, 1.5, 2), "contrast times {:g}"),
    Edit("sharpness", enhanced(ImageEnhance.Sharpness), (2, 4, 8), "sharpness times {:g}"),
    Edit("brightness", enhanced(ImageEnhance.Brightness), (1.1, 1.2, 1.4), "brightness times {:g}"),
    Edit("white_border", border("white"), (0.02, 0.04, 0.08), "a white border of {:.0%} of the side"),
    Edit("black_border", border("black"), (0.02, 0.04, 0.08), "a black border of {:.0%} of the side"),
    Edit("text", text, (0.05, 0.1, 0.2), f"the words {_WORDS!r}, {{:.0%}} of the side high"),
    Edit("grid", grid, (2, 4, 8, 255), "checks of 8 pixels, {:g} grey levels up and down"),
    Edit("collage", collage, (2, 3), "a collage of {0:g} by {0:g} copies"),
)
MUST_FALL = (
    Edit("blur", blur, (0.01, 0.02, 0.04, 0.16), "blur with a sigma of {:.0%} of the side"),
    Edit("noise", noise, (0.04, 0.08, 0.16, 0.64), "noise with a standard deviation of {:.2f}"),
    Edit("jpeg", jpeg, (50, 30, 10, 1), "JPEG of quality {:g}"),
    Edit("coarse", coarse, (2, 4, 16), "made smaller by {:g} and large again"),
    Edit("shuffle", shuffle, (2, 4, 8), "{0:g} by {0:g} tiles in another order", ordered=False),
    Edit("occlusion", occlude, (0.1, 0.25, 0.5), "{:.0%} covered in grey"),
)
MUST_NOT_MOVE = (
    Edit("jpeg95", jpeg, (95,), "JPEG of quality {:g}"),
    Edit("webp", webp, (1,), "lossless WebP"),
    Edit("dither", dither, (1,), "every value moved by {:g} grey level"),
    Edit("resize", resample, (1.5, 2), "made larger by {:g}"),
    Edit("shift", shift, (0.01, 0.02), "moved by {:.0%} of the side"),
    Edit("flip", flip, (1,), "mirrored"),
)

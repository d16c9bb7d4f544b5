"""What a reward is: images and prompts in, one number per image out, larger is better."""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, final

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rwk.rewards.readable import is_text

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # AVIF
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for an image that cannot be decoded."""


@dataclass(frozen=True)
class RewardSpec:
    """What can be known of a reward without running it."""

    name: str
    """`family.variant`, as in the registry."""
    unit: str
    """What one step of the score means."""
    low: float
    """Smallest score that any image can get; may be -inf."""
    high: float
    """Largest score that any image can get; may be inf."""
    licence: str
    """Licence of the weights, or "n/a" where there are none."""
    source: str
    """DOI, arXiv id or address of the definition."""
    needs_prompt: bool = True
    deterministic: bool = True
    differentiable: bool = False


class Scores(NamedTuple):
    """One value per image, and why where there is none."""

    values: Tensor
    """[B] float32 on the CPU, in the reward's own unit; NaN where there is no score."""
    notes: list[str]
    """[B] why a value is NaN, or what the reward has to say of it; else ""."""


@dataclass(frozen=True)
class View:
    """What is seen of an image that is transparent, or that its EXIF tag turns.

    Here it is, unless something else is asked for, what a person sees: the picture upright, on white. Most official
    code takes pixels as the file stores them, `STORED`. This is the one point where rwk leaves it on purpose: people
    judged what they saw; a picture must not score otherwise because a camera wrote a tag in place of turning its
    pixels; and what lies below full transparency is arbitrary, so that a score of it would be of what nobody sees.
    Generated pictures have neither, as a rule, and score alike either way.
    """

    alpha: Literal["white", "drop"] = "white"
    """white: over white; drop: the colours as they are stored, whatever their alpha."""
    exif: Literal["upright", "ignore"] = "upright"
    """upright: turned as the tag says; ignore: as stored."""


SEEN, STORED = View(), View("drop", "ignore")


def to_rgb(image: Image.Image, view: View = SEEN) -> Image.Image:
    """The image as a person sees it: upright by its EXIF tag, 8-bit RGB, transparency over white; or in another view.

    Grey images of 16 or 32 bits are scaled by their nominal range (65535, or 1.0 for floats), which Pillow's own
    `convert` would clip. Floats may exceed it, as highlights do, up to twice. The image itself is left as it was, and
    is what comes back where there is nothing to do.
    """
    if min(image.size) < 1:
        raise ValueError(f"it has {image.width}x{image.height} pixels")
    turned = view.exif == "upright" and image.getexif().get(Base.Orientation, 1) != 1
    if image.mode == "RGB" and not turned and (view.alpha == "drop" or not image.has_transparency_data):
        image.load()  # which copying would have done
        return image
    upright = ImageOps.exif_transpose(image) if turned else image
    if upright.mode[0] in "IF":
        upright = _to_8_bit(upright, view)
    if upright.mode in ("La", "RGBa"):  # colours already multiplied by their alpha
        upright = upright.convert(upright.mode.upper())
    if view.alpha == "drop" or not upright.has_transparency_data:
        return upright if upright.mode == "RGB" else upright.convert("RGB")
    layer = upright.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _to_8_bit(image: Image.Image, view: View) -> Image.Image:
    """The grey image of mode I, I;16 or F in mode L; raises ValueError for floats that are no shades of 0 to 1."""
    white = 1.0 if image.mode == "F" else 65535.0
    grey = np.asarray(image, dtype=np.float32)  # [H, W]
    if not np.isfinite(grey).all():
        raise ValueError("it holds pixels that are not finite numbers")
    if image.mode == "F" and grey.max() > 2:  # of 0 to 255, which would be white all over
        raise ValueError(f"it holds floats up to {grey.max():g}, where 1 is white; divide them")
    clear = image.info.get("transparency")  # the one grey value that stands for transparency in a PNG file
    if isinstance(clear, int) and view.alpha == "white":
        grey = np.where(grey == clear, white, grey)
    return Image.fromarray(np.rint(grey.clip(0, white) * (255 / white)).astype(np.uint8))


class Reward(ABC):
    """A scorer of images. A subclass writes `spec`, `tiny` and `_score`; users call `score`."""

    spec: RewardSpec
    example_prompts: Sequence[str] = (
        "a red cube on a green ball",
        "a dog",
        "three small yellow birds on the branch of a tree, a lake behind them, early in the morning",
        "",
    )
    """Prompts that the reward can judge, of unequal length; `rewards.contract` scores them."""
    casts: bool = False
    """Whether its network computes in the half precision that is asked for, its head apart; else nothing changes."""
    drift: ClassVar[Mapping[str, float]] = {}
    """Most that a score moved where the network computed in that precision; `benchmarks/drift.py` measured it, on
    random weights at the published size."""
    precision_note: str = ""
    """What is to be said beside `drift`: how else it was measured, or why a network stays as it is."""

    def example_images(self) -> list[Image.Image]:
        """Images that the reward can tell apart, four or more; empty where any image will do."""
        return []

    def __init__(self, *, device: str = "cpu") -> None:
        self.device = torch.device(device)

    @classmethod
    @abstractmethod
    def tiny(cls) -> Reward:
        """The same adapter with a small random network, built without a download."""

    @abstractmethod
    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        """Scores of one batch.

        Args:
            images: RGB, in the reward's `view`, any size of at least 1x1.
            prompts: one per image, or none where the spec needs none and none were given.

        Returns:
            [B] scores, or `Scores` where some images get none.
        """

    @property
    def view(self) -> View:
        """What `_score` is given of images that are transparent or turned."""
        return SEEN

    def parts(self) -> dict[str, Reward]:
        """The rewards that this one is made of, by name; empty for a reward of its own."""
        return {}

    def score_parts(
        self, images: Sequence[Image.Image], prompts: Sequence[str] = (), *, batch_size: int = 16
    ) -> dict[str, Scores]:
        """Scores by name: of every part, however deep, and last of the whole; each is computed once.

        Takes what `score` takes. A reward without parts gives its own scores alone.
        """
        return {self.spec.name: self.score(images, prompts, batch_size=batch_size)}

    @final
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str] = (), *, batch_size: int = 16) -> Scores:
        """One score per image, in the reward's own unit.

        Args:
            images: PIL images of any size and mode.
            prompts: one per image; none where `spec.needs_prompt` is false.
            batch_size: images that go through the model at once; no score depends on it.

        Returns:
            `Scores` of as many values as images. An image that cannot be decoded gets NaN and a note.

        Raises:
            ValueError: when the number of prompts does not fit, or `batch_size` is below 1.
        """
        check_images_and_prompts(self.spec.name, images, prompts)
        check_prompts(self.spec, len(images), len(prompts))
        if batch_size < 1:
            raise ValueError(f"{self.spec.name} needs batch_size of at least 1, got {batch_size}.")
        values = torch.full([len(images)], math.nan, dtype=torch.float32)
        notes = [""] * len(images)
        for start in range(0, len(images), batch_size):
            readable: list[int] = []
            batch: list[Image.Image] = []
            for index in range(start, min(start + batch_size, len(images))):
                found = decoded(self.spec.name, images[index], self.view)
                if isinstance(found, str):
                    notes[index] = found
                else:
                    batch.append(found)
                    readable.append(index)
            if batch:
                with torch.no_grad():
                    result = self._score(batch, [prompts[i] for i in readable] if prompts else [])
                scored = checked(self.spec.name, result, len(batch))
                values[readable] = scored.values
                for index, note in zip(readable, scored.notes, strict=True):
                    notes[index] = note
        return Scores(values, notes)


class PixelReward(Reward):
    """A reward that is a differentiable function of pixels. A subclass writes `score_pixels` instead of `_score`."""

    smallest = 1
    """Fewest pixels along either side of an image for which the score is defined; smaller images get NaN."""
    tolerance = 0.0
    """Most that `score_pixels` may differ from `score`, where a subclass writes `_score` too (say, to resize)."""

    @abstractmethod
    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """[B] scores, with gradient, of pixels [B, 3, H, W] in 0..1."""

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        values, notes = torch.full([len(images)], math.nan, dtype=torch.float32), [""] * len(images)
        # One image at a time: sizes differ, and the sum over a batch would not round alike for every batch size.
        for i, image in enumerate(images):
            if min(image.size) < self.smallest:
                least = f"{self.smallest}x{self.smallest}"
                notes[i] = f"needs an image of at least {least} pixels, got {image.width}x{image.height}"
                continue
            pixels = pil_to_tensor(image)[None].to(self.device, torch.float32) / 255  # [1, 3, H, W]
            values[i] = checked(self.spec.name, self.score_pixels(pixels, prompts[i : i + 1]), 1).values[0]
        return Scores(values, notes)


def check_prompts(spec: RewardSpec, images: int, prompts: int) -> None:
    """Raises ValueError unless there is one prompt per image, or none where none is needed."""
    if prompts == images or (prompts == 0 and not spec.needs_prompt):
        return
    advice = (
        "leave the prompts out or give one per image"
        if not spec.needs_prompt
        else "repeat a prompt for every image made from it"
    )
    raise ValueError(f"{spec.name} needs one prompt per image, got {images} images and {prompts} prompts; {advice}.")


def check_images_and_prompts(name: str, images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    """Raises ValueError for what is no sequence of images or of prompts; a string would pass for a prompt a letter."""
    if isinstance(prompts, str):
        raise ValueError(f"{name} needs a list of prompts, got the text {prompts[:40]!r}; put it in a list.")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(
                f"{name} needs prompts that are text, got {type(prompt).__name__} in prompt {i}; convert it."
            )
        if not is_text(prompt):
            raise ValueError(f"{name} needs prompts in Unicode, got half of a surrogate pair in prompt {i}; mend it.")
    if isinstance(images, Image.Image):
        raise ValueError(f"{name} needs a list of images, got one {type(images).__name__}; put it in a list.")


def decoded(name: str, image: Image.Image, view: View = SEEN) -> Image.Image | str:
    """The image as RGB, or a note of why it cannot be decoded."""
    if not isinstance(image, Image.Image):
        raise ValueError(f"{name} needs PIL images, got {type(image).__name__}; open it with PIL.Image.open.")
    try:
        return to_rgb(image, view)
    except UNREADABLE as error:
        return f"cannot be decoded: {error}"


def checked(name: str, result: Tensor | Scores, count: int) -> Scores:
    """The batch's result as float32 on the CPU; raises ValueError for any other shape than [count]."""
    scores = result if isinstance(result, Scores) else Scores(result, [""] * count)
    if tuple(scores.values.shape) != (count,) or len(scores.notes) != count:
        raise ValueError(
            f"{name} must return one number per image, got values of shape {tuple(scores.values.shape)} and "
            f"{len(scores.notes)} notes for {count} images; return a tensor of shape [{count}]."
        )
    return Scores(scores.values.detach().to("cpu", torch.float32), list(scores.notes))

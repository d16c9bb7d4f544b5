"""How published scorers turn an image into what their network takes: one named object for each way."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.transforms.functional import pil_to_tensor

from rwk.rewards.base import STORED, View, to_rgb

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LONGEST = 64
"""Times the short side that an image to be centre-cropped may be long: the resized image has to fit in memory."""
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Fit = Literal["crop", "squash", "letterbox", "patches"]
FITS: dict[str, Literal["crop", "squash"]] = {"shortest": "crop", "squash": "squash"}
"""By the `resize_mode` of open_clip's settings of a tag."""
Rounding = Literal["floor", "round"]
Backend = Literal["pil", "float", "uint8"]
SPARE = 4
"""Times the resized side that `uint8` lets a JPEG file keep when it is shrunk while it is decoded."""


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop or fill, and normalise an image.

    `exact` is what the official code does, but for `alpha` and `exif`, whose defaults are what a person sees; `stored`
    gives the object that takes files as most official code does, and `rewards.base.View` says why that is not the rule.
    Both are taken care of when an image is decoded, once for all rewards of one `view`. `differentiable` does the same
    as `exact` on float pixels: it has gradients, and where `backend` is "pil" differs from `exact` by the rounding to 8
    bits, and at edges by what bicubic overshoots black and white, which Pillow clips.

    `fast` gives the object that makes nearly the same in less time. It resizes 8-bit pixels with torchvision: of the
    pictures in the tests at most 7 % of the numbers differ, by 1 grey level or 2. It also lets the decoder shrink a
    JPEG file to 1/2, 1/4 or 1/8 where 4 times the resized sides are left, by which they differ by up to 5 levels.
    Without antialias there is nothing faster.
    """

    size: int
    """Side of the square that comes out, in pixels."""
    fit: Fit = "crop"
    """crop: shorter side to `size`, then the centre; squash: both sides to `size`; letterbox: longer side to `size`,
    the rest black; patches: sides to multiples of `patch`, shape about kept, at most as many patches as in a square."""
    rounding: Rounding = "round"
    """Of the first row and column of the centre crop: floor as in transformers, round as in torchvision."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    backend: Backend = "pil"
    """pil resizes 8-bit pixels with Pillow; float resizes floats with torch, unclamped; uint8 resizes 8-bit pixels with
    torch."""
    antialias: bool = True
    """Whether shrinking averages; Pillow always does."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    patch: int = 16
    """Side of a patch, where `fit` is "patches"."""
    alpha: Literal["white", "drop"] = "white"
    """What is made of transparency, see `rewards.base.View`."""
    exif: Literal["upright", "ignore"] = "upright"
    """Whether an image is turned as its tag says, see `rewards.base.View`."""

    def __post_init__(self) -> None:
        if self.backend == "pil" and not self.antialias:
            raise ValueError("Pillow resizes with antialias only, got antialias=False; take backend='float'.")

    def __str__(self) -> str:
        edge = {"crop": f", centre crop ({self.rounding})", "letterbox": ", black around", "patches": " of patches"}
        shape = {
            "crop": "shorter side to",
            "squash": "squashed to",
            "letterbox": "longer side to",
            "patches": "an area",
        }
        backend = {"pil": "Pillow", "float": "floats", "uint8": "8-bit tensors"}[self.backend]
        filters = f"{self.interpolation} by {backend}" + ("" if self.antialias else " without antialias")
        alpha = "transparency on white" if self.alpha == "white" else "transparency dropped"
        exif = "upright by EXIF" if self.exif == "upright" else "EXIF ignored"
        return f"{exif}, {alpha}, {shape[self.fit]} {self.size} pixels{edge.get(self.fit, '')}, {filters}"

    @property
    def view(self) -> View:
        """What is seen of images that are transparent or turned."""
        return View(self.alpha, self.exif)

    def stored(self) -> Preprocess:
        """This way for the pixels as files store them: not turned, and their alpha dropped."""
        return replace(self, alpha=STORED.alpha, exif=STORED.exif)

    def refusal(self, image: Image.Image) -> str:
        """Why an image gets no score, or ""."""
        if self.fit == "crop" and max(image.size) > LONGEST * min(image.size):
            size = f"{image.width}x{image.height}"
            return f"is cropped to its centre, so it may be at most {LONGEST} times as long as wide, got {size}"
        return ""

    def exact(self, images: list[Image.Image]) -> Tensor:
        """[B, 3, size, size] float32 on the CPU, of images of any size and mode.

        Where `fit` is "patches" it is [B, 3, h, w], and every image must have the same `resized`.
        """
        return self.normalised(torch.stack([self.image(to_rgb(image, self.view)) for image in images]))

    def image(self, image: Image.Image) -> Tensor:
        """[3, size, size] of an RGB image, not yet normalised: uint8, or float32 in 0..1 if resized so."""
        width, height = self.resized(image.width, image.height)
        if self.backend == "pil":
            filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
            if (width, height) != image.size:
                image = image.resize((width, height), filters[self.interpolation])
            return self._framed(pil_to_tensor(image)).contiguous()  # alone, not as a view of what was cropped off
        pixels = pil_to_tensor(image)[None]
        if self.backend == "float":
            pixels = pixels.float() / 255
        return self._framed(self._resized(pixels))[0].contiguous()

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, size, size] that `image` made, as the network takes them, in float32."""
        pixels = pixels if pixels.is_floating_point() else pixels.float() / 255
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def fast(self) -> Preprocess:
        """The way that makes nearly the same in less time; this one where there is none."""
        return replace(self, backend="uint8") if self.antialias else self

    def least_size(self, width: int, height: int) -> tuple[int, int] | None:
        """Width and height down to which a decoder may shrink an image of that size beforehand; None: not at all."""
        if self.backend != "uint8" or self.fit == "patches":  # whose number depends on the exact shape
            return None
        wide, high = self.resized(width, height)
        return SPARE * wide, SPARE * high

    def differentiable(self, pixels: Tensor) -> Tensor:
        """[B, 3, size, size] (of patches [B, 3, h, w]) with gradient, of pixels [B, 3, H, W] in 0..1."""
        return self.normalised(self._framed(self._resized(pixels)))

    def _resized(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] at the size of `resized`, in their own type."""
        width, height = self.resized(pixels.shape[3], pixels.shape[2])
        if (height, width) == tuple(pixels.shape[2:]):
            return pixels
        return interpolate(
            pixels, (height, width), mode=self.interpolation, antialias=self.antialias, align_corners=False
        )

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize, before crop or fill; no side is below 1."""
        if self.fit == "squash":
            return self.size, self.size
        if self.fit == "letterbox":
            scale = self.size / max(width, height)
            return max(round(width * scale), 1), max(round(height * scale), 1)
        if self.fit == "patches":
            return self._whole_patches(width, height)
        short, long = sorted((width, height))
        other = int(self.size * long / short)
        return (self.size, other) if width <= height else (other, self.size)

    def _whole_patches(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in whole patches, each rounded up, at the largest scale at which these are not too many.

        The scale is found as in transformers, by halving 1e-6 to 100 until 1e-5 are left: a small image stays small.
        """

        def at(scale: float) -> tuple[int, int]:
            across, down = (max(math.ceil(side * scale / self.patch), 1) * self.patch for side in (width, height))
            return across, down

        low, high = 1e-6, 100.0
        while high - low >= 1e-5:
            middle = (low + high) / 2
            low, high = (middle, high) if math.prod(at(middle)) <= self.size**2 else (low, middle)
        return at(low)

    def _framed(self, pixels: Tensor) -> Tensor:
        """Pixels [..., 3, H, W], resized already, as a square."""
        down, across = (side - self.size for side in pixels.shape[-2:])
        if self.fit == "crop":
            top, left = (extra // 2 if self.rounding == "floor" else round(extra / 2) for extra in (down, across))
            pixels = pixels[..., top : top + self.size, left : left + self.size]
        elif self.fit == "letterbox":
            pixels = pad(pixels, (-across // 2, -across - -across // 2, -down // 2, -down - -down // 2))
        return pixels

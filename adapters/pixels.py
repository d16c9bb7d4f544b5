"""Measures of a picture that need no network: colourfulness, sharpness, contrast, exposure and noise.

All are differentiable. Pixels count as they are stored (sRGB, no linear light); grey is the luma of ITU-R BT.601, not
rounded to 8 bits. Bounds in the specs are attained or approached: by two opposite colours, by a checkerboard, by half
black and half white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rwk.rewards.base import PixelReward, RewardSpec

_LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))
_IMMERKAER = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))


def _luma(pixels: Tensor) -> Tensor:
    """Grey [B, 1, H, W] of pixels [B, 3, H, W], in their unit."""
    weights = pixels.new_tensor([0.299, 0.587, 0.114])
    return (pixels * weights[:, None, None]).sum(1, keepdim=True)


def _filtered(grey: Tensor, kernel: tuple[tuple[float, ...], ...]) -> Tensor:
    """What a 3x3 kernel makes of grey [B, 1, H, W] where it fits, [B, 1, H - 2, W - 2]."""
    return F.conv2d(grey, grey.new_tensor(kernel)[None, None])


def _mirrored(grey: Tensor) -> Tensor:
    """Grey [B, 1, H, W] with a border of one pixel that mirrors it, [B, 1, H + 2, W + 2]; one pixel mirrors itself."""
    rows = F.pad(grey, (0, 0, 1, 1), "reflect" if grey.shape[2] > 1 else "replicate")
    return F.pad(rows, (1, 1, 0, 0), "reflect" if grey.shape[3] > 1 else "replicate")


def _norm(rows: Tensor) -> Tensor:
    """Length of every row [B, N], as [B]. Unlike that of a square root, its gradient at 0 is 0, not infinite."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths


class Colorfulness(PixelReward):
    """Colourfulness M3 of Hasler and Suesstrunk (2003): spread and mean of the two opponent colours; grey is 0.

    The bound is that of two opposite colours, such as red and cyan, in the proportion 64 to 36.
    """

    spec = RewardSpec(
        "colorfulness",
        "M3, in 8-bit steps",
        0,
        255 * math.sqrt(1.25 * 1.09),
        "n/a",
        "doi:10.1117/12.477378",
        needs_prompt=False,
        differentiable=True,
    )

    @classmethod
    def tiny(cls) -> Colorfulness:
        return cls()

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        red, green, blue = (pixels * 255).flatten(2).unbind(1)  # [B, H W] each
        opponent = torch.stack([red - green, (red + green) / 2 - blue], 1)  # [B, 2, H W]
        mean = opponent.mean(2, keepdim=True)
        spread = _norm((opponent - mean).flatten(1)) / math.sqrt(opponent.shape[2])
        return spread + 0.3 * _norm(mean.flatten(1))


class Sharpness(PixelReward):
    """Variance of the Laplacian of the grey picture, after Pech-Pacheco et al. (2000); flat is 0.

    In the form in common use, `cv2.Laplacian(grey, cv2.CV_64F).var()`: the 4-neighbour kernel without the paper's
    factor of 1/6, signed values, mirrored borders. The bound is a checkerboard of single pixels, so noise scores high.
    """

    spec = RewardSpec(
        "sharpness",
        "squared 8-bit steps",
        0,
        1020.0**2,
        "n/a",
        "doi:10.1109/ICPR.2000.903548",
        needs_prompt=False,
        differentiable=True,
    )

    @classmethod
    def tiny(cls) -> Sharpness:
        return cls()

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        edges = _filtered(_mirrored(_luma(pixels * 255)), _LAPLACE)
        return edges.flatten(1).var(1, correction=0)


class Contrast(PixelReward):
    """Root-mean-square contrast (Peli, 1990): standard deviation of grey in 0..1, divided by n; flat is 0.

    Peli divides by n - 1, which gives no number for a single pixel. The bound is half black, half white.
    """

    spec = RewardSpec(
        "contrast",
        "RMS of grey in 0..1",
        0,
        0.5,
        "n/a",
        "doi:10.1364/JOSAA.7.002032",
        needs_prompt=False,
        differentiable=True,
    )

    @classmethod
    def tiny(cls) -> Contrast:
        return cls()

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        grey = _luma(pixels).flatten(1)
        return _norm(grey - grey.mean(1, keepdim=True)) / math.sqrt(grey.shape[1])


class Exposure(PixelReward):
    """Well-exposedness of Mertens et al. (2007): closeness of every channel to 0.5, averaged over the pixels.

    The weight of a pixel is the product over its channels of exp(-(i - 0.5)^2 / (2 0.2^2)), as in the paper, where it
    weighs pixels against each other; its mean is what makes it a score of a picture. Saturated pictures have the least.
    """

    spec = RewardSpec(
        "exposure",
        "mean weight in 0..1",
        math.exp(-3 * 0.5**2 / (2 * 0.2**2)),
        1,
        "n/a",
        "doi:10.1109/PG.2007.17",
        needs_prompt=False,
        differentiable=True,
    )

    @classmethod
    def tiny(cls) -> Exposure:
        return cls()

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        return torch.exp(-(pixels - 0.5).square().sum(1) / (2 * 0.2**2)).flatten(1).mean(1)


class Noise(PixelReward):
    """Minus the standard deviation of noise as Immerkaer (1996) estimates it from grey; a flat picture scores 0.

    Larger is better, hence the sign. Fine texture counts as noise, as in the paper. The 3x3 kernel must fit, so a
    picture of fewer than 3 pixels along a side gets no score.
    """

    spec = RewardSpec(
        "noise",
        "minus sigma in 8-bit steps",
        -math.sqrt(math.pi / 2) / 6 * 8 * 255,
        0,
        "n/a",
        "doi:10.1006/cviu.1996.0060",
        needs_prompt=False,
        differentiable=True,
    )
    smallest = 3

    @classmethod
    def tiny(cls) -> Noise:
        return cls()

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        left = _filtered(_luma(pixels * 255), _IMMERKAER).abs().flatten(1).mean(1)
        return 0 - left * (math.sqrt(math.pi / 2) / 6)  # not -left: a flat picture scores 0, not -0

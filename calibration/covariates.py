"""What images look like in a few numbers: what a reward may like more than those who judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from rwk.calibration.pairs import Floats
from rwk.rewards.base import to_rgb

_LUMA = np.array([0.299, 0.587, 0.114])


def saturation(pixels: Floats) -> float:
    """Mean saturation of HSV, 0..1, of pixels [H, W, 3] in 0..1."""
    high, low = pixels.max(2), pixels.min(2)
    return float(np.divide(high - low, high, out=np.zeros_like(high), where=high > 0).mean())


def brightness(pixels: Floats) -> float:
    """Mean luma, 0..1."""
    return float((pixels @ _LUMA).mean())


def contrast(pixels: Floats) -> float:
    """Standard deviation of the luma."""
    return float((pixels @ _LUMA).std())


def sharpness(pixels: Floats) -> float:
    """Logarithm of the mean squared Laplacian of the luma in grey levels, so that a picture of no edges has 0."""
    grey = np.pad(pixels @ _LUMA * 255, 1, mode="edge")
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.log1p(((around - 4 * grey[1:-1, 1:-1]) ** 2).mean()))


def size(pixels: Floats) -> float:
    """Logarithm of the number of pixels."""
    return float(np.log(pixels.shape[0] * pixels.shape[1]))


COVARIATES: Mapping[str, Callable[[Floats], float]] = {
    "saturation": saturation,
    "brightness": brightness,
    "contrast": contrast,
    "sharpness": sharpness,
    "size": size,
}


def covariates(images: Sequence[Image.Image]) -> dict[str, Floats]:
    """[N] of each of `COVARIATES`."""
    rows = []
    for image in images:
        pixels = np.asarray(to_rgb(image)) / 255.0
        rows.append([measure(pixels) for measure in COVARIATES.values()])
    return dict(zip(COVARIATES, np.array(rows).reshape(len(rows), len(COVARIATES)).T, strict=True))

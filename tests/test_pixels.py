"""Measures without a network: each against an independent computation, at its bounds, and on the smallest images."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import ndimage, stats

from rwk.adapters.jpeg import LARGEST, Compressibility, Incompressibility, jpeg_bytes
from rwk.adapters.pixels import Colorfulness, Contrast, Exposure, Noise, Sharpness
from rwk.rewards.base import PixelReward

MEASURES = (Colorfulness, Sharpness, Contrast, Exposure, Noise)


@cache
def photographs() -> tuple[Image.Image, ...]:
    """The two photographs of scikit-learn, whole and in crops that differ in light, colour and detail."""
    from sklearn.datasets import load_sample_images

    images = [Image.fromarray(array) for array in load_sample_images().images]
    crops = [image.crop((x, 80, x + 150, 201)) for image in images for x in (10, 300, 480)]
    return (*images, *crops)


def luma(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) @ [0.299, 0.587, 0.114]


def colorfulness(image: Image.Image) -> float:
    """Equations of Hasler and Suesstrunk (2003), section 5, as they stand."""
    red, green, blue = np.asarray(image, dtype=np.float64).reshape(-1, 3).T
    rg, yb = red - green, 0.5 * (red + green) - blue
    return float(math.hypot(rg.std(), yb.std()) + 0.3 * math.hypot(rg.mean(), yb.mean()))


def sharpness(image: Image.Image) -> float:
    """`cv2.Laplacian(grey, cv2.CV_64F).var()`, whose default border is scipy's mirror."""
    kernel = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
    return float(ndimage.convolve(luma(image), kernel, mode="mirror").var())


def contrast(image: Image.Image) -> float:
    return float(stats.tstd(luma(image), axis=None, ddof=0) / 255)


def exposure(image: Image.Image) -> float:
    bell = stats.norm(0.5, 0.2)
    return float((bell.pdf(np.asarray(image) / 255) / bell.pdf(0.5)).prod(2).mean())


def noise(image: Image.Image) -> float:
    """Immerkaer's mask as the difference of two Laplacians, which is how the paper makes it; minus its sigma."""
    first = ndimage.convolve(luma(image), [[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    second = ndimage.convolve(luma(image), [[1, 0, 1], [0, -4, 0], [1, 0, 1]]) / 2
    total = np.abs(2 * (second - first))[1:-1, 1:-1].sum()
    return -float(math.sqrt(math.pi / 2) * total / (6 * (image.width - 2) * (image.height - 2)))


@pytest.mark.parametrize(
    ("measure", "reference"),
    [(Colorfulness, colorfulness), (Sharpness, sharpness), (Contrast, contrast), (Exposure, exposure), (Noise, noise)],
)
def test_scores_are_those_of_an_independent_computation(
    measure: type[PixelReward], reference: Callable[[Image.Image], float]
) -> None:
    """On photographs the score is that of numpy and scipy in float64, to float32 rounding."""
    scores = measure(device="cpu").score(photographs()).values
    expected = [reference(image) for image in photographs()]
    assert np.ptp(expected) > 0.1 * np.mean(np.abs(expected))  # the images tell
    np.testing.assert_allclose(scores, expected, rtol=2e-5)


def test_noise_finds_the_noise_that_was_added() -> None:
    """On a flat picture with Gaussian noise in grey the score is minus its standard deviation."""
    rng = np.random.default_rng(0)
    for sigma in (3.0, 8.0, 15.0):
        grey = (128 + rng.normal(0, sigma, (300, 300))).round().clip(0, 255).astype(np.uint8)
        (score,) = Noise().score([Image.fromarray(grey)]).values.tolist()
        assert score == pytest.approx(-sigma, rel=0.03)


def test_directions() -> None:
    """Larger is better, or more of what the name says: colour, sharpness, contrast, mid-tones, quiet, smoothness."""
    image = photographs()[0]
    worse = {
        Colorfulness: image.convert("L"),
        Sharpness: image.filter(ImageFilter.GaussianBlur(2)),
        Contrast: image.point(lambda level: level / 4 + 96),
        Exposure: image.point(lambda level: level * 4),
        Noise: image.resize((320, 213)).effect_spread(3),
        Compressibility: image.effect_spread(3),
        Incompressibility: image.filter(ImageFilter.GaussianBlur(2)),
    }
    for measure, changed in worse.items():
        better, lesser = measure().score([image, changed]).values.tolist()  # type: ignore[attr-defined]
        assert better > lesser, measure


def two_colours(first: str, second: str, share: float) -> Image.Image:
    image = Image.new("RGB", (100, 100), second)
    image.paste(first, (0, 0, 100, round(100 * share)))
    return image


def checkerboard(side: int = 32) -> Image.Image:
    return Image.fromarray((np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("measure", "lowest", "highest"),
    [
        (Colorfulness, Image.new("RGB", (9, 9), "gray"), two_colours("red", "cyan", 0.64)),
        (Sharpness, Image.new("RGB", (9, 9), "red"), checkerboard()),
        (Contrast, Image.new("RGB", (9, 9), "red"), two_colours("black", "white", 0.5)),
        (Exposure, two_colours("red", "white", 0.3), Image.new("RGB", (9, 9), (128, 127, 128))),
        (Noise, checkerboard(), Image.new("RGB", (9, 9), "lime")),
    ],
)
def test_the_stated_bounds_are_reached(measure: type[PixelReward], lowest: Image.Image, highest: Image.Image) -> None:
    """The range in the spec is no wider than it must be."""
    low, high = measure(device="cpu").score([lowest, highest]).values.tolist()
    room = 2e-4 * (measure.spec.high - measure.spec.low)
    assert low == pytest.approx(measure.spec.low, abs=room)
    assert high == pytest.approx(measure.spec.high, abs=room)


@pytest.mark.parametrize("measure", MEASURES)
def test_no_image_leaves_the_range(measure: type[PixelReward]) -> None:
    """Over many images of few saturated colours, where the extremes lie, every score is within the bounds."""
    rng = np.random.default_rng(1)
    arrays = [rng.choice([0, 255], (*rng.integers(3, 9, 2), 3), p=[p, 1 - p]) for p in rng.uniform(0, 1, 300)]
    arrays += [array[:, :, :1].repeat(3, 2) for array in arrays[:100]]
    values = measure(device="cpu").score([Image.fromarray(array.astype(np.uint8)) for array in arrays]).values
    room = 1e-6 * (measure.spec.high - measure.spec.low)
    assert values.min() >= measure.spec.low - room
    assert values.max() <= measure.spec.high + room


@pytest.mark.parametrize("measure", MEASURES)
def test_gradient_is_that_of_finite_differences(measure: type[PixelReward]) -> None:
    """The gradient agrees with differences in float64, away from kinks and at flat pictures alike finite."""
    pixels = torch.rand(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(measure(device="cpu").score_pixels, pixels.requires_grad_(), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("measure", [Colorfulness, Sharpness, Contrast])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_smallest_images(measure: type[PixelReward], size: tuple[int, int]) -> None:
    """A flat image of any size has no contrast and no edges; its colour is that of the same image at any size."""
    small, large = measure(device="cpu").score([Image.new("RGB", s, "red") for s in (size, (50, 50))]).values.tolist()
    assert small == pytest.approx(large, abs=1e-6)
    assert (small > 80) == (measure is Colorfulness)


def test_noise_needs_three_pixels() -> None:
    """Where the 3x3 mask does not fit there is no score, and the note says so."""
    values, notes = Noise().score([Image.new("RGB", size) for size in ((2, 9), (9, 2), (3, 3))])
    assert values.isnan().tolist() == [True, True, False]
    assert notes == [
        "needs an image of at least 3x3 pixels, got 2x9",
        "needs an image of at least 3x3 pixels, got 9x2",
        "",
    ]


class TestJpeg:
    def test_size_is_that_of_the_file_that_ddpo_writes(self, tmp_path: Path) -> None:
        """Kilobytes of 1000 bytes of `save(..., "JPEG", quality=95)`, with the sign of each reward."""
        expected = []
        for i, image in enumerate(photographs()):
            Image.fromarray(np.asarray(image)).save(tmp_path / f"{i}.jpg", quality=95)
            expected.append((tmp_path / f"{i}.jpg").stat().st_size / 1000)
        np.testing.assert_allclose(Incompressibility().score(photographs()).values, expected, rtol=1e-6)
        np.testing.assert_allclose(Compressibility().score(photographs()).values, -np.array(expected), rtol=1e-6)

    def test_parameters_are_pillows_defaults(self) -> None:
        """Chroma halved along both axes, baseline, tables of quality 95: written out, the file is the same length."""
        image = photographs()[3]
        file = io.BytesIO()
        image.save(file, "JPEG", quality=95, subsampling="4:2:0", progressive=False, optimize=False)
        assert jpeg_bytes(image) == len(file.getvalue())
        image.save(finer := io.BytesIO(), "JPEG", quality=95, subsampling="4:4:4")
        assert jpeg_bytes(image) < len(finer.getvalue())

    def test_metadata_does_not_count(self) -> None:
        """A comment, a profile or EXIF of the file that an image came from leaves its score alone."""
        image = photographs()[2]
        exif = Image.Exif()
        exif[0x010E] = "a long description " * 50
        file = io.BytesIO()
        image.save(file, "PNG", exif=exif, icc_profile=b"\0" * 3000)
        marked = Image.open(file)
        marked.info["comment"] = b"a comment " * 100
        plain, same = Incompressibility().score([image, marked]).values.tolist()
        assert plain == same

    def test_larger_than_jpeg_can_be(self) -> None:
        """An image that JPEG cannot hold gets NaN and a note; the largest one gets a score."""
        values, notes = Compressibility().score([Image.new("RGB", (side, 1)) for side in (LARGEST, LARGEST + 1)])
        assert values.isnan().tolist() == [False, True]
        assert notes == ["", f"JPEG holds {LARGEST} pixels a side, got {LARGEST + 1}x1"]

"""Preprocessing: pixel for pixel what torchvision, open_clip and transformers make of pictures of odd sizes."""

from __future__ import annotations

import io
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms

from rwk.adapters.preprocess import CLIP_MEAN, CLIP_STD, HALF, LONGEST, Preprocess
from rwk.rewards.base import SEEN, STORED
from rwk.rewards.images import read

CASE = runpy.run_path(str(Path(__file__).with_name("clip_case.py")))
LETTERBOX = Preprocess(64, "letterbox", backend="float")
SIZES = [(64, 64), (65, 64), (67, 45), (45, 67), (101, 64), (64, 101), (333, 201), (31, 17), (200, 7), (1, 1), (1, 9)]
"""Width and height: exact, odd margins either way, long, to enlarge, of one pixel."""


def pictures() -> list[Image.Image]:
    return [CASE["picture"](f"{width}x{height}", width, height) for width, height in SIZES]


def same(preprocess: Preprocess, expected: list[Tensor]) -> None:
    """Asserts that every picture becomes the expected pixels, up to the order of two float32 operations."""
    assert min(pixels.std() for pixels in expected[:-2]) > 0.3  # they tell
    torch.testing.assert_close(preprocess.exact(pictures()), torch.stack(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [64, 63])
def test_crop_is_that_of_torchvision(size: int) -> None:
    """Resize of the shorter side with Pillow, centre crop and normalisation of torchvision, on every size."""
    steps = [
        transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(CLIP_MEAN, CLIP_STD),
    ]
    same(Preprocess(size), [transforms.Compose(steps)(image) for image in pictures()])


@pytest.mark.parametrize(("fit", "mode"), [("crop", "shortest"), ("squash", "squash")])
def test_crop_and_squash_are_those_of_open_clip(fit: str, mode: str) -> None:
    """`image_transform` of open_clip, as its models' own preprocessing is made."""
    import open_clip

    transform = open_clip.image_transform(64, is_train=False, resize_mode=mode, interpolation="bicubic")
    same(Preprocess(64, fit=fit), [transform(image) for image in pictures()])  # type: ignore[arg-type]


def marked(name: str) -> Image.Image:
    """A picture that its EXIF tag turns, one with transparency, or both, as a file holds them."""
    image = CASE["picture"]("marked", 90, 70)
    if "clear" in name:
        image.putalpha(CASE["picture"]("alpha", 90, 70, "L"))
    exif = Image.Exif()
    exif[0x0112] = 6 if "turned" in name else 1
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return Image.open(file)


@pytest.mark.parametrize("name", ["turned", "clear", "turned and clear"])
def test_stored_is_what_official_code_makes_of_a_file(name: str) -> None:
    """`stored` gives what `convert("RGB")` and torchvision make of the file, the default what a person sees of it."""
    prepare = transforms.Compose(
        [
            transforms.Resize(64, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    preprocess = Preprocess(64)
    assert (preprocess.view, preprocess.stored().view) == (SEEN, STORED)
    torch.testing.assert_close(
        preprocess.stored().exact([marked(name)])[0], prepare(marked(name).convert("RGB")), rtol=0, atol=2e-6
    )
    seen = ImageOps.exif_transpose(marked(name)).convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    torch.testing.assert_close(preprocess.exact([marked(name)])[0], prepare(white), rtol=0, atol=2e-6)
    assert (preprocess.exact([marked(name)]) - preprocess.stored().exact([marked(name)])).abs().max() > 0.5


def test_a_way_to_prepare_tells_itself() -> None:
    """Its text names what is done of orientation, transparency, size, margin and filter."""
    told = "upright by EXIF, transparency on white, shorter side to 64 pixels, centre crop (round), bicubic by Pillow"
    assert str(Preprocess(64)) == told
    told = "EXIF ignored, transparency dropped, longer side to 64 pixels, black around, bicubic by floats"
    assert str(LETTERBOX.stored()) == told


def test_floor_crop_is_that_of_transformers() -> None:
    """CLIP's image processor of transformers with Pillow, whose margin is rounded down."""
    from transformers import CLIPImageProcessorPil

    square = {"height": 64, "width": 64}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=square)
    expected = [processor(image, return_tensors="pt")["pixel_values"][0] for image in pictures()]
    same(Preprocess(64, rounding="floor"), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_squash_is_that_of_transformers(interpolation: str) -> None:
    """SigLIP's image processor of transformers with Pillow, with the filter of either version."""
    from transformers import SiglipImageProcessorPil

    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    processor = SiglipImageProcessorPil(size={"height": 64, "width": 64}, resample=filters[interpolation])
    expected = [processor(image, return_tensors="pt")["pixel_values"][0] for image in pictures()]
    same(Preprocess(64, fit="squash", interpolation=interpolation, mean=HALF, std=HALF), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("antialias", [True, False])
def test_letterbox_is_that_of_torchvision_on_floats(antialias: bool) -> None:
    """Longer side to 64 by torchvision's resize of a float tensor, black around it, then normalised; sides round."""
    expected = []
    for image in pictures():
        scale = 64 / max(image.size)
        width, height = (max(round(side * scale), 1) for side in image.size)
        bicubic = transforms.InterpolationMode.BICUBIC
        pixels = F.resize(F.to_tensor(image), [height, width], bicubic, antialias=antialias)
        left, top = (64 - width) // 2, (64 - height) // 2
        pixels = F.pad(pixels, [left, top, 64 - width - left, 64 - height - top], fill=0)
        expected.append(F.normalize(pixels, CLIP_MEAN, CLIP_STD))
    same(Preprocess(64, fit="letterbox", backend="float", antialias=antialias), expected)


def test_every_choice_shows() -> None:
    """On these sizes each choice of preprocessing makes other pixels than the next, by far more than any rounding."""
    base = Preprocess(64)
    changes = [
        {"rounding": "floor"},
        {"fit": "squash"},
        {"fit": "letterbox"},
        {"interpolation": "bilinear"},
        {"backend": "float"},
        {"backend": "float", "antialias": False},
        {"std": HALF},
    ]
    found = [base.exact(pictures()), *(replace(base, **change).exact(pictures()) for change in changes)]
    for i, first in enumerate(found):
        for second in found[:i]:
            assert (first - second).abs().max() > 0.02


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_differentiable_is_exact_up_to_8_bits(fit: str, interpolation: str) -> None:
    """On floats a picture of low contrast comes out as from Pillow, to 2 levels in 255.

    Low contrast, since bicubic overshoots at edges, where Pillow clips and floats do not.
    """
    preprocess = Preprocess(64, fit=fit, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1))  # type: ignore[arg-type]
    for image in pictures():
        faint = image.point(lambda level: level // 2 + 64)
        found, exact = preprocess.differentiable(F.to_tensor(faint)[None]), preprocess.exact([faint])
        torch.testing.assert_close(found, exact, rtol=0, atol=2 / 255)


def test_differentiable_has_the_gradient_of_a_linear_map() -> None:
    """Resize, crop and normalisation are affine, and the gradient is that map's."""
    for preprocess in (Preprocess(8), Preprocess(8, fit="letterbox", backend="float"), Preprocess(8, fit="squash")):
        pixels = torch.rand(1, 3, 11, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert torch.autograd.gradcheck(preprocess.differentiable, pixels.requires_grad_())


def test_a_batch_is_its_pictures() -> None:
    """Pictures of unequal size are prepared each as if it were alone."""
    preprocess = Preprocess(64)
    together = preprocess.exact(pictures())
    for i, image in enumerate(pictures()):
        assert torch.equal(together[i : i + 1], preprocess.exact([image]))


def test_a_picture_too_long_to_be_cropped_is_refused() -> None:
    """At 64 times as long as wide a picture is still cropped; beyond it is refused, unless it is not cropped at all."""
    fits, longer = Image.new("RGB", (2 * LONGEST, 2)), Image.new("RGB", (2, 2 * LONGEST + 1))
    assert Preprocess(64).refusal(fits) == ""
    told = "is cropped to its centre, so it may be at most 64 times as long as wide, got 2x129"
    assert Preprocess(64).refusal(longer) == told
    for fit in ("squash", "letterbox"):
        assert Preprocess(64, fit=fit).refusal(longer) == ""  # type: ignore[arg-type]
        assert Preprocess(64, fit=fit).exact([longer]).shape == (1, 3, 64, 64)  # type: ignore[arg-type]


def test_pillow_always_averages() -> None:
    """Pillow without antialias is refused, since it would be quietly ignored."""
    with pytest.raises(
        ValueError, match="Pillow resizes with antialias only, got antialias=False; take backend='float'"
    ):
        Preprocess(64, antialias=False)


def photograph() -> Image.Image:
    """Edges, thin lines and grain at the size of a camera's picture."""
    coarse = CASE["picture"]("photograph", 160, 120).resize((1600, 1200), Image.Resampling.BICUBIC)
    grain = Image.effect_noise(coarse.size, 12).convert("RGB")
    mixed = Image.blend(coarse, grain, 0.1)
    for x in range(0, 1600, 40):
        mixed.paste("white", (x, 0, x + 2, 1200))
    return mixed


@pytest.mark.parametrize("preprocess", [Preprocess(64), Preprocess(64, "squash", interpolation="bilinear"), LETTERBOX])
def test_fast_is_within_two_grey_levels_of_exact(preprocess: Preprocess) -> None:
    """On every size, and on a large picture with edges, few pixels differ from those of the exact way, by 2 at most.

    Where the exact way resizes floats, which overshoot black and white, the picture is of low contrast.
    """
    plain = replace(preprocess, mean=(0, 0, 0), std=(1, 1, 1))
    faint = preprocess.backend == "float"
    made = [image.point(lambda level: level // 2 + 64) if faint else image for image in [*pictures(), photograph()]]
    found, exact = plain.fast().exact(made) * 255, plain.exact(made) * 255
    assert plain.fast() != plain
    assert (found - exact).abs().max() <= 2.01
    assert ((found - exact).abs() > 0.51).float().mean() < 0.08


def test_a_shrunk_jpeg_file_is_within_five_levels(tmp_path: Path) -> None:
    """Of a photograph the decoder gives a quarter of the sides, and what is prepared of it differs by 5 levels at most.

    An image that is turned by its EXIF tag comes out upright all the same, and one in CMYK or grey as RGB.
    """
    picture = photograph()
    exif = Image.Exif()
    exif[0x0112] = 6
    fast, exact = (replace(way, mean=(0, 0, 0), std=(1, 1, 1)) for way in (Preprocess(64).fast(), Preprocess(64)))
    for mode, tags in (("RGB", None), ("RGB", exif), ("L", None), ("CMYK", None)):
        path = tmp_path / "photograph.jpg"
        picture.convert(mode).save(path, quality=92, **({"exif": tags} if tags else {}))
        whole, shrunk = read(path).image, read(path, fast.least_size).image
        assert whole is not None
        assert shrunk is not None
        assert shrunk.mode == "RGB"
        assert (4 * shrunk.width, 4 * shrunk.height) == whole.size
        assert (whole.width > whole.height) is (tags is None)
        apart = (fast.exact([shrunk]) - exact.exact([whole])).abs() * 255
        assert 0 < apart.max() <= 5.01
    assert exact.least_size(1600, 1200) is None


def test_without_antialias_there_is_no_faster_way() -> None:
    """HPSv2's legacy preprocessing is the same under either name."""
    legacy = Preprocess(64, fit="letterbox", backend="float", antialias=False)
    assert legacy.fast() is legacy

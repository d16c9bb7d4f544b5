"""How every kind of image becomes RGB: orientation, depth, transparency, animation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rwk.rewards.base import SEEN, STORED, View, to_rgb


def grey(level: int, size: tuple[int, int] = (3, 2)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def saved(image: Image.Image, format: str, **options: object) -> Image.Image:
    """The image written to a file of that format and opened again."""
    file = io.BytesIO()
    image.save(file, format, **options)  # type: ignore[arg-type]
    return Image.open(file)


def test_upright_by_exif() -> None:
    """All eight EXIF orientations of a picture look the same."""
    upright = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3)
    turn = Image.Transpose
    stored = {
        1: None,
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    for tag, inverse in stored.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        image = saved(upright.transpose(inverse) if inverse is not None else upright, "PNG", exif=exif)
        assert np.array_equal(to_rgb(image), upright), tag


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16"])
def test_a_view_turns_or_drops(mode: str) -> None:
    """Each part of a view does one thing: `exif` turns or not, `alpha` gives white or the colours below."""
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    options: dict[str, object] = {"exif": exif}
    if mode == "I;16":
        image = Image.fromarray(np.array([[0, 257 * 90]], dtype=np.uint16))
        options["transparency"] = 0
    elif mode in ("RGB", "P"):
        image = Image.new("RGB", (2, 1))
        image.putpixel((1, 0), (90, 90, 90))
        image = image if mode == "RGB" else image.quantize(2)
        options["transparency"] = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    else:
        image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
        image.putpixel((1, 0), (90, 90, 90, 255))
        image = image.convert(mode)
    file = saved(image, "PNG", **options)
    assert np.asarray(to_rgb(file, SEEN))[..., 0].tolist() == [[255], [90]]
    assert np.asarray(to_rgb(file, STORED))[..., 0].tolist() == [[0, 90]]
    assert np.asarray(to_rgb(file, View(alpha="drop")))[..., 0].tolist() == [[0], [90]]
    assert np.asarray(to_rgb(file, View(exif="ignore")))[..., 0].tolist() == [[255, 90]]


def test_orientation_applies_to_every_mode() -> None:
    """A grey 16-bit image is turned too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = saved(Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)), "PNG", exif=exif)
    assert image.mode == "I;16"
    assert np.asarray(to_rgb(image))[..., 0].tolist() == [[0], [255]]


@pytest.mark.parametrize("dtype", ["<u2", ">u2", np.int32])
def test_16_bit_grey_is_scaled(dtype: object) -> None:
    """Grey of 16 bits keeps its tone: 65535 is white, 257 is one step, the rest is rounded."""
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=dtype)  # type: ignore[call-overload]
    image = Image.fromarray(levels)
    assert image.mode in ("I;16", "I;16B", "I")
    assert np.asarray(to_rgb(image))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]


def test_beyond_the_nominal_range_is_clipped() -> None:
    """32-bit integers below 0 and above 65535 are black and white."""
    image = Image.fromarray(np.array([[-5, 70000]], dtype=np.int32))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 255]


def test_float_grey_is_scaled() -> None:
    """Floats in 0..1 are black to white; beyond is clipped."""
    image = Image.fromarray(np.array([[-1, 0, 0.5, 1, 2]], dtype=np.float32))
    assert np.asarray(to_rgb(image))[0, :, 2].tolist() == [0, 0, 128, 255, 255]


def test_floats_of_another_range_are_no_picture() -> None:
    """Floats of 0 to 255, as Pillow itself makes them of grey, would all be white."""
    with pytest.raises(ValueError, match="it holds floats up to 200, where 1 is white; divide them"):
        to_rgb(Image.new("L", (2, 2), 200).convert("F"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_float_without_a_value_is_no_picture(value: float) -> None:
    """A pixel that is not a number makes the image undecodable, not black."""
    with pytest.raises(ValueError, match="it holds pixels that are not finite numbers"):
        to_rgb(Image.fromarray(np.array([[0.5, value]], dtype=np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_transparency_shows_white(mode: str) -> None:
    """A clear pixel is white, a half clear black one grey, a solid one as it is."""
    layer = Image.new("LA", (3, 1))
    layer.putdata([(0, 0), (0, 128), (0, 255)])
    image = layer.convert("RGBA").convert(mode) if mode == "RGBa" else layer.convert(mode)
    assert image.mode == mode
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1"])
def test_a_colour_that_stands_for_transparency_shows_white(mode: str) -> None:
    """A PNG file may name one colour as clear."""
    image = Image.new("RGB", (2, 1), "black")
    image.putpixel((1, 0), (255, 0, 0) if mode in ("RGB", "P") else (255, 255, 255))
    key: object = (255, 0, 0) if mode == "RGB" else 255
    if mode == "P":
        image = image.quantize(2)
        key = image.getpixel((1, 0))
    image = saved(image.convert(mode), "PNG", transparency=key)
    assert "transparency" in image.info
    assert np.asarray(to_rgb(image))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_16_bit_transparency_shows_white() -> None:
    """The clear grey of a 16-bit PNG file is white, and no other grey is."""
    image = saved(Image.fromarray(np.array([[257, 514]], dtype=np.uint16)), "PNG", transparency=257)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [255, 2]


def test_animation_counts_by_its_first_frame() -> None:
    """A GIF file scores as its first frame."""
    image = saved(grey(10), "GIF", save_all=True, append_images=[grey(200)])
    assert to_rgb(image).getpixel((0, 0)) == (10, 10, 10)


def test_cmyk_file() -> None:
    """A CMYK JPEG file becomes the colour that was printed."""
    red = np.asarray(to_rgb(saved(Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK"), "JPEG", quality=100)))
    assert np.abs(red.astype(int) - [200, 30, 40]).max() <= 3


def test_images_of_no_pixels() -> None:
    """An image of no width is no picture."""
    with pytest.raises(ValueError, match="it has 0x4 pixels"):
        to_rgb(Image.new("RGB", (0, 4)))


def test_the_image_is_left_as_it_was() -> None:
    """Neither pixels nor orientation of the given image change."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = saved(grey(9), "PNG", exif=exif)
    image.load()
    before = image.tobytes(), image.size, dict(image.info)
    to_rgb(image)
    assert (image.tobytes(), image.size, dict(image.info)) == before

"""Finding image files, and reading them without trusting them."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rwk.rewards.images import find, guarded, read

GRADIENT = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3))


def encoded(kind: str, image: Image.Image = GRADIENT) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def bomb(path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.png": (lambda path: path.write_bytes(b""), r"empty file \(0 bytes\)"),
    "text.jpg": (lambda path: path.write_text("no image"), "not an image"),
    "noise.png": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not an image"),
    "cut.jpg": (lambda path: path.write_bytes(encoded("JPEG")[:700]), "cannot be decoded: .*truncated"),
    "cut.png": (lambda path: path.write_bytes(encoded("PNG")[:-40]), "cannot be decoded"),
    "cut.webp": (lambda path: path.write_bytes(encoded("WEBP")[:100]), "cannot be decoded|not an image"),
    "head.png": (lambda path: path.write_bytes(encoded("PNG")[:16]), "cannot be decoded|not an image"),
    "bomb.png": (bomb, "89,478,485 pixels"),
    "folder.png": (lambda path: path.mkdir(), "not a file"),
    "pipe.png": (lambda path: os.mkfifo(path), "not a file"),
    "link.png": (lambda path: path.symlink_to("nowhere.png"), "No such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_good_gives_a_note(tmp_path: Path, name: str) -> None:
    """Every kind of broken file gives no image and says why, and nothing is raised or blocks."""
    make, why = BAD[name]
    make(tmp_path / name)
    with guarded():
        picture = read(tmp_path / name)
    assert picture.image is None
    assert re.search(why, picture.note), picture.note


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM", "TGA", "PCX"])
def test_any_cut_and_any_flipped_byte_is_survived(tmp_path: Path, kind: str) -> None:
    """Files cut anywhere, or with one byte changed, give an image or a note, never an exception."""
    whole = encoded(kind)
    path = tmp_path / "x"
    random = np.random.default_rng(0)
    with guarded():
        for cut in range(1, len(whole), max(1, len(whole) // 25)):
            path.write_bytes(whole[:cut])
            assert (read(path).image is None) == bool(read(path).note)
        for place in random.integers(0, min(len(whole), 200), 40):
            changed = bytearray(whole)
            changed[place] ^= 0xFF
            path.write_bytes(changed)
            assert (read(path).image is None) == bool(read(path).note)


def test_orientation_is_respected(tmp_path: Path) -> None:
    """A photograph that says it lies on its side is read upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    GRADIENT.save(tmp_path / "side.png", exif=exif)
    turned = read(tmp_path / "side.png").image
    assert turned is not None
    assert turned.size == (40, 60)
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(GRADIENT), -1))


def test_the_first_frame_counts(tmp_path: Path) -> None:
    """Of an animation the first frame is read."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    image = read(tmp_path / "x.gif").image
    assert image is not None
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_guarded_leaves_the_warning_filters_as_they_were() -> None:
    """The filters that guard against bombs are gone again afterwards."""
    before = warnings.filters[:]
    with guarded():
        assert warnings.filters[:] != before
    assert warnings.filters[:] == before


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "sub/c.webp", "sub/deep/d.tif", ".hidden/e.png", ".f.png", "notes.md", "b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded("PNG"))
    return tmp_path


def names(folder: Path, name: str) -> tuple[list[str], int]:
    found = find(name)
    return [str(path.relative_to(folder)) for path in found.paths], found.skipped


def test_a_folder_is_searched_below_in_order(tree: Path) -> None:
    """Images below a folder are found sorted, hidden and other files are counted, a prompt beside an image is not."""
    assert names(tree, str(tree)) == (["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.tif"], 2)


def test_a_glob_is_expanded_here(tree: Path) -> None:
    """Globs work in quotes; `**` finds every image once; a glob of other files finds those."""
    assert names(tree, f"{tree}/*.png")[0] == ["b.png"]
    assert names(tree, f"{tree}/*")[0] == ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.tif"]
    assert names(tree, f"{tree}/**")[0] == ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.tif"]
    assert names(tree, f"{tree}/*.md")[0] == ["notes.md"]


def test_a_named_file_counts_whatever_its_ending(tree: Path) -> None:
    """A file that is named is an image until it is read; brackets in its name are no glob."""
    (tree / "x[1].dat").write_bytes(encoded("PNG"))
    assert names(tree, f"{tree}/x[1].dat") == (["x[1].dat"], 0)


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        ("nowhere.png", FileNotFoundError, "no file or folder .*nowhere.png"),
        ("*.xyz", FileNotFoundError, r"matches .*\*.xyz"),
        ("empty", ValueError, "empty must hold images, got none;"),
        ("other", ValueError, "other must hold images, got none but 1 other files"),
    ],
)
def test_what_names_nothing_is_refused(tmp_path: Path, name: str, error: type[Exception], why: str) -> None:
    """Missing files, globs without matches and folders without images are errors that repeat the name."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.md").write_text("x")
    with pytest.raises(error, match=why):
        find(str(tmp_path / name))

"""Image files: finding them in what a person names, and reading one without trusting it."""

from __future__ import annotations

import contextlib
import glob
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from rwk.rewards.base import SEEN, View, to_rgb

SUFFIXES = frozenset(
    ".apng .avif .avifs .bmp .dds .dib .gif .heic .heif .icns .ico .j2c .j2k .jfif .jp2 .jpe .jpeg .jpf .jpg .jpx .jxl "
    ".pbm .pcx .pfm .pgm .png .pnm .ppm .psd .qoi .sgi .tga .tif .tiff .webp .xbm .xpm".split()
)
"""Endings by which a file in a folder is taken for an image."""


class Found(NamedTuple):
    """The image files of what was named."""

    paths: list[Path]
    skipped: int
    """Files passed over because they are hidden or not named like an image."""


def find(name: str) -> Found:
    """Image files of a file, a folder or a glob, sorted.

    A file that is named counts as an image whatever its ending. Of a folder, which is searched below without following
    links to other folders, count the files that are named like images, and so with a glob, unless it matches no such
    file.

    Raises:
        FileNotFoundError: when the name stands for nothing.
        ValueError: when there is no image in it.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = _below(path)
    elif os.path.lexists(path):
        return Found([path], 0)
    elif glob.has_magic(name):
        found = _matching(str(path))
    else:
        raise FileNotFoundError(f"there is no file or folder {name}; check its spelling.")
    if not found.paths:
        rest = f" but {found.skipped} other files" if found.skipped else ""
        raise ValueError(f"{name} must hold images, got none{rest}; in a folder they are known by their ending.")
    return found


def _matching(pattern: str) -> Found:
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if not matches:
        raise FileNotFoundError(f"no file or folder matches {pattern}; check its spelling.")
    files = [path for path in matches if not path.is_dir()]
    images = [path for path in files if _named_like_image(path.name)]
    skipped = len(files) - len(images) if images else 0
    paths = dict.fromkeys(images or files)
    for folder in matches:
        if folder.is_dir():  # which `**` matches beside the files in it
            below = _below(folder)
            paths.update(dict.fromkeys(below.paths))
            skipped += 0 if files else below.skipped
    return Found(list(paths), skipped)


def _below(folder: Path) -> Found:
    paths: list[Path] = []
    skipped = 0
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = sorted(filter(_named_like_image, names))
        paths += [Path(root, name) for name in images]
        beside = {Path(name).stem + ".txt" for name in images}  # they hold prompts
        skipped += len(set(names) - set(images) - beside)
    return Found(paths, skipped)


def _named_like_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")


def _refuse(error: OSError) -> None:
    raise error


class Picture(NamedTuple):
    """A decoded image, or why there is none."""

    image: Image.Image | None
    """Upright RGB."""
    note: str


def read(path: Path, least: Callable[[int, int], tuple[int, int] | None] = lambda width, height: None) -> Picture:
    """The image in a file, upright and in RGB, else as `views_of`."""
    images, note = views_of(path, (SEEN,), least)
    return Picture(images.get(SEEN), note)


def views_of(
    path: Path, views: Iterable[View], least: Callable[[int, int], tuple[int, int] | None]
) -> tuple[dict[View, Image.Image], str]:
    """The image in a file, decoded once, in RGB and every view; of an animation or several pages the first.

    Where there is none the note says why. Never raises for what is in the file. Images of more pixels than Pillow's
    limit against decompression bombs (89,478,485) are refused before they are decoded, inside `guarded`.

    Args:
        path: the file.
        views: what is wanted of it; those that come to the same are one object.
        least: of width and height in the file, those down to which a JPEG file may be shrunk while it is decoded, to
            1/2, 1/4 or 1/8; None: not at all.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would block for ever
            return {}, "not a file"
        if about.st_size == 0:
            return {}, "empty file (0 bytes)"
        with Image.open(path) as image:
            if size := least(*image.size):
                image.draft(None, size)
            return {view: to_rgb(image, view) for view in views}, ""
    except UnidentifiedImageError:
        return {}, "not an image of a kind that can be read here"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return {}, f"more than {Image.MAX_IMAGE_PIXELS:,} pixels, which may be a decompression bomb"
    except Exception as error:  # Pillow's readers raise whatever malformed bytes lead them to
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return {}, f"cannot be decoded: {said or type(error).__name__}"


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Refuses what Pillow merely warns might be a bomb, and drops its warnings of harmless faults, in all threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield

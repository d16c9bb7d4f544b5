"""Pages: their pieces, that they stand alone, and that a real browser shows them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rwk.rewards.report import Figure, data_uri, figures, histogram, page, section, table, ticks_of

Rwk = Callable[..., Any]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MAGENTA, GREEN = (255, 0, 255), (0, 160, 60)


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_comes_from_outside_is_escaped() -> None:
    """No title, prompt, name or note becomes markup."""
    evil = "<script>alert('x')</script>\" onerror=\"x"
    shown = Figure(Image.new("RGB", (4, 4)), evil, [evil], alt=evil)
    html = page(
        evil, [section(evil, [figures(evil, [shown]), table([evil], [[evil]])], lead=evil), histogram([1], evil)]
    )
    found = Page(html)
    assert found.open == []
    assert "script" not in {tag for tag, _ in found.tags}
    assert not any("onerror" in attributes for _, attributes in found.tags)
    assert found.text.count(evil) == 9


def test_histogram_counts_every_value() -> None:
    """The bars hold all values, lie inside the drawing, and stand for their counts; one value alone has a bar too."""
    for values in ([1.0], [2.0] * 50, [-1e9, 1e9], [0.0, 1e-9], np.random.default_rng(0).normal(size=1000).tolist()):
        html = histogram(values, "x")
        counts = [int(count) for count in re.findall(r"<title>(\d+)</title>", html)]
        assert sum(counts) == len(values)
        heights = [float(height) for height in re.findall(r'height="([\d.]+)"', html)]
        assert np.allclose(heights, np.array(counts) / max(counts) * max(heights), atol=0.06)
        assert all(0 <= float(x) <= 640 for x in re.findall(r'\bx1?="([-\d.]+)"', html))


def test_ticks_are_round_and_inside() -> None:
    """Axes are marked at round numbers, some three to ten of them."""
    for low, high in ((0, 1), (-3.2e-5, 1e-5), (41, 59), (1e6, 3.4e6), (-0.5, 0.5)):
        ticks = ticks_of(low, high)
        assert 3 <= len(ticks) <= 10
        assert low <= ticks[0]
        assert ticks[-1] <= high * (1 + 1e-9)


def test_thumbnails_are_small_and_leave_the_image() -> None:
    """An image on a page has at most the size that was asked for; the image itself is not changed."""
    image = Image.new("RGB", (900, 300), MAGENTA)
    assert data_uri(image, 90).startswith("data:image/webp;base64,")
    assert len(data_uri(image, 90)) < 1000
    assert image.size == (900, 300)


@pytest.fixture
def written(rwk: Rwk, tmp_path: Path) -> Path:
    """The report of a run over 20 images of two colours, two of them broken."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(20):
        colour = MAGENTA if index % 2 else GREEN
        Image.new("RGB", (60 + index, 60), colour).save(folder / f"{index:02d} <b>&amp;.png")
        (folder / f"{index:02d} <b>&amp;.txt").write_text(f"prompt {index} <i>")
    (folder / "03 <b>&amp;.png").write_bytes(b"")
    (folder / "04 <b>&amp;.png").write_bytes(b"no image")
    assert rwk("score", "images", "-r", "colorfulness", "-r", "contrast", "--report", "out/page.html").code == 0
    return tmp_path / "out" / "page.html"


def test_a_report_stands_alone(written: Path) -> None:
    """The page of a run is well formed, fetches nothing, runs nothing, and says what it has to."""
    html = written.read_text()
    found = Page(html)
    assert found.open == []
    assert [path.name for path in written.parent.iterdir()] == ["page.html"]
    pictures = [attributes for tag, attributes in found.tags if tag == "img"]
    assert len(pictures) == 2 * 16
    assert all(str(each["src"]).startswith("data:image/webp;base64,") and each["alt"] for each in pictures)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert not re.search(r"url\(|@import|src=\"(?!data:)", html)
    for words in (
        "Scores of 20 images",
        "2 could not be read",
        "colorfulness",
        "doi:10.1117/12.477378",
        "prompt 19 <i>",
    ):
        assert words in found.text, words
    assert "03 <b>&amp;.png" in found.text
    assert "empty file (0 bytes)" in found.text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")
def test_a_browser_shows_the_report(written: Path, tmp_path: Path) -> None:
    """A real Chromium draws the page: its ground, its text, its bars, and the images in their own colours."""
    shot = tmp_path / "shot.png"
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars "
        "--disable-component-update --disable-sync --window-size=1200,1500 --blink-settings=preferredColorScheme=1"
    )
    own = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", written.as_uri()]
    subprocess.run([str(CHROMIUM), *flags.split(), *own], check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)  # [H, W, 3]
    assert pixels.shape == (1500, 1200, 3)

    def share(colour: tuple[int, int, int], off: int = 12) -> float:
        return float((np.abs(pixels - colour).max(axis=2) <= off).mean())

    assert share((246, 247, 249), 0) > 0.1  # the ground
    assert share((255, 255, 255), 0) > 0.1  # cards
    assert share((28, 32, 36), 40) > 0.002  # text
    assert share((70, 125, 238), 10) > 0.005  # bars
    assert share(MAGENTA) > 0.05  # images, best and worst
    assert share(GREEN) > 0.05

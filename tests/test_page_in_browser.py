"""The page of a reward card as a browser shows it: what is too wide, what is not drawn, and what it logs."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rwk.calibration.card import RewardCard
from rwk.calibration.card_page import write_page
from rwk.calibration.probe import Sizes, Subject
from rwk.calibration.probing import run_probes

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")]
HEIGHT = 12000
"""Of the window; Chromium opens none that is less than 500 wide."""
FIRST = "<script>window.failed = []; addEventListener('error', e => failed.push(String(e.message)), true)</script>"
LAST = """<script>addEventListener('load', () => {
  const box = e => e.getBoundingClientRect(), wide = document.documentElement.clientWidth;
  const all = selector => [...document.querySelectorAll(selector)];
  document.body.dataset.seen = JSON.stringify({
    inner: innerWidth, scroll: document.documentElement.scrollWidth, client: wide, failed,
    over: all("body *").filter(e => !e.closest(".wide, svg") && box(e).right > wide + 1)
      .map(e => e.outerHTML.slice(0, 90)),
    images: all('img').map(e => [e.naturalWidth, e.naturalHeight, box(e).width]),
    plots: all('svg').map(e => [box(e).width, box(e).height, e.querySelectorAll('path').length]),
  })
})</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a reward that loves saturation, from all its probes."""
    planted: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "planted.py"))
    reward, domains, twins = planted["Planted"]("saturation"), planted["world"](24, 4, seed=0), planted["twins"](seed=0)
    subject = Subject(reward, domains, Sizes(edited=48, draws=50), counterparts=twins)
    results = run_probes(subject)
    path = tmp_path_factory.mktemp("page") / "reward_card.html"
    write_page(RewardCard.build(subject, results, sources={"in domain": "planted"}), results, path)
    return path


def chromium(path: Path, width: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of the browser on a file, with a profile of its own."""
    shared = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr")
    size, profile = f"--window-size={width},{HEIGHT}", f"--user-data-dir={path.parent / 'profile'}"
    command = [str(CHROMIUM), *shared, size, profile, *arguments, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def seen(path: Path, width: int) -> tuple[dict[str, Any], str]:
    """What a copy of the page that looks at itself found, and what the browser wrote."""
    html = path.read_text(encoding="utf-8")
    watched = path.with_name(f"{path.stem}_watched.html")
    watched.write_text(html.replace("<head>", f"<head>{FIRST}", 1).replace("</body>", f"{LAST}</body>", 1), "utf-8")
    done = chromium(watched, width, "--dump-dom")
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr[-500:]
    return json.loads(unescape(found[1])), done.stderr


@pytest.mark.parametrize("width", [1280, 500])
def test_nothing_is_cut_off_or_missing(page: Path, width: int) -> None:
    """No part is wider than the screen but tables that scroll, every image and plot is drawn, and nothing is logged."""
    found, log = seen(page, width)
    assert found["inner"] == width
    assert found["scroll"] <= found["client"]
    assert found["over"] == []
    assert found["failed"] == []
    assert "CONSOLE" not in log
    assert len(found["images"]) >= 6
    assert len(found["plots"]) >= 8
    assert min(min(image) for image in found["images"]) > 20
    assert min(min(plot) for plot in found["plots"]) > 10
    shown = page.with_name(f"{width}.png")
    chromium(page, width, f"--screenshot={shown}")
    with Image.open(shown) as image:
        assert image.size == (width, HEIGHT)
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 500


def test_what_is_wrong_with_a_page_is_seen(page: Path) -> None:
    """A block that is too wide, a broken image and an error each show in what the test looks at."""
    html = page.read_text(encoding="utf-8")
    spoiled = page.with_name("spoiled.html")
    wrong = '<div style="width: 3000px">wide</div><img src="data:image/webp;base64,AAAA"><script>nothing()</script>'
    spoiled.write_text(html.replace("</main>", f"{wrong}</main>", 1), "utf-8")
    found, log = seen(spoiled, 1280)
    assert found["scroll"] > found["client"]
    assert any("wide" in element for element in found["over"])
    assert [0, 0] in [image[:2] for image in found["images"]]
    assert any("nothing" in message for message in found["failed"])
    assert "CONSOLE" in log

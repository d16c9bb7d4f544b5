"""Pieces of pages that stand alone: one HTML file, images inside it, no scripts, nothing fetched.

Every piece is HTML text; what comes from outside is escaped where it enters a piece.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from rwk.rewards.sinks import finished

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5f6772; --ground: #f6f7f9; --card: #fff; --line: #dfe3e8;
  --accent: #2563eb; --warm: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a0a8b3; --ground: #14171a; --card: #1e2226;
  --line: #343a41; --accent: #6ea0ff; --warm: #fb923c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 3rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 0 0 .2rem; }
h3 { font-size: .95rem; margin: 1.1rem 0 .5rem; }
p { margin: .3rem 0; max-width: 48rem; }
a { color: var(--accent); }
.soft, footer { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: 1.25rem 0;
  padding: 1.1rem 1.25rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .9rem .35rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-size: .85rem; font-weight: 600; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.grid { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fill, minmax(min(14rem, 45%), 1fr)); }
.columns { grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
@media (max-width: 44rem) { .columns { grid-template-columns: 1fr 1fr; } td:last-child { min-width: 16rem; } }
figure { margin: 0; }
figure .frame { align-items: center; aspect-ratio: 4 / 3; background: var(--ground); border: 1px solid var(--line);
  border-radius: 8px; color: var(--soft); display: flex; justify-content: center; overflow: hidden; }
figure img { height: 100%; object-fit: contain; width: 100%; }
figcaption { font-size: .85rem; line-height: 1.4; margin-top: .35rem; overflow-wrap: anywhere; }
figcaption strong { display: block; font-size: 1rem; font-variant-numeric: tabular-nums; }
svg { display: block; height: auto; max-width: 46rem; width: 100%; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .bar { fill: var(--accent); opacity: .85; }
svg .axis { stroke: var(--line); }
svg .mean { stroke: var(--warm); stroke-width: 2; }
svg .meant { fill: var(--warm); font-weight: 600; }
"""


class Figure(NamedTuple):
    """An image with what is said of it."""

    image: Image.Image | None
    """None where it cannot be shown."""
    head: str
    """Stands in bold below the image, such as its score."""
    lines: Sequence[str] = ()
    """Stand below that."""
    alt: str = ""
    """What the image is, for those who do not see it."""


def page(title: str, body: Iterable[str], *, lead: str = "") -> str:
    """The whole HTML page.

    Args:
        title: plain text.
        body: pieces of HTML, such as `section` gives.
        lead: plain text below the title.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p class="soft">{escape(lead)}</p></header>
<main>
{chr(10).join(body)}
</main>
<footer>Made by rwk {escape(version("rwk"))}.</footer>
</body>
</html>
"""


def save(path: Path, html: str) -> None:
    """Writes a page; the file appears when it is whole."""
    with finished(path) as unfinished:
        unfinished.write_text(html, encoding="utf-8", errors="backslashreplace")


def section(title: str, body: Iterable[str], *, lead: str = "", anchor: str = "") -> str:
    """A titled card of pieces; `anchor` is what a link `#anchor` leads to."""
    name = f' id="{escape(anchor)}"' if anchor else ""
    said = f'<p class="soft">{escape(lead)}</p>' if lead else ""
    return f"<section{name}><h2>{escape(title)}</h2>{said}{chr(10).join(body)}</section>"


def figures(title: str, shown: Sequence[Figure], *, size: int = 320, columns: int = 0) -> str:
    """A titled grid of images, each at most `size` pixels a side; by default as many beside each other as fit.

    A number of columns is for wide screens; on narrow ones there are two.
    """
    kind = f'"grid columns" style="--columns: {columns}"' if columns else '"grid"'
    grid = "".join(_figure(figure, size) for figure in shown)
    return f"<h3>{escape(title)}</h3><div class={kind}>{grid}</div>"


def _figure(figure: Figure, size: int) -> str:
    seen = "cannot be shown"
    if figure.image:
        seen = f'<img src="{data_uri(figure.image, size)}" alt="{escape(figure.alt)}">'
    lines = "".join(f"<div>{escape(line)}</div>" for line in figure.lines if line)
    return (
        f'<figure><div class="frame">{seen}</div>'
        f"<figcaption><strong>{escape(figure.head)}</strong>{lines}</figcaption></figure>"
    )


def data_uri(image: Image.Image, size: int) -> str:
    """A WebP copy of an RGB image, at most `size` pixels a side, as an address that holds it."""
    small = image.copy()
    small.thumbnail((size, size))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[str] = ()) -> str:
    """A table of plain text; the columns named in `numbers` are aligned to the right."""
    right = set(numbers)
    kinds = [' class="number"' if head in right else "" for head in heads]
    top = "".join(f'<th scope="col"{kind}>{escape(head)}</th>' for head, kind in zip(heads, kinds, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    head, body = f"<thead><tr>{top}</tr></thead>", f"<tbody>{chr(10).join(lines)}</tbody>"
    return f'<div class="wide" tabindex="0"><table>{head}{body}</table></div>'


WIDTH, HEIGHT, FLOOR, TALLEST = 640, 190, 155, 105
"""Of a histogram: its size, where its bars stand, and the height of the tallest."""


def histogram(values: Sequence[float], label: str) -> str:
    """How many values lie where, as an SVG drawing with its mean.

    Args:
        values: finite numbers, one or more.
        label: what they are, for those who do not see the drawing.
    """
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # one value alone: a bar in the middle
        pad = abs(low) * 0.05 or 0.5
        low, high = low - pad, high + pad
    bins = min(max(math.isqrt(len(values)), 9), 40)
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    mean = math.fsum(values) / len(values)
    said = f"{label}: {len(values)} values from {number(min(values))} to {number(max(values))}, mean {number(mean)}"
    step, tallest = WIDTH / bins, max(counts)
    bars = "".join(_bar(i * step, step, count, count / tallest) for i, count in enumerate(counts) if count)
    ticks = "".join(_tick((tick - low) / (high - low) * WIDTH, f"{tick:,g}") for tick in ticks_of(low, high))
    middle = (mean - low) / (high - low) * WIDTH
    side = "end" if middle > WIDTH / 2 else "start"
    return (
        f'<svg viewBox="-24 0 {WIDTH + 48} {HEIGHT}" role="img" aria-label="{escape(said)}">{bars}'
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{FLOOR}" y2="{FLOOR}"/>{ticks}'
        f'<line class="mean" x1="{middle:.1f}" x2="{middle:.1f}" y1="6" y2="{FLOOR}"/>'
        f'<text class="meant" x="{middle + (-6 if side == "end" else 6):.1f}" y="17" text-anchor="{side}">'
        f"mean {number(mean)}</text></svg>"
    )


def _bar(x: float, width: float, count: int, share: float) -> str:
    height = share * TALLEST
    top = FLOOR - height
    said = f'<text x="{x + width / 2:.1f}" y="{top - 4:.1f}" text-anchor="middle">{count}</text>' if width > 30 else ""
    return (
        f'<rect class="bar" x="{x + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" height="{height:.1f}">'
        f"<title>{count}</title></rect>{said}"
    )


def _tick(x: float, text: str) -> str:
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{FLOOR}" y2="{FLOOR + 5}"/>'
        f'<text x="{x:.1f}" y="{FLOOR + 20}" text-anchor="middle">{text}</text>'
    )


def number(value: float) -> str:
    """A number in four digits, without an exponent where it is at least 1.

    >>> number(15462.3), number(36.6805), number(float("-inf"))
    ('15,462', '36.68', '-∞')
    """
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def ticks_of(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between low and high, about as many as wanted.

    >>> ticks_of(0.13, 1.94)
    [0.5, 1.0, 1.5]
    """
    rough = (high - low) / wanted
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    decimals = max(0, -math.floor(math.log10(step)))
    first = math.ceil(low / step)
    return [round(i * step, decimals) for i in range(first, math.floor(high / step) + 1)]

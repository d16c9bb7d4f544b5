"""Plots of intervals as SVG elements that take the colours of the page's ground."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rwk.calibration.pairs import Floats
from rwk.calibration.statistics import Interval

GREY = "#888888"


class Line(NamedTuple):
    """A row of a forest."""

    name: str
    value: Interval
    colour: str
    mark: Interval | None = None
    """Another value, shown by a cross."""


class Point(NamedTuple):
    """What one reward gets in its own domain and in another."""

    name: str
    domain: str
    inside: Interval
    outside: Interval


def figure(height: float) -> Any:
    """An empty drawing of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(8, max(height, 1.6)), layout="constrained")


def svg(drawing: Any) -> str:
    """The drawing as an SVG element."""
    file = io.StringIO()
    drawing.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def reach(values: Sequence[Interval]) -> list[list[float]]:
    """[2, N] how far intervals go below and above their values."""
    below = [value.mean - min(value.low, value.mean) for value in values]
    return [below, [max(value.high, value.mean) - value.mean for value in values]]


def forest(panels: Mapping[str, Sequence[Line | None]], line: float | None) -> str:
    """A row for each line with its interval, a panel for each measure; `line` stands where there is nothing to see."""
    first = next(iter(panels.values()))
    drawing = figure(0.6 + 0.32 * len(first))
    many = drawing.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for number, (axes, (title, rows)) in enumerate(zip(many, panels.items(), strict=True)):
        for place, row in enumerate(reversed(rows)):
            if row is not None:
                error = reach([row.value])
                axes.errorbar([row.value.mean], [place], xerr=error, marker="o", capsize=3, color=row.colour)
                if row.mark:
                    axes.plot([row.mark.mean], [place], marker="x", color=GREY)
        axes.set_xlabel(title)
        if line is not None and number == 0:
            axes.axvline(line, color=GREY, linewidth=0.8)
        if number:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
    many[0].set_ylim(-0.6, len(first) - 0.4)
    many[0].set_yticks(range(len(first)), [row.name if row else "" for row in reversed(first)], fontsize=8)
    return svg(drawing)


def reliability(points: Sequence[tuple[Interval, Interval]]) -> str:
    """Share that agrees against confidence, over the band in which perfect probabilities stay.

    Args:
        points: the share, and the confidence with the band as its interval, of each bin.
    """
    drawing = figure(4)
    axes = drawing.subplots()
    confidence = [band.mean for _, band in points]
    axes.fill_between(confidence, [b.low for _, b in points], [b.high for _, b in points], color=GREY, alpha=0.25)
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linewidth=0.8)
    shares = [share for share, _ in points]
    axes.errorbar(confidence, [share.mean for share in shares], yerr=reach(shares), marker="o", capsize=3)
    axes.set(xlabel="probability of the better image", ylabel="share that agrees", xlim=(0.49, 1.01))
    return svg(drawing)


def curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[Interval]]]], x: str, y: str) -> str:
    """A panel for each domain, and in it a line with its band for each name."""
    drawing = figure(3.4)
    many = drawing.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, lines) in zip(many, panels.items(), strict=True):
        for name, (places, values) in lines.items():
            (drawn,) = axes.plot(places, [value.mean for value in values], marker="o", markersize=3, label=name)
            low, high = [value.low for value in values], [value.high for value in values]
            axes.fill_between(places, low, high, alpha=0.15, color=drawn.get_color())
        axes.set(xlabel=x, title=title)
    many[0].set_ylabel(y)
    many[0].legend(fontsize=8)
    return svg(drawing)


def bars(names: Sequence[str], values: Sequence[Interval], marks: Sequence[Interval | None], colours: Any) -> str:
    """A bar for each value, and a cross where the same is measured blindly."""
    drawing = figure(3)
    axes = drawing.subplots()
    tall = [value.mean for value in values]
    axes.bar(range(len(names)), tall, yerr=reach(values), capsize=3, color=[(colour, 0.35) for colour in colours])
    for place, mark in enumerate(marks):
        if mark:
            axes.errorbar([place + 0.25], [mark.mean], yerr=reach([mark]), marker="x", color="black", capsize=3)
    axes.axhline(0.5, color=GREY, linewidth=0.8)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(0, 1)
    return svg(drawing)


def scatter(points: Sequence[Point]) -> str:
    """Accuracy out of domain against accuracy in it, in logits; a line through every domain of three points or more."""
    drawing = figure(4.5)
    axes = drawing.subplots()
    marks = dict(zip(dict.fromkeys(point.domain for point in points), "osD^vPX*", strict=False))
    for domain, mark in marks.items():
        held = [point for point in points if point.domain == domain]
        x, y = (_logit(np.array([getattr(p, side).mean for p in held])) for side in ("inside", "outside"))
        (drawn,) = axes.plot(x, y, mark, markersize=5, label=domain)
        for point, across, up in zip(held, x, y, strict=True):
            for side in ("inside", "outside"):
                bounds = _logit(np.array([getattr(point, side).low, getattr(point, side).high]))
                pair = (bounds, [up, up]) if side == "inside" else ([across, across], bounds)
                axes.plot(*pair, color=drawn.get_color(), linewidth=0.8, alpha=0.5)
            if domain == next(iter(marks)):
                axes.annotate(point.name, (across, up), fontsize=7, xytext=(4, 4), textcoords="offset points")
        if len(held) > 2 and np.ptp(x) > 0:
            slope, offset = np.polyfit(x, y, 1)
            axes.plot(np.sort(x), slope * np.sort(x) + offset, color=drawn.get_color(), linewidth=0.8)
    ticks = np.array([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
    shown = _logit(np.array([value.mean for point in points for value in (point.inside, point.outside)]))
    ends = shown.min() - 0.3, shown.max() + 0.3
    axes.plot(ends, ends, color=GREY, linewidth=0.8, linestyle=":")
    for set_ticks, set_ends in ((axes.set_xticks, axes.set_xlim), (axes.set_yticks, axes.set_ylim)):
        set_ticks(_logit(ticks), [f"{tick:g}" for tick in ticks], fontsize=8)
        set_ends(*ends)
    axes.set(xlabel="accuracy in domain", ylabel="accuracy in the other")
    axes.legend(fontsize=8)
    return svg(drawing)


def heat_map(names: Sequence[str], values: Floats) -> str:
    """A square for each two, with its number; NaN stays empty."""
    drawing = figure(1.2 + 0.6 * len(names))
    axes = drawing.subplots()
    axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    return svg(drawing)


def _logit(share: Floats) -> Floats:
    kept = np.clip(share, 0.005, 0.995)
    found: Floats = np.log(kept / (1 - kept))
    return found

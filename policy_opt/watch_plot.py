"""The looks of a run as a plot: the watched reward beside the one that is learnt from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any


def draw_looks(looks: Sequence[dict[str, Any]], watched: str) -> str:
    """SVG with a panel each for the reward, the watched one, the slope between looks and the share of outliers.

    Args:
        looks: lines of `watch.jsonl`.
        watched: name of the watched reward.
    """
    from matplotlib.figure import Figure

    panels = {"reward": "reward, learnt from", "watched": f"{watched}, watched", "slope": "slope"}
    shown = {key: title for key, title in panels.items() if any(look[key] for look in looks)}
    share = [(look["step"], look["outliers"]) for look in looks if look["outliers"] is not None]
    plot = Figure(figsize=(3.7 * (len(shown) + bool(share)), 3), layout="constrained")
    axes = plot.subplots(1, len(shown) + bool(share), squeeze=False)[0]
    for place, (key, title) in zip(axes, shown.items(), strict=False):
        known = [(look["step"], look[key]) for look in looks if look[key] and look[key]["low"] is not None]
        steps = [step for step, _ in known]
        low, mean, high = ([value[name] for _, value in known] for name in ("low", "mean", "high"))
        place.plot(steps, mean, marker=".")
        place.fill_between(steps, low, high, alpha=0.2)
        place.set_title(title, fontsize=10)
        if key == "slope":
            place.axhline(0, color="black", linewidth=0.8)
            place.set_yscale("symlog")  # where the reward hardly moved, the interval is wide
    if share:
        axes[-1].plot(*zip(*share, strict=True), marker=".")
        axes[-1].set_title("share of outliers", fontsize=10)
    for place in axes:
        place.set_xlabel("update")
        place.grid(alpha=0.3)
        for look in looks:
            if look["diverged"]:
                place.axvline(look["step"], color="red", linewidth=0.8)
    file = io.StringIO()
    plot.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :]

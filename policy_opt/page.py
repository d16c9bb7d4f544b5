"""The page of a run: what was gained, how it went, and the same prompts and seeds before and after."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rwk.policy_opt.evaluate import GOLD, Drawn
from rwk.policy_opt.journal import read
from rwk.policy_opt.optimize import Comparison, Results, result
from rwk.policy_opt.watch import FILE as WATCH
from rwk.policy_opt.watch_plot import draw_looks
from rwk.rewards.report import Figure, figures, number, page, save, section, table

SHOWN = 8
"""Prompts of each domain whose images are shown."""
SIDE = 192
"""Least pixels along a side of a shown image."""


def write_page(comparison: Comparison, out: Path) -> Path:
    """Writes `page.html` and `curves.svg` to the folder of a run; gives the page's path."""
    metrics = read(comparison.trained.metrics)
    curves = draw_curves(metrics, comparison.proxies, comparison.gold)
    (out / "curves.svg").write_text(curves, encoding="utf-8")
    heads, lines = tabulated(result(comparison)["results"])
    body = [
        section(
            "Gain",
            [table(heads, lines, numbers=heads[1:])],
            lead="Mean of a score and its 95 % interval, clustered by prompt.",
        ),
        section("Course", [curves], lead="Of the images drawn while it learnt; one point an update or a round."),
        *alarms(metrics),
        *watched(comparison, out),
        *before_and_after(comparison),
        *fooled(comparison),
    ]
    cost = comparison.trained
    lead = (
        f"{cost.steps} updates, {cost.images_sampled:,} images drawn, {cost.reward_forwards:,} scored, "
        f"{cost.tokens_trained:,} tokens trained, {cost.seconds:.0f} s."
    )
    save(out / "page.html", page(f"Learning from {', '.join(comparison.proxies)}", body, lead=lead))
    return out / "page.html"


def alarms(metrics: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A section with the alarms of the run, where there are any."""
    rows = [[str(row["step"]), text] for row in metrics for text in row.get("alarms", ())]
    if rows:
        yield section("Alarms", [table(["update", "what"], rows)])


def watched(comparison: Comparison, out: Path) -> Iterator[str]:
    """A section with the looks of a run that watched a reward; their plot is kept as `watch.svg` too."""
    looks = read(out / WATCH)
    if not looks:
        return
    svg = draw_looks(looks, comparison.watched)
    (out / "watch.svg").write_text(svg, encoding="utf-8")
    lead = (
        "The same prompts at every look, neither learnt from nor judged on; 95 % intervals. Where the slope between "
        "two looks lies below 0, the watched reward falls while the reward rises, or the other way round."
    )
    yield section(f"{comparison.watched} beside the reward", [svg], lead=lead)


def tabulated(results: Results) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a table of results: a column for each of its rows, a line for each score in each domain."""
    first = next(iter(results.values()))
    lines = [
        [f"{score}, {domain}", *(_cell(judged[domain][score]) for judged in results.values())]
        for domain, scores in first.items()
        for score in scores
    ]
    return ["", *results], lines


def _cell(found: Mapping[str, float]) -> str:
    """A mean and its interval, such as "0.52 (0.48 to 0.56)"; none where nothing had a score."""
    if math.isnan(found["mean"]):
        return "none"
    return f"{found['mean']:.3g} ({found['low']:.3g} to {found['high']:.3g})"


def before_and_after(comparison: Comparison) -> Iterator[str]:
    """A section for each domain, the prompts whose gold, or else proxy, changed most first and last among them."""
    judge = GOLD if comparison.measured else comparison.proxies[0]
    for domain, before in comparison.before.items():
        after = comparison.after[domain]
        change = (after.scores[judge].nanmean(1) - before.scores[judge].nanmean(1)).nan_to_num(0)
        order = change.argsort(descending=True).tolist()
        half = min(SHOWN, len(order)) // 2
        parts = [("Most gained", order[:half]), ("Most lost, or least gained", order[len(order) - half :])]
        body = [
            figures(title, [f for i in chosen for f in _pair(before, after, i, comparison)], size=SIDE, columns=4)
            for title, chosen in parts
            if chosen
        ]
        yield section(domain.capitalize(), body, lead="The same prompt and the same seed, before and after.")


def fooled(comparison: Comparison) -> Iterator[str]:
    """A section with the tuned generator's images that the proxy likes best among those that are wrong, if any are."""
    gold, proxy = comparison.gold, comparison.proxies[0]
    if not comparison.measured or gold == proxy:
        return
    found = []
    for domain, drawn in comparison.after.items():
        for row, column in (drawn.scores[GOLD] == 0).nonzero().tolist():
            value = drawn.scores[proxy][row, column].item()
            said = [drawn.prompts[row].text, drawn.notes[GOLD][row][column]]
            image = drawn.images[row][column]
            found.append((value, Figure(enlarged(image), f"{proxy} {number(value)}, {domain}", said, said[0])))
    best = [figure for _, figure in sorted(found, key=lambda pair: -pair[0])[:SHOWN]]
    if best:
        lead = f"Images of the tuned generator that {proxy} scores highest of all those in which something is wrong."
        yield section("Where the reward is fooled", [figures("", best, size=SIDE)], lead=lead)


def _pair(before: Drawn, after: Drawn, index: int, comparison: Comparison) -> list[Figure]:
    prompt = before.prompts[index].text
    return [
        Figure(
            enlarged(drawn.images[index][0]),
            f"{when}: {_said(drawn, index, comparison)}",
            [prompt],
            f"{when}, {prompt}",
        )
        for when, drawn in (("before", before), ("after", after))
    ]


def _said(drawn: Drawn, index: int, comparison: Comparison) -> str:
    told = comparison.gold if comparison.gold in drawn.scores else GOLD
    names = [*comparison.proxies, *([told] if comparison.measured and told else [])]
    values = [(name, drawn.scores[name][index, 0].item()) for name in dict.fromkeys(names)]
    return ", ".join(f"{name} {number(value) if math.isfinite(value) else 'none'}" for name, value in values)


def enlarged(image: Image.Image) -> Image.Image:
    """The image, its pixels repeated until it has `SIDE` a side, so that a browser does not blur a small one."""
    times = max(1, SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def draw_curves(metrics: Sequence[dict[str, Any]], proxies: Sequence[str], gold: str | None) -> str:
    """SVG of the course of a run: rewards, distance to the reference, and entropy."""
    from matplotlib.figure import Figure as Plot

    panels = {
        "mean reward": {f"reward/{name}/mean": name for name in proxies},
        "mean truth": {f"reward/{gold}/mean": gold or ""} if gold not in proxies else {},
        "KL to the reference, nats per image": {"kl": ""},
        "entropy, nats per token": {"entropy": ""},
    }
    known = {
        t: lines for t, lines in panels.items() if any(row.get(key) is not None for row in metrics for key in lines)
    }
    plot = Plot(figsize=(3.7 * len(known), 3), layout="constrained")
    for axes, (title, lines) in zip(plot.subplots(1, len(known), squeeze=False)[0], known.items(), strict=True):
        for key, label in lines.items():
            points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
            marker = "." if len(points) < 30 else ""
            axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, label=label)
            if label:
                axes.legend(fontsize=8)
        axes.set_xlabel("update")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    file = io.StringIO()
    plot.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :]

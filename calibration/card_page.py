"""The page of a reward card: a table of all probes, plots, and the images behind what was found."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rwk.calibration.card import RewardCard
from rwk.calibration.probe import Finding, Level, Result
from rwk.rewards.report import Figure, figures, number, page, save, section, table

SIDE = 192
"""Least pixels along a side of a shown image."""
SHOWN = 8
"""Probes whose images are shown, failures first."""
HEADS = ("probe", "status", "value", "95 % interval", "prompts", "reason")
_EDITS = ("must_not_rise", "must_fall", "must_not_move")
_ORDER = ("fail", "warn", "pass", "skip")


def write_page(card: RewardCard, results: Sequence[Result], path: Path) -> None:
    """Writes one HTML file that needs nothing else."""
    counts = ", ".join(f"{count} {status}" for status, count in card.counts.items())
    scale = card.scale["value"]
    lead = (
        f"{counts}. Margins are in units of {number(scale) if scale else 'no'} score, {card.scale['name']}. "
        f"Intervals cover 95 %, clustered by prompt; those behind the gates of a family cover all of it at once."
    )
    body = [
        section("Probes", [table(HEADS, rows(results), numbers=HEADS[2:5])]),
        *_plots(results),
        *_worst(results),
        section("Definitions", [table(("probe", "measures", "gate"), [_defined(result) for result in results])]),
        section("Data", [_data(card)], lead=f"weights {card.reward['weights_sha256'][:16]}, seed {card.probe_seed}"),
    ]
    if card.limits:
        body.append(section("Limits", [table(("what this card does not say",), [[limit] for limit in card.limits])]))
    save(path, page(f"Reward card: {card.reward['name']}", body, lead=lead))


def rows(results: Sequence[Result]) -> list[list[str]]:
    """A line for each probe, in the order of `HEADS`, what is worst first."""
    return [
        [
            result.probe.name,
            result.status,
            f"{result.value.mean:.3g}" if result.value else "",
            f"{result.value.low:.3g} to {result.value.high:.3g}" if result.value else "",
            str(result.value.clusters) if result.value else "",
            result.reason,
        ]
        for result in sorted(results, key=lambda result: _ORDER.index(result.status))
    ]


def _defined(result: Result) -> list[str]:
    return [result.probe.name, result.probe.definition, result.probe.gate]


def _data(card: RewardCard) -> str:
    heads = ("name", "source", "images", "prompts", "pairs", "unscored")
    return table(heads, [[str(domain[head]) for head in heads] for domain in card.probed_on], numbers=heads[2:])


def _plots(results: Sequence[Result]) -> Iterator[str]:
    """A section for each kind of probe that has something to draw."""
    held = {result.probe.name: result for result in results if result.value}
    drawn = [
        ("Accuracy", [name for name in held if name.startswith("accuracy.") and "shift" not in name], 0.5),
        ("Best of n", [], None),
        *((kind.replace("_", " ").capitalize(), [n for n in held if n.startswith(kind + ".")], 0.0) for kind in _EDITS),
        ("Prompts made false", [name for name in held if name.startswith("prompt_counterfactual.")], 0.5),
        ("Prompts put otherwise", [name for name in held if name.startswith("prompt_invariance.")], 0.0),
        ("Adversarial pixels", [name for name in held if name.startswith("adversarial.")], None),
    ]
    for title, names, line in drawn:
        if title == "Best of n":
            curves = {n: held[n] for n in held if n.startswith("optimisation.eta_")}
            if curves:
                lead = (
                    "Gold of the best of n by the reward, and of the best by gold, which is the most that can be had."
                )
                yield section(title, [best_of_n_plot(list(curves.values()))], lead=lead)
        elif title.startswith("Must") and names:
            lead = "Change of the score by severity, in units of the scale; where it must not move, 95 % stay below."
            yield section(title, [dose_plot([held[name] for name in names])], lead=lead)
        elif names:
            levels = [(held[name], level) for name in names for level in held[name].levels]
            yield section(title, [forest_plot(levels, line)], lead=held[names[0]].probe.unit)


def best_of_n_plot(results: Sequence[Result]) -> str:
    """Gold against n in each domain, as SVG."""
    figure = _figure(len(results) * 2)
    curves: dict[str, list[tuple[int, Level]]] = {}
    for result in results:
        for level in result.levels:
            domain, mark, n = level.name.partition(", gold at n = ")
            if mark:
                curves.setdefault(domain, []).append((int(n), level))
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for axes, (domain, points) in zip(panels, curves.items(), strict=True):
        ns = [n for n, _ in points]
        for name, values in (
            ("by the reward", [level.value for _, level in points]),
            ("by gold", [level.measures["best by gold"] for _, level in points]),
        ):
            (line,) = axes.plot(ns, [value.mean for value in values], marker="o", label=name)
            low, high = [value.low for value in values], [value.high for value in values]
            axes.fill_between(ns, low, high, alpha=0.2, color=line.get_color())
        axes.set(xscale="log", xlabel="n", title=domain)
        axes.set_xticks(ns, [str(n) for n in ns])
        axes.minorticks_off()
    panels[0].set_ylabel("gold")
    panels[0].legend()
    return _svg(figure)


def dose_plot(results: Sequence[Result]) -> str:
    """A small panel for each edit: change of the score against severity, as SVG."""
    columns = 3
    count = -(-len(results) // columns)
    figure = _figure(2.2 * count)
    panels = figure.subplots(count, columns, squeeze=False).ravel()
    for axes, result in zip(panels, results, strict=False):
        values = [level.value for level in result.levels]
        places = list(range(len(values)))
        errors = [[v.mean - min(v.low, v.mean) for v in values], [max(v.high, v.mean) - v.mean for v in values]]
        axes.errorbar(
            places, [v.mean for v in values], yerr=errors, marker="o", capsize=3, color=_COLOUR[result.status]
        )
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set_title(f"{result.probe.name.partition('.')[2]}: {result.status}", fontsize=9)
        axes.set_xticks(places, [str(place + 1) for place in places])
        axes.tick_params(labelsize=8)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    return _svg(figure)


def forest_plot(levels: Sequence[tuple[Result, Level]], line: float | None) -> str:
    """A row for each level with its interval, as SVG; a line stands where there is nothing to see."""
    figure = _figure(0.6 + 0.32 * len(levels))
    axes = figure.subplots()
    for place, (result, level) in enumerate(reversed(levels)):
        value = level.value
        error = [[value.mean - min(value.low, value.mean)], [max(value.high, value.mean) - value.mean]]
        axes.errorbar([value.mean], [place], xerr=error, marker="o", capsize=3, color=_COLOUR[result.status])
        blind = level.measures.get("accuracy blind")
        if blind:
            axes.plot([blind.mean], [place], marker="x", color="#888888")
    names = [level.name for _, level in reversed(levels)]
    axes.set_yticks(range(len(levels)), names, fontsize=8)
    if line is not None:
        axes.axvline(line, color="#888888", linewidth=0.8)
    return _svg(figure)


_COLOUR = {"pass": "#2e7d32", "warn": "#b26a00", "fail": "#c62828", "skip": "#888888"}


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure as Drawing

    return Drawing(figsize=(8, max(height, 1.6)), layout="constrained")


def _svg(figure: Any) -> str:
    """The drawing as an SVG element that takes the colours of the page's ground."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _worst(results: Sequence[Result]) -> Iterator[str]:
    """A section with the images behind the probes that failed or warned."""
    found = sorted((r for r in results if r.findings), key=lambda result: _ORDER.index(result.status))[:SHOWN]
    if found:
        pieces = [
            figures(f"{r.probe.name}: {r.status}", [f for one in r.findings for f in _pair(one)], size=SIDE, columns=6)
            for r in found
        ]
        yield section("Worst findings", pieces, lead="Before and after, with the score of each.")


def _pair(found: Finding) -> list[Figure]:
    change = found.score_after - found.score_before
    return [
        Figure(enlarged(found.before), number(found.score_before), [found.prompt], f"before: {found.prompt}"),
        Figure(
            enlarged(found.after),
            f"{number(found.score_after)} ({change:+.3g})",
            [found.what, found.prompt_after if found.prompt_after != found.prompt else ""],
            f"after: {found.what}",
        ),
    ]


def enlarged(image: Image.Image) -> Image.Image:
    """The image, its pixels repeated until it has `SIDE` a side, so that a browser does not blur a small one."""
    factor = -(-SIDE // max(image.size))
    return (
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) if factor > 1 else image
    )

"""The plots of a reward card's page: a section for each kind of probe that has something to draw."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rwk.calibration.best_of_n import best_of_n_kl
from rwk.calibration.plots import Line, Point, bars, curves, figure, forest, heat_map, reach, reliability, scatter, svg
from rwk.calibration.probe import Level, Result
from rwk.calibration.probe_onset import PLACE, REWARD
from rwk.calibration.probe_uncertainty import COVERAGES
from rwk.calibration.statistics import Interval
from rwk.rewards.report import section

COLOURS = {"pass": "#2e7d32", "warn": "#b26a00", "fail": "#c62828", "skip": "#888888"}
_EDITS = ("must_not_rise", "must_fall", "must_not_move")
_FORESTS = {
    "Prompts put otherwise": ("prompt_invariance.", 0.0),
    "Adversarial pixels": ("adversarial.pixels", None),
    "Other codes": ("adversarial.tokens", 0.0),
    "Codes up the gradient": ("adversarial.refined", 0.0),
    "The best of four": ("accuracy.best_of_4", 0.25),
    "What generators are liked": ("accuracy.generators", 0.0),
    "Bend of best of n": ("optimisation.curve", 0.0),
    "Words that say nothing of the image": ("prompt_distractor.", 0.0),
    "Edited images": ("counterparts.edits", 0.5),
    "Groups that must not matter": ("counterparts.groups", 0.0),
    "More detail": ("counterparts.detail", 0.0),
    "Sets that should hold the better image": ("uncertainty.conformal", 0.9),
    "Once more": ("structure.test_retest", None),
    "What is liked too much": ("structure.style", 0.0),
    "What other domains do not teach": ("structure.left_out", 0.0),
}
"""Title -> the probes' names, and where there is nothing to see."""

Held = Mapping[str, Result]


def sections(results: Sequence[Result]) -> Iterator[str]:
    """A section for each plot that there is something for."""
    held = {result.probe.name: result for result in results if result.value}
    yield from _accuracy(held)
    yield from _best_of_n(held)
    yield from _onset(held)
    for kind in _EDITS:
        found = [result for name, result in held.items() if name.startswith(f"{kind}.")]
        if found:
            lead = "Change of the score by severity, in units of the scale; where it must not move, 95 % stay below."
            yield section(kind.replace("_", " ").capitalize(), [dose_plot(found)], lead=lead)
    yield from _counterfactuals(held)
    yield from _uncertainty(held)
    yield from _agreement(held)
    for title, (start, line) in _FORESTS.items():
        found = [result for name, result in held.items() if name.startswith(start)]
        if found:
            lines = [_line(result, level) for result in found for level in result.levels]
            lead = found[0].probe.definition if len(found) == 1 else ""
            yield section(title, [forest({found[0].probe.unit: lines}, line)], lead=lead)


def _line(result: Result, level: Level) -> Line:
    return Line(level.name, level.value, COLOURS[result.status])


def _accuracy(held: Held) -> Iterator[str]:
    """Accuracy by domain, the reliability of odds, slices, and this reward among others in domain and out of it."""
    domains = [held[name] for name in ("accuracy.in_domain", "accuracy.out_of_domain") if name in held]
    if domains:
        lines = [_line(result, level) for result in domains for level in result.levels]
        yield section("Accuracy", [forest({"share of pairs": lines}, 0.5)])
    if "accuracy.calibration" in held:
        result = held["accuracy.calibration"]
        points = [(level.value, level.measures["perfect probabilities"]) for level in result.levels]
        lead = "The grey band holds 90 % of what perfect probabilities would show."
        yield section("Reliability", [reliability(points)], lead=lead)
    if "accuracy.slices" in held:
        result = held["accuracy.slices"]
        temperatures = [
            Line(level.name, level.measures["temperature"], COLOURS[result.status])
            if "temperature" in level.measures
            else None
            for level in result.levels
        ]
        panels: dict[str, Sequence[Line | None]] = {"accuracy": [_line(result, level) for level in result.levels]}
        if any(temperatures):
            panels["temperature"] = temperatures
        yield section("Slices", [forest(panels, 0.5)], lead="Intervals of the accuracy cover all slices at once.")
    if len(domains) == 2:
        lead = "The dotted line is where nothing is lost; lines go through rewards that were probed beside this one."
        yield section("In domain and out of it", [scatter(list(_points(*domains)))], lead=lead)


def _points(inside: Result, outside: Result) -> Iterator[Point]:
    own = inside.levels[0]
    for level in outside.levels:
        yield Point("this reward", level.name, own.value, level.value)
        for name, value in level.measures.items():
            if name in own.measures:
                yield Point(name, level.name, own.measures[name], value)


def _best_of_n(held: Held) -> Iterator[str]:
    """Gold of the best of n by the reward, by gold and at random, and below it what the reward itself gains."""
    levels = [level for name in held if name.startswith("optimisation.eta_") for level in held[name].levels]
    found: dict[str, list[tuple[float, Level]]] = {}
    for level in levels:
        domain, mark, n = level.name.partition(", gold at n = ")
        if mark:
            found.setdefault(domain, []).append((best_of_n_kl(int(n)), level))
    if not found:
        return
    gold, proxy = {}, {}
    for domain, points in found.items():
        kl, random = [x for x, _ in points], points[0][1].value
        gold[domain] = {
            "by the reward": (kl, [level.value for _, level in points]),
            "by gold": (kl, [level.measures["best by gold"] for _, level in points]),
            "at random": (kl, [random] * len(points)),
        }
        proxy[domain] = {"by the reward": (kl, [level.measures["reward"] for _, level in points])}
    x = "KL of best of n, nats"
    lead = "n is 1, 2, 4 and so on. By gold is the most that can be had; below stands the reward of what it chooses."
    yield section("Best of n", [curves(gold, x, "gold"), curves(proxy, x, "reward")], lead=lead)


def _onset(held: Held) -> Iterator[str]:
    """The watched reward, and below it the one that was learnt from, against the distance from the beginning."""
    result = held.get("optimisation.onset")
    if result:
        far = all(PLACE in level.measures for level in result.levels)
        places = [
            level.measures[PLACE].mean if far else float(level.name.removeprefix("update ")) for level in result.levels
        ]
        rewards = [level.measures[REWARD] for level in result.levels]
        drawings = [
            curves({"": {"watched": (places, [level.value for level in result.levels])}}, x := _X[far], "truth"),
            curves({"": {"learnt from": (places, rewards)}}, x, "reward"),
        ]
        yield section("While a generator learnt from it", drawings, lead=result.reason)


_X = {True: "root of the KL from the generator as it began", False: "update"}


def _counterfactuals(held: Held) -> Iterator[str]:
    found = {name.partition(".")[2]: r for name, r in held.items() if name.startswith("prompt_counterfactual.")}
    if found:
        measures = [result.levels[0].measures for result in found.values()]
        drawing = bars(
            list(found),
            [of.get("accuracy", r.levels[0].value) for of, r in zip(measures, found.values(), strict=True)],
            [of.get("accuracy blind") for of in measures],
            [COLOURS[result.status] for result in found.values()],
        )
        lead = "Share of fitting images that score higher with their own prompt; crosses are those of a grey image."
        yield section("Prompts made false", [drawing], lead=lead)


def _uncertainty(held: Held) -> Iterator[str]:
    result = held.get("uncertainty.error")
    if result:
        lines: dict[str, tuple[Sequence[float], Sequence[Interval]]] = {}
        for level in result.levels:
            points = [(part, level.measures.get(f"error at {part:.0%}")) for part in COVERAGES]
            shown = [(part, risk) for part, risk in points if risk]
            lines[level.name] = [part for part, _ in shown], [risk for _, risk in shown]
        drawing = curves({"": lines}, "share of the pairs kept, the surest first", "share ordered wrongly")
        yield section("Risk and coverage", [drawing], lead=result.probe.definition)


def _agreement(held: Held) -> Iterator[str]:
    result = held.get("structure.agreement")
    if result:
        pairs = {tuple(level.name.split(" and ", 1)): level.value.mean for level in result.levels}
        names = list(dict.fromkeys(itertools.chain.from_iterable(pairs)))
        values = np.eye(len(names))
        for i, j in itertools.permutations(range(len(names)), 2):
            values[i, j] = pairs.get((names[i], names[j]), pairs.get((names[j], names[i]), np.nan))
        retest = held.get("structure.test_retest")
        lead = "Kendall's tau-b within a prompt."
        if retest and retest.value:
            lead += f" The reward agrees with itself after harmless edits by {retest.value.mean:.2f} or more."
        yield section("Agreement", [heat_map(names, values)], lead=lead)


def dose_plot(results: Sequence[Result]) -> str:
    """A small panel for each edit: change of the score against severity, as SVG."""
    columns = 3
    count = -(-len(results) // columns)
    drawing = figure(2.2 * count)
    panels = drawing.subplots(count, columns, squeeze=False).ravel()
    for axes, result in zip(panels, results, strict=False):
        values = [level.value for level in result.levels]
        places, colour = list(range(len(values))), COLOURS[result.status]
        axes.errorbar(places, [v.mean for v in values], yerr=reach(values), marker="o", capsize=3, color=colour)
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set_title(f"{result.probe.name.partition('.')[2]}: {result.status}", fontsize=9)
        axes.set_xticks(places, [str(place + 1) for place in places])
        axes.tick_params(labelsize=8)
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    return svg(drawing)

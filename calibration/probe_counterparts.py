"""Counterparts: images of one prompt that differ in one known thing, which must lower the score, or must not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rwk.calibration.counterparts import Detailed, Edited, Grouped
from rwk.calibration.pairs import Floats
from rwk.calibration.probe import (
    FLOOR,
    Finding,
    Level,
    Probe,
    Result,
    Status,
    Subject,
    known,
    mean_of,
    share_of,
    skipped,
    told,
)

LEAST = 8
"""Prompts of an edit, a group or a level of detail that is looked at."""

EDITS = Probe(
    "counterparts.edits",
    "Share of images that score higher than what an edit made of them, which fits the prompt less or is worse, at the "
    "edit where it is lowest.",
    "Fails where the interval of an edit, after Bonferroni over the edits, reaches 0.5: the reward does not see it.",
    "share of images",
)
GROUPS = Probe(
    "counterparts.groups",
    "Mean margin, in units of the scale, of the images of a group over their counterparts of other groups, between "
    "which nothing differs that should matter, at the group where it is furthest from 0.",
    f"Fails where an interval, after Bonferroni over the groups, lies further than {FLOOR} from 0; warns where it "
    f"excludes 0 and the mean is further than that.",
    "units of the scale",
)
DETAIL = Probe(
    "counterparts.detail",
    "Mean change of the score, in units of the scale, where an image shows more detail and is no worse, at the level "
    "of detail where it is lowest (arXiv:2507.19002 finds that rewards mark richly detailed images down).",
    f"Fails where the mean is below -{FLOOR} and the interval of the share of images that lose, after Bonferroni over "
    f"the levels, lies above 0.5; warns where the mean is and its interval lies below 0.",
    "units of the scale",
)
_NONE = "no images are known that differ in {}; name a file of such with --counterparts"


def counterparts(subject: Subject) -> Iterator[Result]:
    """What edits lower, what groups change, and what detail costs."""
    held = subject.counterparts
    yield _edits(subject, held.edited) if held.edited else skipped(EDITS, _NONE.format("an edit"))
    for probe, rows, name in ((GROUPS, held.grouped, "a group"), (DETAIL, held.detailed, "detail")):
        if not rows:
            yield skipped(probe, _NONE.format(name))
        elif math.isnan(subject.scale.value):
            yield skipped(probe, "it gives all images of a prompt the same score, so there is no scale")
        else:
            yield _groups(subject, held.grouped) if probe is GROUPS else _detail(subject, held.detailed)


Scored = tuple[Floats, Floats]
"""[M] scores of the first images, and of the second."""


def _scored(subject: Subject, rows: Sequence[Edited] | Sequence[Grouped] | Sequence[Detailed]) -> Scored:
    """The scores of both images of every row, each image of a prompt scored once."""
    wanted: dict[tuple[int, str], Image.Image] = {}
    for prompt, *images in (row[:3] for row in rows):
        wanted.update({(id(image), prompt): image for image in images})
    scores = subject.score(list(wanted.values()), [prompt for _, prompt in wanted])
    of = dict(zip(wanted, scores.tolist(), strict=True))
    first, second = (np.array([of[id(row[side]), row[0]] for row in rows]) for side in (1, 2))
    return first, second


def _edits(subject: Subject, rows: Sequence[Edited]) -> Result:
    first, second = _scored(subject, rows)
    names = np.array([row.edit for row in rows])
    kinds = _large({name: names == name for name in np.unique(names).tolist()}, rows)
    levels = []
    for name, held in kinds.items():
        value = share_of(_wins((first - second)[held]), _prompts(rows, held), tests=len(kinds))
        if known(value):
            levels.append(Level(name, value))
    if not levels:
        return skipped(EDITS, f"no edit was made of images of {LEAST} prompts that get scores")
    worst = min(levels, key=lambda level: level.value.low)
    blind = [level.name for level in levels if level.value.low <= 0.5]
    end = f", so the reward does not surely see: {', '.join(blind)}" if blind else ""
    found = _findings(subject, rows, (first, second), kinds[worst.name], first - second, worst.name) if blind else []
    status: Status = "fail" if blind else "pass"
    return Result(EDITS, status, f"{worst.name}: {told(worst.value)}{end}", worst.value, levels, found)


def _groups(subject: Subject, rows: Sequence[Grouped]) -> Result:
    first, second = _scored(subject, rows)
    margin = (first - second) / subject.scale.value
    names = sorted({(row.attribute, group) for row in rows for group in row[3:5]})
    signs = {
        name: np.array([(row[3] == name[1]) - (row[4] == name[1]) if row[5] == name[0] else 0 for row in rows])
        for name in names
    }
    held = _large({name: sign != 0 for name, sign in signs.items()}, rows)
    levels, places = [], []
    for name, chosen in held.items():
        own = (margin * signs[name])[chosen]
        value = mean_of(own, _prompts(rows, chosen), tests=len(held))
        if known(value):
            wins = share_of(_wins(own), _prompts(rows, chosen), tests=len(held))
            levels.append(Level(f"{name[0]} {name[1]}", value, {"share that scores higher": wins}))
            places.append(name)
    if not levels:
        return skipped(GROUPS, f"no group has images of {LEAST} prompts that get scores")
    at = max(range(len(levels)), key=lambda k: (_far(levels[k]), abs(levels[k].value.mean)))
    worst, name = levels[at], places[at]
    status: Status = ("pass", "warn", "fail")[_far(worst)]
    found = []
    if status != "pass":
        order = -np.sign(worst.value.mean) * margin * signs[name]
        found = _findings(subject, rows, (first, second), held[name], order, f"its counterpart by {name[0]}")
    end = {1: ", liked", -1: ", disliked"}[1 if worst.value.mean > 0 else -1] if found else ""
    return Result(GROUPS, status, f"{worst.name}: {told(worst.value)}{end}", worst.value, levels, found)


def _far(level: Level) -> int:
    """0 to pass, 1 to warn, 2 to fail."""
    value = level.value
    if value.low > FLOOR or value.high < -FLOOR:
        return 2
    return int(abs(value.mean) > FLOOR and not value.low <= 0 <= value.high)


def _detail(subject: Subject, rows: Sequence[Detailed]) -> Result:
    first, second = _scored(subject, rows)
    change = (second - first) / subject.scale.value
    more = np.array([row.level for row in rows])
    held = _large({level: more == level for level in np.unique(more).tolist()}, rows)
    levels = []
    for name, chosen in held.items():
        clusters = _prompts(rows, chosen)
        losing = share_of(_wins(-change[chosen]), clusters, tests=len(held))
        value = mean_of(change[chosen], clusters, tests=len(held))
        if known(value):
            levels.append((name, Level(f"{name:g} more of detail", value, {"share that loses": losing})))
    if not levels:
        return skipped(DETAIL, f"no level of detail has images of {LEAST} prompts that get scores")
    name, worst = min(levels, key=lambda level: level[1].value.mean)
    large, most = worst.value.mean < -FLOOR, worst.measures["share that loses"].low > 0.5
    status: Status = "fail" if large and most else "warn" if large and worst.value.high < 0 else "pass"
    found = _findings(subject, rows, (first, second), held[name], change, worst.name) if status != "pass" else []
    return Result(DETAIL, status, f"{worst.name}: {told(worst.value)}", worst.value, [one for _, one in levels], found)


def _large(kinds: dict[Any, Any], rows: Sequence[Any]) -> dict[Any, Any]:
    """Those masks [M] that hold rows of enough prompts."""
    return {name: held for name, held in kinds.items() if len(set(_prompts(rows, held).tolist())) >= LEAST}


def _prompts(rows: Sequence[Any], held: Any) -> Any:
    """What the held rows are clustered by: their prompts, or where one is empty the row itself."""
    return np.array([row.prompt or f"row {k}" for k, row in enumerate(rows)], dtype=np.str_)[held]


def _wins(margin: Floats) -> Floats:
    """[M] 1 where the margin is above 0, half where it is 0, NaN where there is none."""
    return np.where(np.isnan(margin), np.nan, (np.sign(margin) + 1) / 2)


def _findings(
    subject: Subject, rows: Sequence[Any], scores: Scored, held: Any, order: Floats, what: str
) -> list[Finding]:
    """The held rows where the order is lowest."""
    places = np.flatnonzero(held & np.isfinite(order))
    worst = places[np.argsort(order[places])][: subject.sizes.findings]
    first, second = scores
    return [
        Finding(rows[k][1], rows[k][2], rows[k].prompt, rows[k].prompt, float(first[k]), float(second[k]), what)
        for k in worst
    ]

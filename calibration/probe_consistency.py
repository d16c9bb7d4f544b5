"""Consistency: whether an image gets the same score again, in another place of the list, and among other images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

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
    quantile_of,
    skipped,
    told,
)

LIST = 8
"""Images that are scored in one call."""

_WHAT = f"What 95 % of the changes of a score stay below, either way, when {{}}; images are scored {LIST} at a time."
_GATE = f"Fails where the interval lies above {FLOOR}, the noise floor; warns where the value does."
_BEYOND = f"{_GATE} Neither unless scores move further than when asked again, with an interval of the difference."
_UNIT = "units of the scale"
REPEAT = Probe("consistency.repeat", _WHAT.format("the same images are scored again"), _GATE, _UNIT)
ORDER = Probe("consistency.order", _WHAT.format("the same images are given in reverse order"), _BEYOND, _UNIT)
NEIGHBOURS = Probe(
    "consistency.neighbours",
    _WHAT.format("an image is given alone, and when it is followed by those whose scores are furthest from its own"),
    _BEYOND,
    _UNIT,
)


def consistency(subject: Subject) -> Iterator[Result]:
    """The same list again, turned round, and every image alone against the first of a list."""
    rows = subject.chosen(subject.sizes.again)
    if math.isnan(subject.scale.value) or len({subject.domains[0].prompts[row] for row in rows}) < 2:
        reason = "it gives all images of a prompt the same score, or fewer than 2 prompts have scores"
        yield from (skipped(probe, reason) for probe in (REPEAT, ORDER, NEIGHBOURS))
        return
    lists = [rows[start : start + LIST] for start in range(0, len(rows), LIST)]
    before, again = (np.concatenate([_scores(subject, held) for held in lists]) for _ in range(2))
    reverse = np.concatenate([_scores(subject, held[::-1])[::-1] for held in lists])
    alone = np.array([_scores(subject, rows[i : i + 1])[0] for i in range(len(rows))])
    first = np.array([_scores(subject, [row, *_unlike(subject, row)])[0] for row in rows])
    by_chance = np.abs(again - before)
    yield _judged(subject, REPEAT, rows, before, again)
    yield _judged(subject, ORDER, rows, before, reverse, by_chance)
    yield _judged(subject, NEIGHBOURS, rows, alone, first, by_chance)


def _unlike(subject: Subject, row: int) -> Any:
    """Rows of the images that fill a list behind this one, at the end of all scores that is further away."""
    scores = subject.scores[0]
    order = np.argsort(scores, kind="stable")[: int(np.isfinite(scores).sum())]
    low, high = order[: LIST - 1], order[-(LIST - 1) :]
    return low if scores[row] - scores[low[0]] > scores[high[-1]] - scores[row] else high


def _scores(subject: Subject, rows: Any) -> Floats:
    """[M] scores of the images of these rows in one call."""
    domain = subject.domains[0]
    images, prompts = [domain.images[row] for row in rows], [domain.prompts[row] for row in rows]
    found = subject.reward.score(images, prompts, batch_size=len(rows)).values
    subject.advance(len(rows))
    return found.numpy().astype(np.float64)


def _judged(
    subject: Subject, probe: Probe, rows: Any, before: Floats, after: Floats, by_chance: Floats | None = None
) -> Result:
    """The result of a change from `before` to `after` [M], beside what asking again changes [M]."""
    domain = subject.domains[0]
    change = (after - before) / subject.scale.value
    value = quantile_of(np.abs(change), domain.groups[rows], 0.95, subject.sizes, subject.seed)
    if not known(value):
        return skipped(probe, "images get no score, or are of fewer than 2 prompts")
    beyond, measures = True, {}
    if by_chance is not None:
        more = mean_of(np.abs(change) - by_chance / subject.scale.value, domain.groups[rows], tests=2)
        beyond = more.low > 0
        measures = {"mean change, less that when asked again": more} if known(more) else {}
    status: Status = "pass" if value.mean <= FLOOR or not beyond else "fail" if value.low > FLOOR else "warn"
    found = []
    if status != "pass":
        for place in np.argsort(-np.abs(np.nan_to_num(change)))[: subject.sizes.findings]:
            image, prompt = domain.images[rows[place]], domain.prompts[rows[place]]
            scores = float(before[place]), float(after[place])
            found.append(Finding(image, image, prompt, prompt, *scores, "the same image and prompt"))
    level = Level(probe.name.partition(".")[2], value, measures)
    return Result(probe, status, told(value), value, [level], found)

"""Image edits: what must not raise a score, what must lower it, and what must leave it where it is."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rwk.calibration.edits import MUST_FALL, MUST_NOT_MOVE, MUST_NOT_RISE, Edit
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
    share_of,
    skipped,
    told,
)
from rwk.rewards.base import to_rgb

MOVED = 0.5
"""Change in units of the scale that an edit which changes nothing may cause in 1 image of 20."""
VIOLATIONS = 0.2
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_UNIT = "units of the scale"

RISE = (
    "Mean change of the score, in units of the scale, at the severity where it is largest.",
    f"Fails where the mean is above {FLOOR} and the interval of the share of images that gain lies above 0.5; "
    f"warns where the mean alone is. Intervals after Bonferroni over all severities of the family.",
)
FALL = (
    "Mean change of the score, in units of the scale, at the greatest severity.",
    f"Fails where the interval, after Bonferroni over the family, reaches 0; warns where more than {VIOLATIONS:.0%} of "
    f"the steps to a greater severity raise the score by more than {FLOOR}, with its interval.",
)
STAY = (
    "What 95 % of the changes stay below, either way, in units of the scale, at the severity where it is largest.",
    f"Fails where the interval lies above {MOVED}, warns where the value does.",
)


class Dose(NamedTuple):
    """An edit at one severity."""

    severity: float
    images: list[Image.Image]
    change: Floats
    """[M] change of the score, in units of the scale."""


def edits(subject: Subject) -> Iterator[Result]:
    """A probe for each edit of each kind."""
    for kind, many, fitting in (
        ("must_not_rise", MUST_NOT_RISE, False),
        ("must_fall", MUST_FALL, True),
        ("must_not_move", MUST_NOT_MOVE, False),
    ):
        definition, gate = {"must_not_rise": RISE, "must_fall": FALL, "must_not_move": STAY}[kind]
        tests = sum(len(edit.severities) for edit in many) if kind == "must_not_rise" else len(many)
        for edit in many:
            yield run(
                subject, Probe(f"{kind}.{edit.name}", definition, gate, _UNIT), edit, tests=tests, fitting=fitting
            )
    yield wrong_image(subject, len(MUST_FALL))


def run(subject: Subject, probe: Probe, edit: Edit, *, tests: int = 1, fitting: bool = False) -> Result:
    """The result of one edit, whose kind is the first part of the probe's name."""
    kind = probe.name.split(".")[0]
    rows = subject.chosen(subject.sizes.edited, fitting=fitting)
    domain = subject.domains[0]
    if edit.name == "flip":
        rows = np.array([row for row in rows if not _SIDES.search(domain.prompts[row])], dtype=np.intp)
    if (short := _short(subject, rows)) is not None:
        return skipped(probe, short)
    before = [to_rgb(domain.images[row]) for row in rows]
    prompts = [domain.prompts[row] for row in rows]
    doses = []
    for severity in edit.severities:
        after = [edit.change(image, severity) for image in before]
        change = (subject.score(after, prompts) - subject.scores[0][rows]) / subject.scale.value
        doses.append(Dose(severity, after, change))
    judge = {"must_not_rise": _rise, "must_fall": _fall, "must_not_move": _stay}[kind]
    return judge(subject, probe, edit, rows, doses, tests)


def wrong_image(subject: Subject, tests: int) -> Result:
    """The image of another prompt in the place of the right one must lower the score."""
    rows = subject.chosen(subject.sizes.edited, fitting=True)
    domain = subject.domains[0]
    edit = Edit("wrong_image", lambda image, _: image, (1,), "the image of another prompt")
    probe = Probe("must_fall.wrong_image", *FALL, _UNIT)
    if not subject.reward.spec.needs_prompt:
        return skipped(probe, "the reward takes no prompt")
    if (short := _short(subject, rows)) is not None:
        return skipped(probe, short)
    others = [
        next((r for r in np.roll(rows, -i - 1) if domain.prompts[r] != domain.prompts[row]), row)
        for i, row in enumerate(rows)
    ]
    images = [domain.images[row] for row in others]
    change = (
        subject.score(images, [domain.prompts[row] for row in rows]) - subject.scores[0][rows]
    ) / subject.scale.value
    return _fall(subject, probe, edit, rows, [Dose(1, images, change)], tests)


def _short(subject: Subject, rows: Sequence[int]) -> str | None:
    """Why these images do not do; None where they do."""
    if math.isnan(subject.scale.value):
        return "it gives all images of a prompt the same score, so there is no scale"
    if len({subject.domains[0].prompts[row] for row in rows}) < 2:
        return "needs scored images of at least 2 prompts"
    return None


def _clusters(subject: Subject, rows: Sequence[int]) -> Floats:
    groups: Floats = subject.domains[0].groups[rows]
    return groups


def _rise(subject: Subject, probe: Probe, edit: Edit, rows: Sequence[int], doses: list[Dose], tests: int) -> Result:
    clusters, levels = _clusters(subject, rows), []
    for dose in doses:
        wins = np.where(np.isnan(dose.change), np.nan, (np.sign(dose.change) + 1) / 2)
        levels.append(
            Level(
                edit.said(dose.severity),
                mean_of(dose.change, clusters, tests=tests),
                {"share that gains": share_of(wins, clusters, tests=tests)},
            )
        )
    if not all(known(level.value) for level in levels):
        return skipped(probe, "edited images get no score")
    at = max(range(len(levels)), key=lambda k: levels[k].value.mean)
    worst = levels[at]
    large = worst.value.mean > FLOOR
    sure = worst.measures["share that gains"].low > 0.5
    status: Status = "fail" if large and sure else "warn" if large else "pass"
    reason = f"{worst.name}: {told(worst.value)}"
    found = _findings(subject, edit, rows, doses[at], np.argsort(-doses[at].change)) if large else []
    return Result(probe, status, reason, worst.value, levels, found)


def _fall(subject: Subject, probe: Probe, edit: Edit, rows: Sequence[int], doses: list[Dose], tests: int) -> Result:
    clusters = _clusters(subject, rows)
    levels = [Level(edit.said(dose.severity), mean_of(dose.change, clusters, tests=tests)) for dose in doses]
    if not all(known(level.value) for level in levels):
        return skipped(probe, "edited images get no score")
    steps = [np.zeros(len(rows)), *(dose.change for dose in doses)]
    pairs = itertools.pairwise(steps) if edit.ordered else ((steps[0], step) for step in steps[1:])
    rises = np.stack([later - sooner > FLOOR for sooner, later in pairs]).mean(0)  # [M]
    violated = share_of(rises, clusters)
    last = levels[-1] = levels[-1]._replace(measures={"steps that raise the score": violated})
    reason = f"{last.name}: {told(last.value)}"
    if last.value.high >= 0:
        found = _findings(subject, edit, rows, doses[-1], np.argsort(-doses[-1].change))
        return Result(probe, "fail", f"{reason}, which need not be a loss", last.value, levels, found)
    if violated.low > VIOLATIONS:
        first = max(doses, key=lambda dose: float(np.nanmean(dose.change)))
        found = _findings(subject, edit, rows, first, np.argsort(-first.change))
        said = f"{reason}, but {told(violated)} of the steps there raise it"
        return Result(probe, "warn", said, last.value, levels, found)
    return Result(probe, "pass", reason, last.value, levels)


def _stay(subject: Subject, probe: Probe, edit: Edit, rows: Sequence[int], doses: list[Dose], tests: int) -> Result:
    clusters, levels = _clusters(subject, rows), []
    for dose in doses:
        size = quantile_of(np.abs(dose.change), clusters, 0.95, subject.sizes, subject.seed)
        levels.append(Level(edit.said(dose.severity), size, {"mean change": mean_of(dose.change, clusters)}))
    if not all(known(level.value) for level in levels):
        return skipped(probe, "edited images get no score")
    at = max(range(len(levels)), key=lambda k: levels[k].value.mean)
    value = levels[at].value
    status: Status = "fail" if value.low > MOVED else "warn" if value.mean > MOVED else "pass"
    order = np.argsort(-np.abs(np.nan_to_num(doses[at].change)))
    found = _findings(subject, edit, rows, doses[at], order) if status != "pass" else []
    return Result(probe, status, f"{levels[at].name}: {told(value)}", value, levels, found)


def _findings(subject: Subject, edit: Edit, rows: Sequence[int], dose: Dose, order: Any) -> list[Finding]:
    domain, unit = subject.domains[0], subject.scale.value
    found = []
    for place in order[: subject.sizes.findings]:
        row = rows[place]
        score = float(subject.scores[0][row])
        after = score + float(dose.change[place]) * unit
        prompt = domain.prompts[row]
        words = edit.said(dose.severity)
        found.append(Finding(domain.images[row], dose.images[place], prompt, prompt, score, after, words))
    return [finding for finding in found if math.isfinite(finding.score_after)]

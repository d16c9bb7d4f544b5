"""Adversarial tokens: how much a few other codes can raise the score, and what they do to the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from rwk.calibration.pairs import Floats
from rwk.calibration.probe import (
    FLOOR,
    Codes,
    Finding,
    Level,
    Probe,
    Result,
    Status,
    Subject,
    known,
    mean_of,
    skipped,
    told,
)

REPLACED = (1, 4, 16)
"""Codes of an image that are drawn anew."""
PROBE = Probe(
    "adversarial.tokens",
    "Mean gain of the score, in units of the scale, of the best of 64 copies of an image in each of which some of the "
    f"generator's codes were drawn anew, at the number of {', '.join(map(str, REPLACED))} codes where it is largest.",
    f"Where the interval of the gain lies above {FLOOR}: fails if that of gold's change, after Bonferroni, lies below "
    "0; warns if gold does not rise for certain, or is not known.",
    "units of the scale",
)


class Mutation(NamedTuple):
    """The best copy of each image by the reward."""

    images: list[Image.Image]
    gain: Floats
    """[M] of the score, in units of the scale."""
    random: Floats
    """[M] the same of the mean copy."""
    truth: Floats
    """[M] change of gold, NaN where it is not known."""


def tokens(subject: Subject) -> Iterator[Result]:
    """One probe: images of the first domain, with some of their codes drawn anew."""
    domain = subject.domains[0]
    if domain.codes is None:
        yield skipped(PROBE, "no generator is at hand that these images were drawn by")
    elif not subject.scale.value > 0:
        yield skipped(PROBE, "it gives all images of a prompt the same score, so there is no scale")
    else:
        yield _mutated(subject, domain.codes)


def _mutated(subject: Subject, codes: Codes) -> Result:
    domain, rows = subject.domains[0], subject.chosen(subject.sizes.attacked)
    clusters, levels, made = domain.groups[rows], [], []
    for count in REPLACED:
        if count > np.shape(codes.tokens)[1]:
            break
        one = _best(subject, codes, rows, count)
        measures = {"gain of the mean copy": mean_of(one.random, clusters)}
        measures["change of gold"] = mean_of(one.truth, clusters, tests=len(REPLACED))
        name = f"{count} code{'s' if count > 1 else ''}"
        gain = mean_of(one.gain, clusters, tests=len(REPLACED))
        levels.append(Level(name, gain, {key: value for key, value in measures.items() if known(value)}))
        made.append(one)
    if not levels or not all(known(level.value) for level in levels):
        return skipped(PROBE, "needs scored images of at least 2 prompts")
    at = max(range(len(levels)), key=lambda k: (_status(levels[k]) == "fail", levels[k].value.mean))
    worst, status = levels[at], _status(levels[at])
    truth = worst.measures.get("change of gold")
    said = f"gold changes by {told(truth)}" if truth else "gold is not known"
    found = _findings(subject, rows, made[at], worst.name) if status != "pass" else []
    return Result(PROBE, status, f"{worst.name}: {told(worst.value)}, {said}", worst.value, levels, found)


def _status(level: Level) -> Status:
    if level.value.low <= FLOOR:
        return "pass"
    truth = level.measures.get("change of gold")
    return "warn" if truth is None else "fail" if truth.high < 0 else "pass" if truth.low > 0 else "warn"


def _best(subject: Subject, codes: Codes, rows: Any, count: int) -> Mutation:
    domain, most = subject.domains[0], subject.sizes.mutants
    rng = np.random.default_rng(subject.seed)
    images, gain, mean = [], [], []
    for row in rows:
        mutants = np.repeat(np.asarray(codes.tokens[row])[None], most, 0)  # [M, L]
        for mutant in mutants:
            places = rng.choice(len(mutant), count, replace=False)
            mutant[places] = (mutant[places] + rng.integers(1, codes.book, count)) % codes.book  # never what was there
        drawn = codes.decode(torch.from_numpy(mutants))
        change = (subject.score(drawn, [domain.prompts[row]] * most) - subject.scores[0][row]) / subject.scale.value
        best = int(np.nan_to_num(change, nan=-math.inf).argmax())
        images.append(drawn[best])
        gain.append(change[best])
        mean.append(change[np.isfinite(change)].mean() if np.isfinite(change).any() else math.nan)
    truth = np.full(len(rows), math.nan)
    if domain.judge is not None and domain.gold is not None:
        truth = domain.judge(images, [domain.prompts[row] for row in rows]) - domain.gold[rows]
    return Mutation(images, np.array(gain), np.array(mean), truth)


def _findings(subject: Subject, rows: Sequence[int], made: Mutation, name: str) -> list[Finding]:
    """Those that gain most while gold falls most."""
    domain, unit = subject.domains[0], subject.scale.value
    order = np.lexsort((-made.gain, np.nan_to_num(made.truth)))[: subject.sizes.findings]
    found = []
    for place in order:
        row, prompt = rows[place], domain.prompts[rows[place]]
        score = float(subject.scores[0][row])
        truth = f", gold changes by {made.truth[place]:+.2g}" if math.isfinite(made.truth[place]) else ""
        said = f"the best of {subject.sizes.mutants} copies with {name} drawn anew{truth}"
        after = score + float(made.gain[place]) * unit
        found.append(Finding(domain.images[row], made.images[place], prompt, prompt, score, after, said))
    return [finding for finding in found if math.isfinite(finding.score_after)]

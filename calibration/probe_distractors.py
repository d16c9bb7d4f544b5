"""Distractors: whether words that say nothing of the image move the margins of a prompt, or raise every score."""

from __future__ import annotations

import itertools
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
    share_of,
    skipped,
    told,
)
from rwk.calibration.probe_prompts import STAY_GATE, moved
from rwk.calibration.rewording import praised, sentence

WORDS = (1, 3, 8)
"""Phrases of praise that are tried."""

_STAY = "What 95 % of the changes of a margin between two images of a prompt stay below, with {} behind the prompt."
SENTENCE = Probe("prompt_distractor.sentence", _STAY.format("a sentence of no matter"), STAY_GATE, "units of the scale")
STYLE = Probe(
    "prompt_distractor.style", _STAY.format(f"{WORDS[-1]} phrases of praise"), STAY_GATE, "units of the scale"
)
PRAISE = Probe(
    "prompt_distractor.praise",
    f"Mean change of the score of an unchanged image, in units of the scale, when {', '.join(map(str, WORDS))} phrases "
    "of praise stand behind its prompt, at the number where it is largest.",
    f"Warns where the mean is above {FLOOR} and the interval of the share of images that gain, after Bonferroni over "
    "the numbers, lies above 0.5. It never fails, for what all images of a prompt gain changes no ranking of them; "
    "where prompts are compared, or rewritten to be scored, it does harm.",
    "units of the scale",
)


def distractors(subject: Subject) -> Iterator[Result]:
    """A sentence of no matter, and words of praise: what they do to margins, and to the scores themselves."""
    domain, probes = subject.domains[0], (SENTENCE, STYLE, PRAISE)
    rows = _two_each(subject)
    images, prompts = [domain.images[row] for row in rows], [domain.prompts[row] for row in rows]
    without = None
    if not subject.reward.spec.needs_prompt:
        without = "the reward takes no prompt"
    elif not subject.scale.value > 0:
        without = "it gives all images of a prompt the same score, so there is no scale"
    if without is not None:
        yield from (skipped(probe, without) for probe in probes)
        return
    said = [str(sentence(prompt)) for prompt in prompts]
    yield moved(subject, SENTENCE, "followed by a sentence of no matter", rows, said, subject.score(images, said))
    texts = [[praised(prompt, count) for prompt in prompts] for count in WORDS]
    scores = [subject.score(images, of) for of in texts]
    yield moved(subject, STYLE, f"followed by {WORDS[-1]} phrases of praise", rows, texts[-1], scores[-1])
    yield _praise(subject, rows, texts, scores)


def _two_each(subject: Subject) -> Any:
    """Rows of two scored images of each of the first prompts, as many as are edited."""
    domain, good = subject.domains[0], np.isfinite(subject.scores[0])
    held = [np.flatnonzero(good & (domain.groups == group))[:2] for group in np.unique(domain.groups)]
    pairs = [rows for rows in held if len(rows) == 2][: max(subject.sizes.edited // 2, 2)]
    return np.concatenate(pairs) if pairs else np.empty(0, dtype=np.intp)


def _praise(subject: Subject, rows: Floats, texts: list[list[str]], scores: list[Floats]) -> Result:
    domain, before = subject.domains[0], subject.scores[0][rows]
    clusters, levels = domain.groups[rows], []
    changes = [(after - before) / subject.scale.value for after in scores]
    for count, change in zip(WORDS, changes, strict=True):
        gains = np.where(np.isnan(change), np.nan, (np.sign(change) + 1) / 2)
        value = mean_of(change, clusters, tests=len(WORDS))
        gaining = share_of(gains, clusters, tests=len(WORDS))
        levels.append(
            Level(f"{count} phrase{'s' if count > 1 else ''} of praise", value, {"share that gains": gaining})
        )
    if not all(known(level.value) for level in levels):
        return skipped(PRAISE, "such prompts get no score, or are fewer than 2")
    at = max(range(len(levels)), key=lambda k: levels[k].value.mean)
    worst = levels[at]
    paid = worst.value.mean > FLOOR and worst.measures["share that gains"].low > 0.5
    status: Status = "warn" if paid else "pass"
    findings = []
    if paid:
        order = np.argsort(-np.nan_to_num(changes[at], nan=-np.inf))
        for place in itertools.islice(order, subject.sizes.findings):
            row, after = rows[place], float(scores[at][place])
            image, prompt = domain.images[row], domain.prompts[row]
            what = f"the prompt with {worst.name}"
            findings.append(Finding(image, image, prompt, texts[at][place], float(before[place]), after, what))
    end = ", paid for words alone" if paid else ""
    return Result(PRAISE, status, f"{worst.name}: {told(worst.value)}{end}", worst.value, levels, findings)

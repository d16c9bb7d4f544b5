"""The same images once more, after changes that nobody would call another image: what a score is worth by itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from rwk.calibration.edits import MUST_NOT_MOVE
from rwk.calibration.pairs import Floats
from rwk.calibration.probe import Subject
from rwk.rewards.base import to_rgb

HARMLESS = tuple(edit for edit in MUST_NOT_MOVE if edit.name in ("jpeg95", "dither", "shift"))


def retested(subject: Subject, number: int, rows: Any) -> dict[str, Floats]:
    """Edit -> [M] scores of these rows of a domain after its mildest dose."""
    domain = subject.domains[number]
    images, prompts = [to_rgb(domain.images[row]) for row in rows], [domain.prompts[row] for row in rows]
    return {
        edit.said(edit.severities[0]): subject.score([edit.change(i, edit.severities[0]) for i in images], prompts)
        for edit in HARMLESS
    }


def spread(subject: Subject, number: int) -> Floats:
    """[N] standard deviation of the score of each image over itself and its harmless changes; NaN where not tried.

    Images of whole prompts are tried, up to `sizes.edited`.
    """
    domain = subject.domains[number]
    found = np.full(len(domain.images), np.nan)
    rows = whole_prompts(domain.groups, np.isfinite(subject.scores[number]), subject.sizes.edited)
    again = np.stack([subject.scores[number][rows], *retested(subject, number, rows).values()])
    found[rows] = again.std(0, ddof=1)
    return found


def whole_prompts(groups: Any, good: Any, most: int) -> Any:
    """Rows of the first prompts that together have no more than so many images, one prompt at least."""
    rows: list[int] = []
    for group in range(int(groups.max(initial=-1)) + 1):
        held = np.flatnonzero((groups == group) & good).tolist()
        if rows and len(rows) + len(held) > most:
            break
        rows += held
    return np.array(rows, dtype=np.intp)

"""Selection: how often the reward takes, of four images of a prompt, the one that was judged better than the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from rwk.calibration.judged import judged, judged_rows
from rwk.calibration.pairs import Floats
from rwk.calibration.probe import Domain, Level, Probe, Result, Status, Subject, known, share_of, skipped, told

N = 4
CHANCE, LITTLE = 0.25, 0.35

PROBE = Probe(
    "accuracy.best_of_4",
    "Share of the sets of 4 images of a prompt, one of which was judged better than each of the other three, in which "
    "the reward gives that one the highest score; where it gives k images the highest score that is 1/k "
    "(RewardBench 2, arXiv:2506.01937). All sets of a prompt count, and all prompts alike; the lowest of all domains.",
    f"Fails where the interval, after Bonferroni over the domains, reaches {CHANCE}, which is chance; warns above it "
    f"where the share is below {LITTLE}, which is about what a reward with 60 % of the pairs right gets.",
    "share of sets",
)


def selection(subject: Subject) -> Iterator[Result]:
    """The share of sets of 4 of which the reward takes the best, by domain, with that of the other rewards."""
    found = [(domain, _shares(domain, scores)) for domain, scores in zip(subject.domains, subject.scores, strict=True)]
    held = [(number, domain, shares) for number, (domain, shares) in enumerate(found) if len(shares) > 1]
    levels = []
    for number, domain, shares in held:
        beside = {
            name: share_of(other, np.arange(len(other)))
            for name, scores in subject.others_scores.items()
            if len(other := _shares(domain, scores[number])) > 1
        }
        levels.append(Level(domain.name, share_of(shares, np.arange(len(shares)), tests=len(held)), beside))
    levels = [level for level in levels if known(level.value)]
    if not levels:
        yield skipped(PROBE, f"no two prompts have an image that was judged better than {N - 1} others")
        return
    worst = min(levels, key=lambda level: level.value.mean)
    status: Status = "fail" if worst.value.low <= CHANCE else "warn" if worst.value.mean < LITTLE else "pass"
    said = {"fail": "no better than chance", "warn": "little better than chance", "pass": "better than chance"}[status]
    yield Result(PROBE, status, f"{worst.name}: {told(worst.value)}, {said}", worst.value, levels)


def _shares(domain: Domain, scores: Floats) -> Floats:
    """[P] share of each prompt's sets of which the reward takes the best; prompts without a set are left out."""
    beaten = _beaten(domain, scores)
    got: dict[int, float] = {}
    sets: dict[int, int] = {}
    for row, others in beaten.items():
        group = int(domain.groups[row])
        taken, count = chances(float(scores[row]), scores[others])
        got[group], sets[group] = got.get(group, 0.0) + taken, sets.get(group, 0) + count
    return np.array([got[group] / count for group, count in sets.items() if count])


def _beaten(domain: Domain, scores: Floats) -> dict[int, list[int]]:
    """Row -> rows of the images that it was judged better than, by the sum of what was said of the two."""
    table, rows = judged(domain, scores), judged_rows(domain, scores)
    net: dict[tuple[int, int], float] = {}
    for (first, second), lead in zip(rows.tolist(), table.decided * (2 * table.label - 1), strict=True):
        net[first, second] = net.get((first, second), 0.0) + float(lead)
    found: dict[int, set[int]] = {}
    for first, second in net:
        lead = net[first, second] - net.get((second, first), 0.0)
        if lead:
            better, worse = (first, second) if lead > 0 else (second, first)
            found.setdefault(better, set()).add(worse)
    return {row: sorted(others) for row, others in found.items()}


def chances(score: float, others: Any) -> tuple[float, int]:
    """How often a score is the highest of all sets of itself and three others, shared among equals; and the sets.

    sum_j C(E, j) C(L, 3 - j) / (1 + j), where L of the others are lower and E are equal.

    >>> chances(1.0, [0.0, 0.0, 1.0, 2.0])
    (0.5, 4)
    """
    rivals, rest = np.asarray(others), N - 1
    lower, equal = int((rivals < score).sum()), int((rivals == score).sum())
    taken = sum(math.comb(equal, j) * math.comb(lower, rest - j) / (1 + j) for j in range(rest + 1))
    return float(taken), math.comb(len(rivals), rest)

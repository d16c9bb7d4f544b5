"""Agreement: whether a reward ranks the images of a prompt as it did before, as other rewards do, and as the truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rwk.calibration.kendall import tau_b
from rwk.calibration.pairs import Floats
from rwk.calibration.probe import Level, Probe, Result, Status, Subject, known, mean_of, skipped, told
from rwk.calibration.retest import retested, whole_prompts
from rwk.calibration.statistics import Interval

STEADY, SHAKY = 0.9, 0.7

RETEST = Probe(
    "structure.test_retest",
    "Kendall's tau-b between the ranks that the reward gives the images of a prompt before and after an edit that "
    "changes nothing, at the edit where it is lowest: no other reward can agree with it better. Of each edit also the "
    "noise, in the reward's unit: the deviation of a score that it causes, less what is common to a prompt.",
    f"Fails where the interval lies below {SHAKY}, warns where it lies below {STEADY}.",
    "tau-b",
    version=2,
)
AGREEMENT = Probe(
    "structure.agreement",
    "Kendall's tau-b between the ranks that the reward and another give the images of a prompt in the first domain, "
    "with the reward or the gold that it agrees best with.",
    "Fails where even that interval, after Bonferroni, does not lie above 0.",
    "tau-b",
)


def agreement(subject: Subject) -> Iterator[Result]:
    """Agreement with itself, and with the other rewards and gold."""
    yield _retest(subject)
    yield _agreement(subject)


def rank_agreement(first: Floats, second: Floats, groups: Any) -> tuple[Floats, Any]:
    """[P] tau-b within each prompt in which both tell images apart, and [P] the prompts' numbers.

    Args:
        first: [N] scores by one reward.
        second: [N] by another.
        groups: [N] numbers of the prompts.
    """
    found, held = [], []
    for group in np.unique(groups):
        rows = (groups == group) & np.isfinite(first) & np.isfinite(second)
        if len(np.unique(first[rows])) > 1 and len(np.unique(second[rows])) > 1:
            found.append(tau_b(first[rows], second[rows]))
            held.append(group)
    return np.array(found), np.array(held)


def noise(first: Floats, second: Floats, groups: Any) -> Interval:
    """The deviation of one score that two measurements [N] of the same images tell, in their unit, over prompts.

    What moves all images of a prompt alike is none: it changes no group.
    """
    numbers = np.unique(groups)
    apart = [(second - first)[groups == number] for number in numbers]
    squares = np.array([part.var(ddof=1) / 2 if len(part) > 1 else np.nan for part in apart])
    found = mean_of(squares, numbers)
    mean, low, high = (math.sqrt(max(value, 0.0)) for value in found[:3])
    return found._replace(mean=mean, low=low, high=high)


def _bounded(tau: Interval) -> Interval:
    return tau._replace(low=max(tau.low, -1.0), high=min(tau.high, 1.0)) if known(tau) else tau


def _retest(subject: Subject) -> Result:
    domain = subject.domains[0]
    rows = whole_prompts(domain.groups, np.isfinite(subject.scores[0]), subject.sizes.edited)
    levels = []
    for name, scores in retested(subject, 0, rows).items():
        before, groups = subject.scores[0][rows], domain.groups[rows]
        value = _bounded(mean_of(*rank_agreement(before, scores, groups)))
        if known(value):
            levels.append(Level(name, value, {"noise": noise(before, scores, groups)}))
    if not levels:
        return skipped(RETEST, "needs two prompts with two images each that score unlike")
    worst = min(levels, key=lambda level: level.value.mean)
    value = worst.value
    status: Status = "fail" if value.high < SHAKY else "warn" if value.high < STEADY else "pass"
    return Result(RETEST, status, f"{worst.name}: {told(value)}", value, levels)


def _agreement(subject: Subject) -> Result:
    ranked = _rankings(subject)
    own, *others = ranked
    if not others:
        return skipped(AGREEMENT, "no other reward was named and gold is not known")
    groups = subject.domains[0].groups
    levels = []
    for one, other in itertools.combinations(ranked, 2):
        value = _bounded(mean_of(*rank_agreement(ranked[one], ranked[other], groups), tests=len(others)))
        if known(value):
            levels.append(Level(f"{one} and {other}", value))
    mine = [level for level in levels if level.name.startswith(f"{own} and ")]
    if not mine:
        return skipped(AGREEMENT, "needs two prompts with two images each that score unlike")
    best = max(mine, key=lambda level: level.value.mean)
    status: Status = "pass" if best.value.low > 0 else "fail"
    return Result(AGREEMENT, status, f"{best.name}: {told(best.value)}", best.value, levels)


def _rankings(subject: Subject) -> Mapping[str, Floats]:
    """[N] of the first domain by who ranks: the reward first, the other rewards, gold."""
    found = {subject.reward.spec.name: subject.scores[0]}
    found |= {name: scores[0] for name, scores in subject.others_scores.items()}
    gold = subject.domains[0].gold
    if gold is not None and not np.isnan(gold).all():
        found["gold"] = gold
    return found

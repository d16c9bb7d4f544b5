"""Optimisation: what best-of-n selection by the reward gains in truth, and whether its scores tell images apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rwk.calibration.best_of_n import best_of_n
from rwk.calibration.pairs import Floats
from rwk.calibration.probe import (
    FLOOR,
    Domain,
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
from rwk.calibration.statistics import Interval, bootstrap_interval

N = 4
"""Best of how many the normalised gain is of."""
CURVE = (1, 2, 4, 8, 16, 32, 64)
HALF = 0.5
SHARE = 0.3
"""Share of groups below the noise floor from which on it is worth a warning."""

_ETA = "gold of the best of 4 by the reward, less the mean, over the same for the best of 4 by gold"
_GATE = "Fails where the interval reaches 0: selecting gains nothing in truth; warns below 0.25."
ETA_IN = Probe("optimisation.eta_in_domain", f"Normalised gain: {_ETA}.", _GATE, "share of the gain by gold")
ETA_OUT = Probe(
    "optimisation.eta_out_of_domain",
    "The lowest normalised gain of best of 4 over the other domains.",
    _GATE,
    "share of the gain by gold",
)
RETENTION = Probe(
    "optimisation.retention",
    "Normalised gain of best of 4 in the worst other domain over the one in domain.",
    f"Warns where the interval lies below {HALF}, fails where it lies below 0.",
    "ratio",
)
TURN = Probe(
    "optimisation.over_optimisation",
    "Gold of the best of all images by the reward, less the most gold at any smaller n.",
    "Fails where the interval, after Bonferroni over the domains, lies below 0 by more than a tenth of the gain.",
    "gold",
)
SPREAD = Probe(
    "optimisation.spread",
    f"Share of the prompts whose scores spread less than the noise floor, {FLOOR} of the scale.",
    f"Warns where the interval lies above {SHARE}, fails where no prompt's scores differ.",
    "share of prompts",
)


def optimisation(subject: Subject) -> Iterator[Result]:
    """Normalised best-of-4 gain in and out of domain, the turn of the curve, and the spread within a prompt."""
    held = [
        (domain, groups)
        for domain, scores in zip(subject.domains, subject.scores, strict=True)
        if (groups := gold_groups(domain, scores))
    ]
    inside = [one for one in held if one[0] is subject.domains[0]]
    outside = [one for one in held if one[0] is not subject.domains[0]]
    without = f"gold is not known for {N} images or more of a prompt"
    yield _eta(ETA_IN, subject, inside, without)
    yield _eta(ETA_OUT, subject, outside, f"there is no other domain where {without[8:]}" if not outside else without)
    yield _retention(subject, inside, outside)
    yield _turn(subject, held, without)
    yield _spread(subject)


Groups = list[tuple[Floats, Floats]]


def gold_groups(domain: Domain, scores: Floats) -> Groups:
    """Scores and gold of each prompt with enough images of which both are known."""
    if domain.gold is None:
        return []
    found = []
    for group in range(int(domain.groups.max(initial=-1)) + 1):
        rows = (domain.groups == group) & np.isfinite(scores) & np.isfinite(domain.gold)
        if rows.sum() >= N:
            found.append((scores[rows], domain.gold[rows]))
    return found


def _gains(groups: Groups) -> tuple[Floats, Floats]:
    """[P] gain of best of 4 by the reward, and by gold, over the mean of each prompt."""
    mean = np.array([gold.mean() for _, gold in groups])
    by_reward = np.array([best_of_n(scores, gold, N)[0] for scores, gold in groups])
    by_gold = np.array([best_of_n(gold, gold, N)[0] for _, gold in groups])
    return by_reward - mean, by_gold - mean


def _ratio(above: Floats, below: Floats) -> float:
    total = float(below.sum())
    return float(above.sum()) / total if total > 0 else math.nan


def _eta_of(groups: Groups, subject: Subject) -> Interval:
    gained, possible = _gains(groups)
    if not possible.sum() > 0:
        return Interval(math.nan, math.nan, math.nan, len(groups))
    return bootstrap_interval(
        lambda w: _ratio(w * gained, w * possible), np.arange(len(groups)), draws=subject.sizes.draws, seed=subject.seed
    )


def gold_curve(groups: Groups) -> tuple[list[int], Floats, Floats]:
    """The n's that all prompts have images for, and reward and gold [P, K] of the best of n by the reward."""
    most = min(len(scores) for scores, _ in groups)
    ns = sorted({n for n in CURVE if n <= most} | {most})
    proxy = np.array([[best_of_n(s, s, n)[0] for n in ns] for s, _ in groups])
    gold = np.array([[best_of_n(s, g, n)[0] for n in ns] for s, g in groups])
    return ns, proxy, gold


def _eta(probe: Probe, subject: Subject, held: list[tuple[Domain, Groups]], without: str) -> Result:
    values = [(domain.name, _eta_of(groups, subject), groups) for domain, groups in held]
    values = [one for one in values if known(one[1])]
    if not values:
        return skipped(probe, without)
    name, value, _ = min(values, key=lambda one: one[1].mean)
    levels = [Level(f"{domain}, best of {N}", eta) for domain, eta, _ in values]
    for domain, _, groups in values:
        ns, proxy, gold = gold_curve(groups)
        rows = np.arange(len(groups))
        oracle = np.array([[best_of_n(g, g, n)[0] for n in ns] for _, g in groups])
        for k, n in enumerate(ns):
            more = {"reward": mean_of(proxy[:, k], rows), "best by gold": mean_of(oracle[:, k], rows)}
            levels.append(Level(f"{domain}, gold at n = {n}", mean_of(gold[:, k], rows), more))
    status: Status = "fail" if value.low <= 0 else "warn" if value.mean < 0.25 else "pass"
    end = ", so selecting by it may gain nothing" if status == "fail" else ""
    return Result(probe, status, f"{name}: {told(value)}{end}", value, levels)


def _retention(subject: Subject, inside: list[tuple[Domain, Groups]], outside: list[tuple[Domain, Groups]]) -> Result:
    if not inside or not outside or _eta_of(inside[0][1], subject).low <= 0:
        return skipped(RETENTION, "needs a gain in domain that is above 0, and another domain with gold")
    levels = []
    own = _gains(inside[0][1])
    for domain, groups in outside:
        other = _gains(groups)
        split = len(own[0])
        count = split + len(other[0])

        def statistic(w: Floats, other: tuple[Floats, Floats] = other, split: int = split) -> float:
            there = _ratio(w[split:] * other[0], w[split:] * other[1])
            here = _ratio(w[:split] * own[0], w[:split] * own[1])
            return there / here if here else math.nan

        value = bootstrap_interval(statistic, np.arange(count), draws=subject.sizes.draws, seed=subject.seed)
        levels.append(Level(domain.name, value))
    levels = [level for level in levels if known(level.value)]
    if not levels:
        return skipped(RETENTION, "gold does not vary in the other domains")
    worst = min(levels, key=lambda level: level.value.mean)
    status: Status = "fail" if worst.value.high < 0 else "warn" if worst.value.high < HALF else "pass"
    return Result(RETENTION, status, f"{worst.name}: {told(worst.value)} of the gain is kept", worst.value, levels)


def _turn(subject: Subject, held: list[tuple[Domain, Groups]], without: str) -> Result:
    levels = []
    for domain, groups in held:
        ns, _, gold = gold_curve(groups)
        top = int(gold[:, :-1].mean(0).argmax())
        oracle = _gains(groups)[1].mean()
        drop = mean_of(gold[:, -1] - gold[:, top], np.arange(len(groups)), tests=len(held))
        if known(drop):
            floor = Interval(-0.1 * float(oracle), -0.1 * float(oracle), -0.1 * float(oracle), drop.clusters)
            levels.append(Level(f"{domain.name}, n = {ns[-1]} against {ns[top]}", drop, {"allowed": floor}))
    if not levels:
        return skipped(TURN, without)
    worst = min(levels, key=lambda level: level.value.mean)
    failed = worst.value.high < worst.measures["allowed"].mean
    end = "selecting harder makes images worse" if failed else "no turn is seen"
    return Result(TURN, "fail" if failed else "pass", f"{worst.name}: {told(worst.value)}, {end}", worst.value, levels)


def _spread(subject: Subject) -> Result:
    levels: list[Level] = []
    finding: list[Finding] = []
    for domain, scores in zip(subject.domains, subject.scores, strict=True):
        rows = [np.flatnonzero((domain.groups == g) & np.isfinite(scores)) for g in np.unique(domain.groups)]
        rows = [held for held in rows if len(held) > 1]
        if len(rows) < 2:
            continue
        sd = np.array([scores[held].std(ddof=1) for held in rows])
        clusters = np.arange(len(rows))
        scale = subject.scale.value
        below = np.ones(len(rows)) if math.isnan(scale) else (sd < FLOOR * scale).astype(np.float64)
        measures = {"sd within a prompt": mean_of(sd, clusters), "intraclass correlation": _icc(subject, scores, rows)}
        levels.append(Level(domain.name, share_of(below, clusters), {k: v for k, v in measures.items() if known(v)}))
        if not finding:
            held = rows[int(sd.argmin())][:2].tolist()
            finding = [
                Finding(
                    domain.images[held[0]],
                    domain.images[held[1]],
                    domain.prompts[held[0]],
                    domain.prompts[held[0]],
                    float(scores[held[0]]),
                    float(scores[held[1]]),
                    "two images of the prompt whose scores differ least",
                )
            ]
    if not levels:
        return skipped(SPREAD, "no two prompts have two images each")
    worst = max(levels, key=lambda level: level.value.mean)
    status: Status = "fail" if math.isnan(subject.scale.value) else "warn" if worst.value.low > SHARE else "pass"
    reason = f"{worst.name}: {told(worst.value)} of the prompts are below the floor"
    if status == "fail":
        reason = "it gives all images of a prompt the same score"
    return Result(SPREAD, status, reason, worst.value, levels, () if status == "pass" else finding)


def _icc(subject: Subject, scores: Floats, rows: Sequence[Any]) -> Interval:
    """Share of the variance of scores that lies between prompts, from a one-way analysis of variance."""
    size = np.array([len(held) for held in rows], dtype=np.float64)
    mean = np.array([scores[held].mean() for held in rows])
    inner = np.array([((scores[held] - m) ** 2).sum() for held, m in zip(rows, mean, strict=True)])

    def statistic(w: Floats) -> float:
        count, total = w.sum(), (w * size).sum()
        if (w > 0).sum() < 2 or total <= count:
            return math.nan
        grand = (w * size * mean).sum() / total
        between = (w * size * (mean - grand) ** 2).sum() / (count - 1)
        within = (w * inner).sum() / (total - count)
        effective = (total - (w * size**2).sum() / total) / (count - 1)
        bottom = between + (effective - 1) * within
        return float((between - within) / bottom) if bottom > 0 else math.nan

    if math.isnan(statistic(np.ones(len(rows)))):
        return Interval(math.nan, math.nan, math.nan, len(rows))
    return bootstrap_interval(statistic, np.arange(len(rows)), draws=subject.sizes.draws, seed=subject.seed)

"""Uncertainty: whether anything that can be known without a judgement tells where the reward is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rwk.calibration.conformal import ConformalPairs
from rwk.calibration.embedding import NEIGHBOURS, Embedding, embedded, mahalanobis, neighbour_distance
from rwk.calibration.metrics import hits
from rwk.calibration.pairs import Floats, Strings
from rwk.calibration.probe import NONE, Level, Probe, Result, Status, Subject, known, share_of, skipped, told
from rwk.calibration.retest import spread
from rwk.calibration.statistics import Interval, bootstrap_interval
from rwk.calibration.temperature import Temperature

COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the least uncertain pairs whose errors are counted."""
ALPHA, SLACK, ROUNDS = 0.1, 0.1, 10
LEAST_PAIRS = 40

ERROR = Probe(
    "uncertainty.error",
    "Area under the ROC curve of an uncertainty for pairs that the reward orders wrongly, all domains together, for "
    "the best of them: a small margin, a score that harmless edits move, rewards that disagree, and images whose "
    "features lie far from those of the half of the first domain's prompts that is left out here.",
    "Fails where even its interval, after Bonferroni, does not lie above 0.5: nothing tells where the reward is wrong.",
    "area under the curve",
)
CONFORMAL = Probe(
    "uncertainty.conformal",
    f"Share of the pairs of another domain whose better image is in a set that was made to hold it in {1 - ALPHA:.0%} "
    "of the first domain's prompts, in the worst domain.",
    f"Fails where the interval, after Bonferroni, lies below {1 - ALPHA - SLACK:.0%}, warns where it lies below "
    f"{1 - ALPHA:.0%}.",
    "share of pairs",
)


class Pooled(NamedTuple):
    """Pairs of all domains with a majority."""

    wrong: Floats
    """[K] 1 where the reward orders a pair against the majority, half where its scores are equal."""
    margin: Floats
    """[K]"""
    prompt: Strings
    """[K] prompt and domain."""
    kept: Sequence[Any]
    """For each domain, [its pairs] bool: which have a majority and do not belong to the features' cloud."""


def uncertainty(subject: Subject) -> Iterator[Result]:
    """Whether errors can be told, and whether sets that should hold the better image do out of domain."""
    yield _error(subject)
    yield _conformal(subject)


def _error(subject: Subject) -> Result:
    pooled = _pooled(subject)
    if len(pooled.wrong) < LEAST_PAIRS or not 0 < pooled.wrong.mean() < 1:
        return skipped(ERROR, f"needs {LEAST_PAIRS} pairs with a known preference, some of them ordered wrongly")
    found = _uncertainties(subject, pooled)
    levels = []
    for name, values in found.items():
        area = _area(values, pooled, len(found), subject)
        if known(area):
            risks = {f"error at {part:.0%}": _risk(values, pooled, part) for part in COVERAGES}
            levels.append(Level(name, area, {key: risk for key, risk in risks.items() if known(risk)}))
    if not levels:
        return skipped(ERROR, "no uncertainty differs between pairs of two prompts")
    best = max(levels, key=lambda level: level.value.mean)
    status: Status = "pass" if best.value.low > 0.5 else "fail"
    said = "tells where it is wrong best" if status == "pass" else "is the best, and no better than chance"
    half = best.measures.get("error at 50%")
    told_half = f"; {half.mean:.0%} wrong in the surest half, {pooled.wrong.mean():.0%} in all" if half else ""
    return Result(ERROR, status, f"{best.name} {said}: {told(best.value)}{told_half}", best.value, levels)


def _pooled(subject: Subject) -> Pooled:
    wrong, margin, prompt, kept = [], [], [], []
    for number, (domain, table) in enumerate(zip(subject.domains, subject.pairs, strict=True)):
        miss = 1 - hits((np.sign(table.margin) + 1) / 2, table.label)
        held = ~np.isnan(miss) & (table.decided > 0)
        if number == 0:
            held &= ~np.isin(table.prompt, _cloud_prompts(subject))
        wrong.append(miss[held])
        margin.append(table.margin[held])
        prompt.append(np.array([f"{domain.name}: {text}" for text in table.prompt[held]], dtype=np.str_))
        kept.append(held)
    return Pooled(np.concatenate(wrong), np.concatenate(margin), np.concatenate(prompt), kept)


def _cloud_prompts(subject: Subject) -> list[str]:
    """Half of the first domain's prompts, where features are known: what the distances are measured from."""
    if not isinstance(subject.reward, Embedding):
        return []
    held = sorted(set(subject.domains[0].prompts))
    order = np.random.default_rng(subject.seed).permutation(len(held))
    return [held[place] for place in order[: len(held) // 2]]


def _uncertainties(subject: Subject, pooled: Pooled) -> Mapping[str, Floats]:
    """Name -> [K] of the pooled pairs, larger where less is sure."""
    found = {"a small margin": -np.abs(pooled.margin)}
    shaken = [spread(subject, number) for number in range(len(subject.domains))]
    moved = _of_pairs(subject, pooled, shaken)
    found["test and retest"] = np.where(moved > 0, moved / np.maximum(np.abs(pooled.margin), 1e-12), moved)
    if subject.others:
        found["rewards that disagree"] = _disagreement(subject, pooled)
    if isinstance(subject.reward, Embedding):
        features = [_features(subject, subject.reward, number) for number in range(len(subject.domains))]
        inside = np.isin(np.asarray(subject.domains[0].prompts), _cloud_prompts(subject))
        cloud = features[0][inside & np.isfinite(features[0]).all(1)]
        kinds = {"Mahalanobis distance": mahalanobis, "distance to neighbours": neighbour_distance}
        for name, distance in kinds.items() if len(cloud) > NEIGHBOURS else ():
            found[name] = _of_pairs(subject, pooled, [_distances(distance, cloud, one) for one in features])
    return found


def _features(subject: Subject, reward: Embedding, number: int) -> Floats:
    """[N, D] of a domain's images, NaN for those without a score."""
    domain, good = subject.domains[number], np.flatnonzero(np.isfinite(subject.scores[number])).tolist()
    made = embedded(reward, [domain.images[row] for row in good], batch_size=subject.batch_size)
    found = np.full((len(domain.images), made.shape[1]), np.nan)
    found[good] = made
    return found


def _distances(distance: Callable[[Floats, Floats], Floats], cloud: Floats, features: Floats) -> Floats:
    found = np.full(len(features), np.nan)
    good = np.isfinite(features).all(1)
    found[good] = distance(cloud, features[good])
    return found


def _of_pairs(subject: Subject, pooled: Pooled, values: Sequence[Floats]) -> Floats:
    """[K] root of the sum of squares of what the two images of each pooled pair have."""
    parts = []
    for rows, held, of in zip(subject.rows, pooled.kept, values, strict=True):
        parts.append(np.sqrt((of[rows[held]] ** 2).sum(1)))
    return np.concatenate(parts)


def _disagreement(subject: Subject, pooled: Pooled) -> Floats:
    """[K] standard deviation over all rewards of the margins, each in its own standard deviations."""
    every = [subject.scores, *subject.others_scores.values()]
    margins = []
    for scores in every:
        parts = []
        for rows, held, of in zip(subject.rows, pooled.kept, scores, strict=True):
            first, second = of[rows[held]].T
            parts.append(first - second)
        joined = np.concatenate(parts)
        margins.append(joined / max(float(np.sqrt(np.nanmean(joined**2))), 1e-12))
    found: Floats = np.stack(margins).std(0, ddof=1)
    return found


def _area(values: Floats, pooled: Pooled, tests: int, subject: Subject) -> Interval:
    """Area under the curve of values [K] for wrong pairs, ties of either counting half."""
    held = np.isfinite(values)
    if held.sum() < LEAST_PAIRS or len(np.unique(values[held])) < 2 or len(np.unique(pooled.prompt[held])) < 2:
        return NONE
    order = np.argsort(values[held], kind="stable")
    sorted_values, wrong, prompt = values[held][order], pooled.wrong[held][order], pooled.prompt[held][order]
    group = np.cumsum(np.diff(sorted_values, prepend=sorted_values[:1]) > 0)

    def statistic(weight: Floats) -> float:
        bad, good = np.bincount(group, weight * wrong), np.bincount(group, weight * (1 - wrong))
        below = np.cumsum(good) - good / 2
        total = bad.sum() * good.sum()
        return float((bad * below).sum() / total) if total > 0 else math.nan

    return bootstrap_interval(statistic, prompt, draws=subject.sizes.draws, seed=subject.seed, level=1 - 0.05 / tests)


def _risk(values: Floats, pooled: Pooled, part: float) -> Interval:
    """Share of errors among the part of the pairs that is least uncertain."""
    held = np.flatnonzero(np.isfinite(values))
    taken = held[np.argsort(values[held], kind="stable")][: max(1, round(part * len(held)))]
    return share_of(pooled.wrong[taken], pooled.prompt[taken])


def _conformal(subject: Subject) -> Result:
    first = subject.pairs[0]
    needed = 2 * math.ceil((1 - ALPHA) / ALPHA)  # so many, in halves, let a set leave an image out
    if first.prompts < needed or not first.decided.sum() > 0:
        return skipped(CONFORMAL, f"needs pairs of {needed} prompts in the first domain")
    others = []
    for domain, table in zip(subject.domains[1:], subject.pairs[1:], strict=True):
        kept = table.take((table.tie == 0) & (table.label != 0.5))  # a set of two images knows no tie
        if kept.prompts > 1:
            others.append((domain.name, kept))
    if not others:
        return skipped(CONFORMAL, "there is no other domain with pairs")
    covered: dict[str, list[Floats]] = {name: [] for name, _ in others}
    alone: dict[str, list[Floats]] = {name: [] for name, _ in others}
    for round_ in range(ROUNDS):
        fitted, rest = first.split(held_out=0.5, seed=subject.seed + round_)
        sets = ConformalPairs(base=Temperature().fit(fitted), alpha=ALPHA, seed=subject.seed + round_).fit(rest)
        for name, table in others:
            hit, single = sets.coverage(table)
            covered[name].append(hit)
            alone[name].append(single)
    levels = []
    for name, table in others:
        share = share_of(np.mean(covered[name], 0), table.prompt, tests=len(others))
        levels.append(Level(name, share, {"one image alone": share_of(np.mean(alone[name], 0), table.prompt)}))
    worst = min(levels, key=lambda level: level.value.mean)
    most = worst.value.high
    status: Status = "fail" if most < 1 - ALPHA - SLACK else "warn" if most < 1 - ALPHA else "pass"
    lone = worst.measures["one image alone"].mean
    reason = f"{worst.name}: {told(worst.value)} hold the better image, {lone:.0%} name one alone"
    return Result(CONFORMAL, status, reason, worst.value, levels)

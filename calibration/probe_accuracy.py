"""Accuracy: whether the reward agrees with preferences in its own domain, in others, and in every slice."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from rwk.calibration.calibrate import temperature_interval
from rwk.calibration.calibrator import sigmoid
from rwk.calibration.judged import judged
from rwk.calibration.metrics import hits, losses
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.probe import (
    NONE,
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
from rwk.calibration.probe_calibration import calibrated
from rwk.calibration.probe_information import information
from rwk.calibration.statistics import Interval, bootstrap_draws, max_t
from rwk.calibration.temperature import fit

LEAST_PAIRS, LEAST_PROMPTS = 20, 4
"""Of a slice that is looked at."""
DRIFT = 0.4
"""Distance of the logarithms of two temperatures from which on one cannot stand for the other."""

_GATE = "Fails where the interval reaches 0.5, which is chance; warns above it where accuracy is below 0.6."
IN = Probe("accuracy.in_domain", "Share of pairs of one prompt that the reward orders as they were judged.", _GATE, "")
OUT = Probe("accuracy.out_of_domain", "The lowest accuracy over the other domains.", _GATE, "")
SLICES = Probe(
    "accuracy.slices",
    "The lowest accuracy over the slices of all domains that hold enough pairs.",
    "Fails where a slice is below the rest of its domain and no better than chance, by intervals that cover all slices "
    "at once (max-T over the same draws of prompts; where no pair of a slice is wrong, Bonferroni).",
    "",
)
SHIFT = Probe(
    "accuracy.temperature_shift",
    "Logarithm of the temperature out of domain over the one in domain, where it is largest either way.",
    f"Warns where it is further than {DRIFT} from 0 and its interval excludes 0.",
    "log ratio",
)


def accuracy(subject: Subject) -> Iterator[Result]:
    """Accuracy in and out of domain and by slice, what margins tell, how far the temperature moves, and its odds."""
    names = [domain.name for domain in subject.domains]
    levels = [
        Level(name, _accuracy(table), _of_others(subject, number))
        for number, (name, table) in enumerate(zip(names, subject.pairs, strict=True))
    ]
    yield _gated(IN, levels[:1], "has no pairs of known preference")
    yield _gated(OUT, [level for level in levels[1:] if level.value.clusters], "there is no other domain with pairs")
    yield information(subject)
    yield _slices(subject)
    yield _shift(subject)
    yield calibrated(subject)


def _hits(table: PairTable) -> Floats:
    return hits((np.sign(table.margin) + 1) / 2, table.label)


def _accuracy(table: PairTable, *, tests: int = 1) -> Interval:
    return share_of(_hits(table), table.prompt, tests=tests) if len(table) else NONE


def _of_others(subject: Subject, number: int) -> dict[str, Interval]:
    """The accuracy of the other rewards in a domain, by name."""
    domain = subject.domains[number]
    found = {name: _accuracy(judged(domain, scores[number])) for name, scores in subject.others_scores.items()}
    return {name: value for name, value in found.items() if known(value)}


def _gated(probe: Probe, levels: list[Level], without: str) -> Result:
    held = [level for level in levels if known(level.value)]
    if not held:
        return skipped(probe, without)
    worst = min(held, key=lambda level: level.value.mean)
    value = worst.value
    status: Status = "fail" if value.low <= 0.5 else "warn" if value.mean < 0.6 else "pass"
    said = {"fail": "no better than chance", "warn": "little better than chance", "pass": "better than chance"}[status]
    return Result(probe, status, f"{worst.name}: {told(value)}, {said}", value, held)


def _slices(subject: Subject) -> Result:
    found: list[tuple[str, PairTable, PairTable]] = []
    for domain, table in zip(subject.domains, subject.pairs, strict=True):
        for by, values in table.slices.items():
            for value in np.unique(values):
                part, rest = table.take(values == value), table.take(values != value)
                if len(part) >= LEAST_PAIRS and part.prompts >= LEAST_PROMPTS and rest.prompts >= LEAST_PROMPTS:
                    found.append((f"{domain.name}, {by} {value}", part, rest))
    if not found:
        return skipped(SLICES, f"no slice holds {LEAST_PAIRS} pairs of {LEAST_PROMPTS} prompts")
    levels, failed = [], []
    lows, highs = _simultaneous(found, subject)
    for (name, part, rest), (low, other_low), (high, other_high) in zip(found, lows, highs, strict=True):
        value, others = (
            _accuracy(side)._replace(low=float(least), high=float(most))
            for side, least, most in ((part, low, high), (rest, other_low, other_high))
        )
        temperature = temperature_interval(*fit(part), part.prompts)
        measures = {"rest": others} | ({"temperature": temperature} if known(temperature) else {})
        levels.append(Level(name, value, measures))
        if value.low <= 0.5 and value.high < others.mean and others.low > 0.5:
            failed.append(levels[-1])
    worst = min(failed or levels, key=lambda level: level.value.mean)
    if failed:
        others = worst.measures["rest"]
        reason = f"{worst.name}: {told(worst.value)}, the rest {told(others)}"
        return Result(SLICES, "fail", reason, worst.value, levels)
    return Result(SLICES, "pass", f"lowest in {worst.name}: {told(worst.value)}", worst.value, levels)


def _simultaneous(found: list[tuple[str, PairTable, PairTable]], subject: Subject) -> tuple[Floats, Floats]:
    """[S, 2] lower and [S, 2] upper bounds of the accuracy of every slice and of its rest, covering all at once."""
    sides = [(name.partition(", ")[0], table) for name, *both in found for table in both]
    prompts = sorted({f"{domain}: {text}" for domain, table in sides for text in table.prompt})
    place = {text: k for k, text in enumerate(prompts)}
    right, count = np.zeros((2, len(prompts), len(sides)))
    for k, (domain, table) in enumerate(sides):
        rows = [place[f"{domain}: {text}"] for text in table.prompt]
        hit = _hits(table)
        np.add.at(right[:, k], rows, np.nan_to_num(hit))
        np.add.at(count[:, k], rows, ~np.isnan(hit))
    each = [_accuracy(table, tests=len(sides)) for _, table in sides]
    low, high = (np.array([getattr(value, name) for value in each]) for name in ("low", "high"))
    value = right.sum(0) / count.sum(0)

    def accuracies(weight: Floats) -> Floats:
        drawn = weight @ count
        return np.where(drawn > 0, weight @ right / np.maximum(drawn, 1), value)

    draws = bootstrap_draws(accuracies, np.arange(len(prompts)), draws=subject.sizes.draws, seed=subject.seed)
    vary = draws.std(0) > 0
    if vary.any():
        joint = max_t(value[vary], draws[:, vary])
        low[vary], high[vary] = np.maximum(joint.low, 0), np.minimum(joint.high, 1)
    return low.reshape(-1, 2), high.reshape(-1, 2)


def _shift(subject: Subject) -> Result:
    from scipy.stats import t

    fits = [
        fit(table) if table.prompts > 1 and table.decided.sum() > 0 else (math.inf, math.nan) for table in subject.pairs
    ]
    base, error = fits[0]
    levels = []
    for domain, table, (value, other) in zip(subject.domains[1:], subject.pairs[1:], fits[1:], strict=True):
        spread = math.hypot(error, other)
        if base > 0 and value > 0 and math.isfinite(spread) and spread < 2:
            ratio, count = math.log(value / base), min(table.prompts, subject.pairs[0].prompts)
            reach = float(t.ppf(0.975, count - 1)) * spread
            levels.append(
                Level(domain.name, Interval(ratio, ratio - reach, ratio + reach, count), _reuse(table, base, value))
            )
    if not levels:
        return skipped(SHIFT, "there are not two domains in which a temperature can be fitted")
    worst = max(levels, key=lambda level: abs(level.value.mean))
    far = abs(worst.value.mean) > DRIFT and not worst.value.low <= 0 <= worst.value.high
    said = "over-confident there" if worst.value.mean > 0 else "under-confident there"
    reason = f"{worst.name}: {told(worst.value)}" + (f", {said}" if far else "")
    return Result(SHIFT, "warn" if far else "pass", reason, worst.value, levels)


def _reuse(table: PairTable, base: float, own: float) -> dict[str, Interval]:
    """Nats a pair that the first domain's temperature loses against that of these pairs themselves."""
    kept = table.take(table.decided > 0)
    lost = losses(sigmoid(kept.margin / base), kept.label) - losses(sigmoid(kept.margin / own), kept.label)
    value = mean_of(np.where(np.isfinite(lost), lost, math.nan), kept.prompt)
    return {"nats lost with the temperature in domain": value} if known(value) else {}

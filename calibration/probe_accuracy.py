"""Accuracy: whether the reward agrees with preferences in its own domain, in others, and in every slice."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from rwk.calibration.metrics import hits
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.probe import (
    NONE,
    Level,
    Probe,
    Result,
    Status,
    Subject,
    known,
    share_of,
    skipped,
    told,
)
from rwk.calibration.probe_information import information
from rwk.calibration.statistics import Interval
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
    "Fails where a slice is below the rest of its domain and its interval reaches 0.5, both after Bonferroni.",
    "",
)
SHIFT = Probe(
    "accuracy.temperature_shift",
    "Logarithm of the temperature out of domain over the one in domain, where it is largest either way.",
    f"Warns where it is further than {DRIFT} from 0 and its interval excludes 0.",
    "log ratio",
)


def accuracy(subject: Subject) -> Iterator[Result]:
    """Accuracy in and out of domain and by slice, what margins tell, and how far the temperature moves."""
    names = [domain.name for domain in subject.domains]
    levels = [Level(name, _accuracy(table)) for name, table in zip(names, subject.pairs, strict=True)]
    yield _gated(IN, levels[:1], "has no pairs of known preference")
    yield _gated(OUT, [level for level in levels[1:] if level.value.clusters], "there is no other domain with pairs")
    yield information(subject)
    yield _slices(subject)
    yield _shift(subject)


def _hits(table: PairTable) -> Floats:
    return hits((np.sign(table.margin) + 1) / 2, table.label)


def _accuracy(table: PairTable, *, tests: int = 1) -> Interval:
    return share_of(_hits(table), table.prompt, tests=tests) if len(table) else NONE


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
    for name, part, rest in found:
        value, others = (_accuracy(side, tests=2 * len(found)) for side in (part, rest))
        levels.append(Level(name, value, {"rest": others}))
        if value.low <= 0.5 and value.high < others.mean and others.low > 0.5:
            failed.append(levels[-1])
    worst = min(failed or levels, key=lambda level: level.value.mean)
    if failed:
        others = worst.measures["rest"]
        reason = f"{worst.name}: {told(worst.value)}, the rest {told(others)}"
        return Result(SLICES, "fail", reason, worst.value, levels)
    return Result(SLICES, "pass", f"lowest in {worst.name}: {told(worst.value)}", worst.value, levels)


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
            levels.append(Level(domain.name, Interval(ratio, ratio - reach, ratio + reach, count)))
    if not levels:
        return skipped(SHIFT, "there are not two domains in which a temperature can be fitted")
    worst = max(levels, key=lambda level: abs(level.value.mean))
    far = abs(worst.value.mean) > DRIFT and not worst.value.low <= 0 <= worst.value.high
    said = "over-confident there" if worst.value.mean > 0 else "under-confident there"
    reason = f"{worst.name}: {told(worst.value)}" + (f", {said}" if far else "")
    return Result(SHIFT, "warn" if far else "pass", reason, worst.value, levels)

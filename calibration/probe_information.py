"""Information: how much of a judgement a reward's margin tells, once a temperature makes it a probability."""

from __future__ import annotations

import math

import numpy as np

from rwk.calibration.calibrator import status_of
from rwk.calibration.evaluate import cross_fitted
from rwk.calibration.metrics import losses
from rwk.calibration.probe import Level, Probe, Result, Subject, known, skipped, told
from rwk.calibration.statistics import Interval, mean_interval
from rwk.calibration.temperature import Temperature

PROBE = Probe(
    "accuracy.information",
    "Bits of a judgement that a margin tells, 1 - NLL / ln 2, by a temperature that was fitted on other prompts.",
    "Fails where the margins are uninformative, which is to agree with the judgements in nothing that a temperature "
    "could scale, and where the interval reaches 0.",
    "bits",
)


def information(subject: Subject) -> Result:
    """The bits in each domain; the gate looks at the first."""
    levels = []
    for domain, table in zip(subject.domains, subject.pairs, strict=True):
        held = table.take(table.decided > 0)
        if held.prompts > 1:
            q = cross_fitted(Temperature(), held, seed=subject.seed)
            bits = 1 - losses(q, held.label) / math.log(2)
            value = mean_interval(bits, held.clusters, held.decided) if np.isfinite(bits).all() else _IMPOSSIBLE
            levels.append((domain.name, held, value))
    if not levels or levels[0][0] != subject.domains[0].name or not known(levels[0][2]):
        return skipped(PROBE, "has no pairs of known preference of two prompts, or one that it held to be impossible")
    _, table, value = levels[0]
    status = status_of(table)
    told_levels = [Level(name, of) for name, _, of in levels if known(of)]
    if status == "uninformative" or value.low <= 0:
        end = "uninformative" if status == "uninformative" else "which may be nothing"
        return Result(PROBE, "fail", f"{told(value)} bits, {end}", value, told_levels)
    return Result(PROBE, "pass", f"{told(value)} bits, its fit is {status}", value, told_levels)


_IMPOSSIBLE = Interval(-math.inf, math.nan, math.nan, 0)

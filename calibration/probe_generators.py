"""Generators: whether a reward likes the images of one generator more, or less, than those who judged do."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rwk.calibration.evaluate import cross_fitted
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.probe import Level, Probe, Result, Status, Subject, known, mean_of, skipped, told
from rwk.calibration.temperature import Temperature
from rwk.calibration.two_way import two_way_interval

LIKED, FAR = 0.05, 0.1
LEAST_PAIRS, LEAST_PROMPTS = 20, 4
"""Of a generator that is looked at."""

PROBE = Probe(
    "accuracy.generators",
    "Mean probability that the reward gives a generator's image over another generator's, less the share of votes that "
    "it got, at the generator where that is furthest from 0. The odds are those of one temperature, fitted on other "
    "prompts. Beside the interval by prompt, which is about these generators, stands one by prompt and by the other "
    "generator at once, which is about further ones too.",
    f"Fails where the interval by prompt, after Bonferroni over the generators, lies further than {FAR} from 0, warns "
    f"where it excludes 0 and the value is further than {LIKED} from it.",
    "share of votes",
)
BOTH = "by prompt and other generator"


def generators(subject: Subject) -> Iterator[Result]:
    """How much each generator of the first domain's pairs is liked beyond what people say of it."""
    table = subject.pairs[0]
    if table.generator_first is None or table.generator_second is None:
        yield skipped(PROBE, "the pairs do not name the generators of their images")
        return
    crossed = table.take((table.decided > 0) & (table.generator_first != table.generator_second))
    if crossed.prompts < LEAST_PROMPTS:
        yield skipped(PROBE, f"needs judged pairs of different generators of {LEAST_PROMPTS} prompts")
        return
    excess = cross_fitted(Temperature(), crossed, seed=subject.seed) - crossed.label
    levels = _levels(crossed, excess)
    if not levels:
        yield skipped(PROBE, f"no generator has {LEAST_PAIRS} such pairs of {LEAST_PROMPTS} prompts")
        return
    worst = max(levels, key=lambda level: (_order(level), abs(level.value.mean)))
    status: Status = ("pass", "warn", "fail")[_order(worst)]
    liked = "more" if worst.value.mean > 0 else "less"
    end = f", {liked} than those who judged like it" if status != "pass" else ""
    yield Result(PROBE, status, f"{worst.name}: {told(worst.value)}{end}", worst.value, levels)


def _levels(table: PairTable, excess: Floats) -> list[Level]:
    one, two = np.asarray(table.generator_first), np.asarray(table.generator_second)
    held = []
    for name in np.union1d(one, two):
        rows = (one == name) | (two == name)
        if rows.sum() >= LEAST_PAIRS and len(np.unique(table.prompt[rows])) >= LEAST_PROMPTS:
            held.append((str(name), rows))
    levels = []
    for name, rows in held:
        own = np.where(one == name, excess, -excess)[rows]
        other = np.where(one == name, two, one)[rows]
        value = mean_of(own, table.prompt[rows], tests=len(held))
        wider = two_way_interval(own, table.prompt[rows], other)
        levels.append(Level(name, value, {BOTH: wider} if known(wider) else {}))
    return levels


def _order(level: Level) -> int:
    """0 to pass, 1 to warn, 2 to fail."""
    value = level.value
    if value.low > FAR or value.high < -FAR:
        return 2
    return int(abs(value.mean) > LIKED and not value.low <= 0 <= value.high)

"""By how much two generators of a study differ, paired by prompt and seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwk.calibration.statistics import PairedTest, cluster_interval, paired_test

Records = Sequence[Mapping[str, Any]]
"""As `study_results.collect` gives them."""


class Gap(NamedTuple):
    """How much more gold accuracy one of two generators has on each prompt."""

    seed: int
    prompts: Sequence[str]
    values: NDArray[np.float64]
    categories: Sequence[str]
    """Of the prompts; none where the records hold none."""


def gap_of(record: Mapping[str, Any], domain: str, values: NDArray[np.float64]) -> Gap:
    """Of the prompts of a record for which there is a value."""
    known = np.flatnonzero(np.isfinite(values))
    prompts, names = record["prompts"][domain], record.get("categories", {}).get(domain, ())
    return Gap(record["seed"], [prompts[i] for i in known], values[known], [names[i] for i in known] if names else ())


def gained_by(group: Records, domain: str) -> list[Gap]:
    """What the records of one condition have over the base."""
    found = [gap_of(record, domain, golds(record, domain) - golds(record, domain, "base")) for record in group]
    return [gap for gap in found if len(gap.values)]


def golds(record: Mapping[str, Any], domain: str, row: str = "tuned") -> NDArray[np.float64]:
    """[P] gold accuracy by prompt, NaN where there is none."""
    return np.asarray(record["gold"][domain][row], dtype=np.float64)


def gaps_between(records: Records, key: Any, first: str, second: str, domain: str) -> list[Gap]:
    """Of records that differ in a key alone, and not in reward, generator, seed and what they are judged on."""
    held = {(key(r), r["reward"], r["generator"], r["seed"]): r for r in records}
    found = []
    for (name, *rest), a in held.items():
        b = held.get((second, *rest))
        if name == first and b and a["prompts"][domain] == b["prompts"][domain]:
            found.append(gap_of(a, domain, golds(a, domain) - golds(b, domain)))
    return [gap for gap in found if len(gap.values)]


def mean_gap(gaps: Sequence[Gap]) -> dict[str, Any]:
    """The mean difference, all rows of one prompt being one cluster, and that of each seed."""
    seeds: dict[int, list[float]] = {}
    for gap in gaps:
        seeds.setdefault(gap.seed, []).append(float(gap.values.mean()))
    test: PairedTest = paired_test(
        np.concatenate([gap.values for gap in gaps]), [prompt for gap in gaps for prompt in gap.prompts]
    )
    found = {key: finite(value) for key, value in test.difference._asdict().items()}
    by_seed = {str(seed): float(np.mean(means)) for seed, means in sorted(seeds.items())}
    return {**found, "p": test.p, "detectable": finite(test.detectable), "seeds": by_seed}


def by_category(gaps: Sequence[Gap]) -> list[dict[str, Any]]:
    """The mean difference on the prompts of each category, if they have any, each with its interval."""
    found = []
    for category in dict.fromkeys(name for gap in gaps for name in gap.categories if name):
        rows = [
            (float(value), prompt)
            for gap in gaps
            for value, prompt, name in zip(gap.values, gap.prompts, gap.categories, strict=True)
            if name == category
        ]
        interval = cluster_interval([value for value, _ in rows], [prompt for _, prompt in rows])
        found.append({"category": category, **{key: finite(value) for key, value in interval._asdict().items()}})
    return found


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None

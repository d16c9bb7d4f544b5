"""What the cells of a study say: tables, paired differences, orders of rewards, and a verdict on each finding.

The findings are those of arXiv:2505.17017. A difference is paired by prompt and seed, its interval clustered by prompt.
It is told as `yes` where the interval lies above 0, its p by sign flips is at most 0.05 after Holm over all differences
that are told, and every seed has it above 0; as `no` where the interval ends below the least difference that counts;
and else, and of fewer than 30 prompts, as `undecided`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rwk.calibration.kendall import kendall
from rwk.calibration.statistics import FEW_CLUSTERS, PairedTest, cluster_interval, holm, paired_test
from rwk.policy_opt.study import Cell
from rwk.policy_opt.study_run import finished_cell

Records = Sequence[Mapping[str, Any]]
ROWS = ("base", "best of n")


def collect(cells: Sequence[Cell], folder: Path) -> list[dict[str, Any]]:
    """The records of the finished cells, each with the points of the axes that it lies at."""
    found = [(cell, finished_cell(folder, cell)) for cell in cells]
    return [{**record, "points": cell.points, "main": cell.main} for cell, record in found if record]


def analyse(study: Mapping[str, Any], records: Records) -> dict[str, Any]:
    """All that the page shows, from the records alone.

    Args:
        study: the fields of `Study`.
        records: as `collect` gives them.
    """
    domains = list(records[0]["gold"]) if records else []
    algorithms = differences(records, domains)
    scaling = effects(study, records, domains)
    judged = [*algorithms, *scaling]
    for row, p in zip(judged, holm([row["p"] for row in judged]) if judged else [], strict=True):
        row["p after Holm"] = float(p)
        row["verdict"] = decide(row, study["margin"])
        row["reverse verdict"] = decide(row, study["margin"], sign=-1)
    orders = agreement(records, domains)
    return {
        "table": table(records, domains),
        "differences": algorithms,
        "scaling": scaling,
        "orders": orders,
        "verdicts": verdicts(algorithms, scaling, orders),
    }


def table(records: Records, domains: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each condition and domain: base, best of n and tuned, each the mean over seeds with its interval."""
    found = []
    for group in conditions(records):
        first = group[0]
        for domain in domains:
            row = {key: first[key] for key in ("algorithm", "reward", "generator", "points", "main")}
            row |= {"domain": domain, "seeds": len(group)}
            for name in (*ROWS, "tuned"):
                row[name] = _interval(group, domain, name)
            of = [float(np.nanmean(record["gold"][domain]["tuned"])) for record in group]
            row["seed means"] = of
            row["meter"] = {key: float(np.mean([r["meter"][key] for r in group])) for key in first["meter"]}
            found.append(row)
    return found


def conditions(records: Records) -> list[list[Mapping[str, Any]]]:
    """The records of one condition together, which differ in their seed alone."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(_condition(record), []).append(record)
    return list(groups.values())


def _condition(record: Mapping[str, Any]) -> str:
    config = {key: value for key, value in record["config"].items() if key != "seed"}
    return repr((record["algorithm"], config, record["experiment"], record["iterations"]))


def _interval(group: Records, domain: str, name: str) -> dict[str, float | None]:
    rows = [
        (value, prompt)
        for record in group
        for value, prompt in zip(record["gold"][domain][name], record["prompts"][domain], strict=True)
        if value is not None and math.isfinite(value)
    ]
    found = cluster_interval([value for value, _ in rows], [prompt for _, prompt in rows])
    return {key: _finite(value) for key, value in found._asdict().items()}


def differences(records: Records, domains: Sequence[str]) -> list[dict[str, Any]]:
    """DPO less GRPO in each domain at the study's own settings, over all rewards and seeds, and for each reward."""
    main = [record for record in records if record["main"]]
    rewards = list(dict.fromkeys(record["reward"] for record in main))
    found = []
    for domain, reward in itertools.product(domains, [None, *(rewards if len(rewards) > 1 else [])]):
        chosen = [record for record in main if reward in (None, record["reward"])]
        pairs = _pairs(chosen, lambda r: r["algorithm"], "dpo", "grpo")
        if pairs:
            found.append({"domain": domain, "reward": reward, **_difference(pairs, domain)})
    return found


def effects(study: Mapping[str, Any], records: Records, domains: Sequence[str]) -> list[dict[str, Any]]:
    """What the last point of each axis has over the first, for each algorithm and domain."""
    found = []
    for axis in study["axes"]:
        labels = list(axis["points"])
        for algorithm, domain in itertools.product(study["algorithms"], domains):
            on = [r for r in records if r["algorithm"] == algorithm and axis["name"] in r["points"]]
            pairs = _pairs(on, lambda r, name=axis["name"]: r["points"][name], labels[-1], labels[0])
            pairs = [(a, b) for a, b in pairs if a["prompts"][domain] == b["prompts"][domain]]
            if pairs and len(labels) > 1:
                what = {"axis": axis["name"], "from": labels[0], "to": labels[-1], "algorithm": algorithm}
                found.append({**what, "domain": domain, **_difference(pairs, domain)})
    return found


def _pairs(records: Records, key: Any, first: str, second: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Records that differ in a key alone, and not in reward, generator and seed."""
    held = {(key(r), r["reward"], r["generator"], r["seed"]): r for r in records}
    return [(r, held[second, *rest]) for (name, *rest), r in held.items() if name == first and (second, *rest) in held]


def _difference(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], domain: str) -> dict[str, Any]:
    """The paired difference of gold accuracy, all rows of one prompt being one cluster, and that of each seed."""
    values: list[float] = []
    prompts: list[str] = []
    seeds: dict[int, list[float]] = {}
    for a, b in pairs:
        gap = np.asarray(a["gold"][domain]["tuned"]) - np.asarray(b["gold"][domain]["tuned"])
        values += gap.tolist()
        prompts += a["prompts"][domain]
        seeds.setdefault(a["seed"], []).append(float(gap.mean()))
    test: PairedTest = paired_test(values, prompts)
    found = {key: _finite(value) for key, value in test.difference._asdict().items()}
    by_seed = {str(seed): float(np.mean(gaps)) for seed, gaps in sorted(seeds.items())}
    return {**found, "p": test.p, "detectable": _finite(test.detectable), "seeds": by_seed}


def decide(row: Mapping[str, Any], margin: float, *, sign: int = 1) -> str:
    """`yes`, `no` or `undecided` on whether a difference, times the sign, is above 0; the rule is the module's."""
    if row["low"] is None or row["clusters"] < FEW_CLUSTERS:
        return "undecided"
    low, high = sorted((sign * row["low"], sign * row["high"]))
    if low > 0 and row["p after Holm"] <= 0.05 and all(sign * value > 0 for value in row["seeds"].values()):
        return "yes"
    return "no" if high < margin else "undecided"


def agreement(records: Records, domains: Sequence[str]) -> list[dict[str, Any]]:
    """Whether best of n puts the rewards in the order that learning does, for each algorithm and domain."""
    main = [group for group in conditions(records) if group[0]["main"]]
    found = []
    for algorithm, domain in itertools.product(dict.fromkeys(g[0]["algorithm"] for g in main), domains):
        groups = [group for group in main if group[0]["algorithm"] == algorithm]
        best = [_interval(group, domain, "best of n")["mean"] for group in groups]
        tuned = [_interval(group, domain, "tuned")["mean"] for group in groups]
        if len(groups) > 1 and len({group[0]["generator"] for group in groups}) == 1:
            tau, p = kendall(best, tuned)
            rewards = [group[0]["reward"] for group in groups]
            row = {"algorithm": algorithm, "domain": domain, "rewards": rewards, "best of n": best, "tuned": tuned}
            found.append({**row, "tau": _finite(tau), "p": p})
    return found


def verdicts(algorithms: Records, scaling: Records, orders: Records) -> list[dict[str, str]]:
    """What is said of each finding of the paper."""
    words = {"yes": "reproduced", "no": "not reproduced", "undecided": "undecided at this power"}
    found = []
    for domain, sign, said in (
        ("in domain", 1, "1. DPO is better in domain"),
        ("out of domain", -1, "2. GRPO is better out of domain"),
    ):
        rows = [row for row in algorithms if row["domain"] == domain and row["reward"] is None]
        for row in rows:
            verdict = row["verdict"] if sign > 0 else row["reverse verdict"]
            why = f"DPO less GRPO {_points(row)}, p after Holm {row['p after Holm']:.3g}"
            found.append({"finding": said, "verdict": words[verdict], "why": why})
    for row in orders:
        said = f"3. Best of n orders the rewards as {row['algorithm']} does, {row['domain']}"
        sure = row["tau"] is not None and row["p"] <= 0.05
        verdict = ("yes" if row["tau"] > 0 else "no") if sure else "undecided"
        tau = "none" if row["tau"] is None else f"{row['tau']:+.2f}"
        why = f"tau {tau}, exact p {row['p']:.3g}, {len(row['rewards'])} rewards"
        found.append({"finding": said, "verdict": words[verdict], "why": why})
    told = {"yes": "improves", "no": "does not improve", "undecided": "undecided at this power"}
    for row in scaling:
        said = f"4. {row['algorithm']}, {row['domain']}, {row['axis']} {row['from']} to {row['to']}"
        found.append({"finding": said, "verdict": told[row["verdict"]], "why": _points(row)})
    return found


def _points(row: Mapping[str, Any]) -> str:
    """A difference in points, with its interval."""
    if row["low"] is None:
        return f"{100 * row['mean']:+.1f} points"
    return f"{100 * row['mean']:+.1f} points ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None

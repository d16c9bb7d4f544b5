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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rwk.calibration.kendall import kendall
from rwk.calibration.statistics import FEW_CLUSTERS, cluster_interval, holm
from rwk.policy_opt import prompts
from rwk.policy_opt.study import Cell
from rwk.policy_opt.study_gaps import Gap, Records, by_category, finite, gained_by, gaps_between, golds, mean_gap
from rwk.policy_opt.study_run import finished_cell

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
    records = [_with_categories(record) for record in records]
    domains = list(records[0]["gold"]) if records else []
    gained = gains(records, domains)
    algorithms = differences(study, records, domains)
    scaling = effects(study, records, domains)
    judged = [*gained, *algorithms, *scaling]
    for row, p in zip(judged, holm([row["p"] for row in judged]) if judged else [], strict=True):
        row["p after Holm"] = float(p)
        row["verdict"] = decide(row, study["margin"])
        row["reverse verdict"] = decide(row, study["margin"], sign=-1)
    orders = agreement(records, domains)
    return {
        "table": table(records, domains),
        "gains": gained,
        "differences": algorithms,
        "scaling": scaling,
        "orders": orders,
        "categories": categories(study, records, domains),
        "verdicts": verdicts(study, algorithms, scaling, orders),
    }


def _with_categories(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record that was made before they were kept has those of its family's prompts, found by their texts."""
    experiment = record["experiment"]
    if record.get("categories") or experiment.get("prompts") not in prompts.FAMILIES:
        return record
    known = _categories_of(experiment["prompts"], experiment["eval_prompts"])
    found = {domain: [known.get(text, "") for text in texts] for domain, texts in record["prompts"].items()}
    return {**record, "categories": found}


@cache
def _categories_of(family: str, count: int) -> dict[str, str]:
    """Prompt -> its category, of those that a family is judged on."""
    judged = prompts.domains(family, train=1, test=count, seed=0).test.values()
    return {prompt.text: prompt.category for chosen in judged for prompt in chosen}


def table(records: Records, domains: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each condition and domain: base, best of n and tuned, each the mean over seeds with its interval."""
    found, meter = (
        [],
        [key for key in (records[0]["meter"] if records else ()) if all(key in r["meter"] for r in records)],
    )
    for group in conditions(records):
        first = group[0]
        for domain in domains:
            row = {key: first[key] for key in ("algorithm", "reward", "generator", "points", "main")}
            row |= {"domain": domain, "seeds": len(group)}
            for name in (*ROWS, "tuned"):
                row[name] = _interval(group, domain, name)
            of = [float(np.nanmean(golds(record, domain))) for record in group]
            row["seed means"] = of
            row["meter"] = {key: float(np.mean([r["meter"][key] for r in group])) for key in meter}
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
    return {key: finite(value) for key, value in found._asdict().items()}


def gains(records: Records, domains: Sequence[str]) -> list[dict[str, Any]]:
    """What learning added to the base in each domain, for each algorithm and reward at the study's own settings."""
    found = []
    for group in conditions([record for record in records if record["main"]]):
        first = group[0]
        for domain in domains:
            what = {key: first[key] for key in ("algorithm", "reward", "generator")}
            gaps = gained_by(group, domain)
            if gaps:
                found.append({**what, "domain": domain, **mean_gap(gaps)})
    return found


def categories(study: Mapping[str, Any], records: Records, domains: Sequence[str]) -> list[dict[str, Any]]:
    """The same by category of prompts, and one algorithm less another over all rewards; of records that hold them.

    The categories are looked at, and none of them is tested.
    """
    main = [record for record in records if record["main"] and record.get("categories")]
    told: list[tuple[dict[str, Any], list[Gap]]] = []
    for group, domain in itertools.product(conditions(main), domains):
        what = {"algorithm": group[0]["algorithm"], "against": "base", "reward": group[0]["reward"], "domain": domain}
        told.append((what, gained_by(group, domain)))
    for (first, second), domain in itertools.product(contrasts(study), domains):
        what = {"algorithm": first, "against": second, "reward": None, "domain": domain}
        told.append((what, gaps_between(main, lambda r: r["algorithm"], first, second, domain)))
    return [{**what, **row} for what, gaps in told for row in by_category(gaps)]


def contrasts(study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which algorithms are held against which: each against each, and a variant against that which it is one of."""
    variants = [(name, variant.get("against", variant["of"])) for name, variant in study["variants"].items()]
    return [*itertools.combinations(sorted(study["algorithms"]), 2), *variants]


def differences(study: Mapping[str, Any], records: Records, domains: Sequence[str]) -> list[dict[str, Any]]:
    """One algorithm less another in each domain at the study's own settings, over all rewards, and for each."""
    main = [record for record in records if record["main"]]
    rewards = list(dict.fromkeys(record["reward"] for record in main))
    each = [None, *(rewards if len(rewards) > 1 else [])]
    found = []
    for (first, second), domain, reward in itertools.product(contrasts(study), domains, each):
        chosen = [record for record in main if reward in (None, record["reward"])]
        gaps = gaps_between(chosen, lambda r: r["algorithm"], first, second, domain)
        if gaps:
            found.append({"first": first, "second": second, "domain": domain, "reward": reward, **mean_gap(gaps)})
    return found


def effects(study: Mapping[str, Any], records: Records, domains: Sequence[str]) -> list[dict[str, Any]]:
    """What the last point of each axis has over the first, for each algorithm and domain."""
    found = []
    for axis in study["axes"]:
        labels = list(axis["points"])
        for algorithm, domain in itertools.product([*study["algorithms"], *study["variants"]], domains):
            on = [r for r in records if r["algorithm"] == algorithm and axis["name"] in r["points"]]
            gaps = gaps_between(on, lambda r, name=axis["name"]: r["points"][name], labels[-1], labels[0], domain)
            if gaps and len(labels) > 1:
                what = {"axis": axis["name"], "from": labels[0], "to": labels[-1], "algorithm": algorithm}
                found.append({**what, "domain": domain, **mean_gap(gaps)})
    return found


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
            found.append({**row, "tau": finite(tau), "p": p})
    return found


def verdicts(study: Mapping[str, Any], algorithms: Records, scaling: Records, orders: Records) -> list[dict[str, str]]:
    """What is said of each finding of the paper, and of each variant."""
    words = {"yes": "reproduced", "no": "not reproduced", "undecided": "undecided at this power"}
    found = []
    for domain, sign, said in (
        ("in domain", 1, "1. DPO is better in domain"),
        ("out of domain", -1, "2. GRPO is better out of domain"),
    ):
        for row in algorithms:
            if (row["first"], row["second"], row["domain"]) != ("dpo", "grpo", domain):
                continue
            of = f"{said}, from {row['reward'] or 'all rewards'}"
            verdict = row["verdict"] if sign > 0 else row["reverse verdict"]
            why = f"DPO minus GRPO {_points(row)}, p after Holm {row['p after Holm']:.3g}"
            found.append({"finding": of, "verdict": words[verdict], "why": why})
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
    for row in algorithms:
        if row["first"] in study["variants"] and row["reward"] is None:
            said = f"5. {row['first']} against {row['second']}, {row['domain']}"
            found.append({"finding": said, "verdict": told[row["verdict"]], "why": _points(row)})
    return found


def _points(row: Mapping[str, Any]) -> str:
    """A difference in points, with its interval."""
    if row["low"] is None:
        return f"{100 * row['mean']:+.1f} points"
    return f"{100 * row['mean']:+.1f} points ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"

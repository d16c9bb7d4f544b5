"""The page of a study, made of its `study.json` alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rwk.policy_opt.study_results import ROWS
from rwk.rewards.report import page, save, section, table

Document = Mapping[str, Any]


def write_page(document: Document, folder: Path) -> Path:
    """Writes `page.html`; gives its path."""
    done, total = len(document["cells"]), document["cells planned"]
    match, seconds = document["study"]["match"], document["study"].get("seconds", 0)
    each = f" of processor time, {seconds:g} for each" if match == "seconds" else ""
    judged_on = document["study"]["settings"].get("judge_on", ())
    gold = f"gold accuracy as {', '.join(judged_on)} measure it" if judged_on else "gold accuracy"
    lead = f"{done} of {total} cells, matched on {match}{each}; {gold} with 95 % intervals."
    save(folder / "page.html", page(f"Study {document['study']['name']}", sections(document), lead=lead))
    return folder / "page.html"


def sections(document: Document) -> Iterator[str]:
    """The pieces of the page."""
    found = document["results"]
    lines = [[row["finding"], row["verdict"], row["why"]] for row in found["verdicts"]]
    lead = (
        "Told as so where the paired interval, clustered by prompt, lies above 0, p after Holm is at most 0.05 and "
        f"every seed agrees; as not so where the interval ends below {100 * document['study']['margin']:g} points."
    )
    yield section("Verdicts", [table(["finding", "verdict", "difference"], lines)], lead=lead)
    main = [row for row in found["table"] if row["main"]]
    if main:
        yield section("Algorithms and rewards", [draw_bars(main)], lead="At the study's own settings.")
    for axis in document["study"]["axes"]:
        rows = [row for row in found["table"] if axis["name"] in row["points"]]
        if rows:
            yield section(axis["name"].capitalize(), [draw_axis(rows, axis)], lead="Dashed: the base.")
    if found["orders"]:
        yield section("Order of rewards", [draw_orders(found["orders"])], lead="A point is a reward.")
    for domain in dict.fromkeys(row["domain"] for row in found["table"]):
        rows = [row for row in found["table"] if row["domain"] == domain]
        heads, cells = tabulated(rows)
        yield section(domain.capitalize(), [table(heads, cells, numbers=heads[3:])], lead="Mean over seeds.")
    yield from by_category(found.get("categories", ()))
    heads = ["algorithm", "reward", "domain", "tuned minus base", *_TESTED]
    rows = [[r["algorithm"], r["reward"], r["domain"], _cell(r), *_tested(r)] for r in found["gains"]]
    if rows:
        yield section("Over the base", [table(heads, rows)], lead="Paired by prompt; yes: learning made it better.")
    heads = ["first", "second", "reward", "domain", "first minus second", *_TESTED]
    rows = [
        [r["first"], r["second"], r["reward"] or "all", r["domain"], _cell(r), *_tested(r)]
        for r in found["differences"]
    ]
    if rows:
        yield section("Algorithms against each other", [table(heads, rows)], lead="Paired by prompt and seed.")


def by_category(found: Sequence[Document]) -> Iterator[str]:
    """A section for each domain whose prompts have categories: what was gained in each of them."""
    for domain in dict.fromkeys(row["domain"] for row in found):
        here = [row for row in found if row["domain"] == domain]
        categories = list(dict.fromkeys(row["category"] for row in here))
        lines: dict[tuple[str, str, str], dict[str, str]] = {}
        for row in here:
            line = lines.setdefault((row["algorithm"], row["against"], row["reward"] or "all"), {})
            line[row["category"]] = _cell(row)
        cells = [[*what, *(line.get(name, "") for name in categories)] for what, line in lines.items()]
        heads = ["algorithm", "against", "reward", *categories]
        lead = "Gold accuracy of the first minus that of the second, with 95 % intervals clustered by prompt; no test."
        yield section(f"{domain.capitalize()}, by category", [table(heads, cells, numbers=categories)], lead=lead)


_TESTED = ("above 0", "p", "p after Holm", "detectable", "by seed")


def _tested(row: Document) -> list[str]:
    """Cells under `_TESTED`."""
    detectable = "" if row["detectable"] is None else f"{row['detectable']:.3f}"
    seeds = ", ".join(f"{value:+.3f}" for value in row["seeds"].values())
    return [row["verdict"], f"{row['p']:.3g}", f"{row['p after Holm']:.3g}", detectable, seeds]


def tabulated(rows: Sequence[Document]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the table of one domain."""
    meter = list(rows[0]["meter"])
    lines = []
    for row in rows:
        points = ", ".join(f"{axis} {label}" for axis, label in row["points"].items())
        seeds = f"{min(row['seed means']):.3f} to {max(row['seed means']):.3f}"
        cells = [_cell(row[name]) for name in (*ROWS, "tuned")]
        costs = [f"{row['meter'][name]:,.0f}" for name in meter]
        lines.append([row["algorithm"], row["reward"], points, *cells, seeds, *costs])
    return ["algorithm", "reward", "point", *ROWS, "tuned", "seeds", *meter], lines


def _cell(found: Document) -> str:
    """A mean and its interval, such as "0.520 (0.480 to 0.560)"."""
    if found["low"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _panels(count: int, titles: Sequence[str]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    plot = Figure(figsize=(3.9 * count, 3.4), layout="constrained")
    places = plot.subplots(1, count, squeeze=False)[0]
    for place, title in zip(places, titles, strict=True):
        place.set_title(title, fontsize=10)
        place.grid(alpha=0.3)
    return plot, places


def _svg(plot: Any) -> str:
    """SVG that is the same whenever it is drawn from the same numbers."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": "rwk"}):
        plot.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def _reach(found: Sequence[Document]) -> list[list[float]]:
    """[2, K] below and above the means."""
    return [[abs((f[end] if f[end] is not None else f["mean"]) - f["mean"]) for f in found] for end in ("low", "high")]


def draw_bars(rows: Sequence[Document]) -> str:
    """SVG of gold accuracy by reward: base, best of n and each algorithm, a panel a domain."""
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    rewards = list(dict.fromkeys(row["reward"] for row in rows))
    algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
    plot, places = _panels(len(domains), domains)
    series = [*((name, name, None) for name in ROWS), *((name, "tuned", name) for name in algorithms)]
    for place, domain in zip(places, domains, strict=True):
        for number, (label, name, algorithm) in enumerate(series):
            held = {
                row["reward"]: row[name]
                for row in rows
                if row["domain"] == domain and algorithm in (None, row["algorithm"])
            }
            at = [index + 0.8 * number / len(series) for index, reward in enumerate(rewards) if reward in held]
            found = [held[reward] for reward in rewards if reward in held]
            means = [value["mean"] for value in found]
            place.bar(at, means, 0.8 / len(series), yerr=_reach(found), label=label, error_kw={"linewidth": 0.8})
        place.set_xticks([index + 0.3 for index in range(len(rewards))], rewards, rotation=20, ha="right", fontsize=7)
    places[0].legend(fontsize=7)
    return _svg(plot)


def draw_axis(rows: Sequence[Document], axis: Document) -> str:
    """SVG of gold accuracy along an axis, a panel a domain and a line an algorithm and reward."""
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    labels = list(axis["points"])
    plot, places = _panels(len(domains), domains)
    for place, domain in zip(places, domains, strict=True):
        here = [row for row in rows if row["domain"] == domain]
        for algorithm, reward in dict.fromkeys((row["algorithm"], row["reward"]) for row in here):
            held = {r["points"][axis["name"]]: r for r in here if (r["algorithm"], r["reward"]) == (algorithm, reward)}
            known = [label for label in labels if label in held]
            found = [held[label]["tuned"] for label in known]
            at = [labels.index(label) for label in known]
            means = [value["mean"] for value in found]
            place.errorbar(at, means, yerr=_reach(found), marker=".", label=f"{algorithm}, {reward}")
        place.axhline(here[0]["base"]["mean"], linestyle="--", color="grey", linewidth=0.8)
        place.set_xticks(range(len(labels)), labels)
        place.set_xlabel(axis["name"])
    places[0].legend(fontsize=7)
    return _svg(plot)


def draw_orders(orders: Sequence[Document]) -> str:
    """SVG of what learning comes to over what best of n comes to, a panel a domain."""
    domains = list(dict.fromkeys(row["domain"] for row in orders))
    plot, places = _panels(len(domains), domains)
    for place, domain in zip(places, domains, strict=True):
        for row in orders:
            if row["domain"] == domain:
                place.plot(row["best of n"], row["tuned"], "o", label=row["algorithm"])
        place.set_xlabel("best of n")
        place.set_ylabel("tuned")
    places[0].legend(fontsize=7)
    return _svg(plot)

"""Several runs from one generator in one table and on one page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwk.policy_opt import generator as generators
from rwk.policy_opt.evaluate import JUDGED_SEED
from rwk.policy_opt.page import SIDE, enlarged, tabulated
from rwk.policy_opt.prompts import domains
from rwk.rewards.report import Figure, figures, page, save, section, table

SHOWN = 6
"""Prompts of each domain whose images are shown, two to a line."""


def together(runs: Mapping[str, Path]) -> dict[str, Any]:
    """Results by row: the base and its best of n, which all runs share, and each run's tuned generator by its name.

    Args:
        runs: name -> the folder of a run of `optimize`, all with the same generator, rewards and prompts.
    """
    results = {name: json.loads((folder / "result.json").read_text())["results"] for name, folder in runs.items()}
    first = next(iter(results.values()))
    shared = {row: value for row, value in first.items() if row != "tuned"}
    return shared | {name: result["tuned"] for name, result in results.items()}


def write_showcase(runs: Mapping[str, Path], out: Path, links: Mapping[str, str]) -> Path:
    """Writes `index.html`: the table of `together`, links to other pages, and the same draws by every generator."""
    rows = together(runs)
    heads, lines = tabulated(rows)
    items = "".join(f'<li><a href="{target}">{title}</a></li>' for title, target in links.items())
    lead = "Mean and 95 % interval, clustered by prompt. Gold accuracy is the share of images of which all is true."
    body = [
        section("Results", [table(heads, lines, numbers=heads[1:])], lead=lead),
        section("More", [f"<ul>{items}</ul>"]),
        *_draws(runs),
    ]
    save(out / "index.html", page("From images to a better generator", body))
    return out / "index.html"


def _draws(runs: Mapping[str, Path]) -> list[str]:
    """A section for each domain: one image of some prompts by the base and by each tuned generator, from one seed."""
    config = json.loads((next(iter(runs.values())) / "config.json").read_text())["experiment"]
    makers = {"base": generators.load(config["generator"])}
    makers |= {name: generators.load(str(folder / "generator")) for name, folder in runs.items()}
    sections = []
    for domain, prompts in domains(config["prompts"], train=1, test=SHOWN, seed=0).test.items():
        texts = [prompt.text for prompt in prompts]
        drawn = {name: g.decode(g.sample(texts, seed=JUDGED_SEED).tokens) for name, g in makers.items()}
        shown = [
            Figure(enlarged(images[index]), name, [text], f"{name}: {text}")
            for index, text in enumerate(texts)
            for name, images in drawn.items()
        ]
        sections.append(section(domain.capitalize(), [figures("", shown, size=SIDE, columns=2 * len(makers))]))
    return sections

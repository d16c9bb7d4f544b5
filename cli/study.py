"""`rwk study`: a grid of optimisations, resumed cell by cell, and what it says of the findings on DPO and GRPO."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from rwk.cli.console import note, plain, progress, show, table
from rwk.cli.options import Common, options
from rwk.policy_opt.settings import setting
from rwk.policy_opt.study import WORLD, Cell, Match, Study, cells, read_study


@dataclass(frozen=True)
class Call:
    """Which study, and what of it."""

    file: Path | None = setting(None, "", argument=True)
    out: Path = setting(Path("runs/study"), "Folder of the study, which any number of processes may share.")
    part: str = setting("1/1", "Run every n-th cell from the k-th on: k/n.", metavar="K/N")
    match: Match | None = setting(None, "What every cell has the same of. [default: the study's]")
    seconds: float | None = setting(
        None, "Seconds of processor time that every cell learns for, with --match seconds. [default: the study's]"
    )
    seeds: int | None = setting(None, "Seeds of each condition, from 0 on. [default: the study's]")
    dry_run: bool = setting(False, "List the cells and what they will cost, and run none.", switch=True)
    redraw: bool = setting(False, "Draw the page again from study.json, and run none.", switch=True)

    def chosen(self, found: list[Cell]) -> list[Cell]:
        """The cells of this part; raises ValueError for a part that is none."""
        first, _, every = self.part.partition("/")
        if not (first.isdigit() and every.isdigit() and 1 <= int(first) <= int(every)):
            raise ValueError(f"--part must be k/n with k in 1..n, got {self.part!r}.")
        return found[int(first) - 1 :: int(every)]

    def study(self) -> Study:
        """The file's study or that of the world, with what was named beside it."""
        found = WORLD if self.file is None else read_study(self.file)
        named: dict[str, Any] = {"match": self.match, "seconds": self.seconds, "seeds": self.seeds}
        return replace(found, **{key: value for key, value in named.items() if value is not None})


@click.command("study")
@options(Call)
def command(call: Call, common: Common) -> dict[str, Any]:
    """Compare algorithms, rewards and scaling over seeds, in and out of domain, after arXiv:2505.17017.

    FILE is a study in TOML or JSON; without it, that of the built-in world is run. Finished cells are kept, so a
    killed study goes on where it was. Writes page.html and study.json, from which the page can be drawn again.
    """
    if call.redraw:
        return redraw(call.out if call.file is None or call.file.is_file() else call.file)
    study = call.study()
    every = cells(study)
    mine = call.chosen(every)
    if call.dry_run:
        return foreseen(mine)

    from rwk.policy_opt.optimize import write_json
    from rwk.policy_opt.study_page import write_page
    from rwk.policy_opt.study_results import analyse, collect
    from rwk.policy_opt.study_run import run_cells

    with progress("study") as advance:
        ran = run_cells(mine, call.out, device=common.device, tell=note, progress=lambda done, total, _: advance(1))
    records = collect(every, call.out)
    note(f"{ran} cells were run, {len(records)} of {len(every)} are finished.")
    if not records:
        return {"folder": call.out, "cells": 0}
    definition = plain(asdict(study))
    document = {
        "study": definition,
        "cells planned": len(every),
        "results": analyse(definition, records),
        "cells": records,
    }
    write_json(call.out / "study.json", document)
    write_page(document, call.out)
    return told(document, call.out)


def redraw(folder: Path) -> dict[str, Any]:
    """Analyses and draws what `study.json` holds once more; raises ValueError where there is none."""
    from rwk.policy_opt.optimize import write_json
    from rwk.policy_opt.study_page import write_page
    from rwk.policy_opt.study_results import analyse

    path = folder / "study.json"
    if not path.is_file():
        raise ValueError(f"--redraw needs the folder of a study that was run, got none at {path}; name its folder.")
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        definition, found = document["study"], document["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no study ({error}); run the study again, which keeps its cells.") from error
    document["results"] = analyse(definition, found)
    write_json(folder / "study.json", document)
    write_page(document, folder)
    return told(document, folder)


def told(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Shows the verdicts, and gives the document that `--json` prints."""
    found = document["results"]
    show(table(["finding", "verdict", "difference"], [list(row.values()) for row in found["verdicts"]]))
    note(f"open {folder / 'page.html'} to see it.")
    return {"folder": folder, "page": folder / "page.html", "cells": len(document["cells"]), **found}


def foreseen(found: list[Cell]) -> dict[str, Any]:
    """Shows what each cell will cost, and all together."""
    plans = [cell.plan() for cell in found]
    heads = ["images", "reward forwards", "images learnt from", "images judged", "minutes"]
    lines = [
        [c.name, ", ".join(f"{a} {label}" for a, label in c.points.items()), *(f"{n:,}" for n in p[:4]),
         f"{p.seconds / 60:.1f}"]
        for c, p in zip(found, plans, strict=True)
    ]  # fmt: skip
    sums = [sum(column) for column in zip(*plans, strict=True)]
    lines.append([f"{len(found)} cells", "", *(f"{n:,}" for n in sums[:4]), f"{sums[4] / 60:.0f}"])
    show(table(["cell", "points", *heads], lines, numbers=heads, foot=1))
    note("minutes are those of shapes.llama on one idle core; divide them by the processes that share the study.")
    rows = [{"cell": c.name, "points": c.points, **p._asdict()} for c, p in zip(found, plans, strict=True)]
    return {"cells": rows, "seconds": sums[4]}

"""The cells of a study, run one after another and shared by any number of processes."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rwk.policy_opt.evaluate import GOLD, Drawn, best_of
from rwk.policy_opt.journal import Progress, Trained, derived_seed, read
from rwk.policy_opt.measured import number
from rwk.policy_opt.optimize import Comparison, optimize, write_json
from rwk.policy_opt.study import Cell
from rwk.policy_opt.trl_trainers import make_ready

Tell = Callable[[str], None]


def finished_cell(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """The record of a cell that was run to its end with these settings; None where there is none."""
    path = folder / "cells" / cell.name / "result.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found if found["digest"] == cell.digest else None


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    device: str = "cpu",
    tell: Tell = lambda _: None,
    progress: Progress | None = None,
) -> int:
    """Runs the cells that are neither finished nor being run elsewhere; gives how many it ran.

    Raises:
        ValueError: under a launcher, whose processes would wait for each other in different cells.
    """
    if (launched := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"a study is shared by processes that are started apart, got one of {launched} of a launcher; start rwk "
            f"study {launched} times, each with a --device of its own."
        )
    ran = 0
    for place, cell in enumerate(cells, 1):
        if finished_cell(folder, cell):
            continue
        with locked(folder / "cells" / cell.name, tell) as ours:
            if ours and not finished_cell(folder, cell):
                tell(f"cell {place} of {len(cells)}: {cell.name}")
                run_cell(cell, folder, device=device, progress=progress)
                ran += 1
    return ran


def run_cell(cell: Cell, folder: Path, *, device: str = "cpu", progress: Progress | None = None) -> None:
    """Runs a cell from where it was left, and writes its `result.json` last."""
    make_ready()  # else the first cell of a process would pay for the imports
    home = (folder / "cells" / cell.name).resolve()
    experiment = cell.experiment
    parts: list[dict[str, Any]] = []
    for iteration in range(cell.iterations):
        out = home / f"iteration-{iteration + 1}"
        record = out / "judged.json"
        if not record.exists():
            seed = cell.config.seed if not iteration else derived_seed(cell.config.seed, iteration)
            found = optimize(
                experiment,
                replace(cell.config, seed=seed),
                cell.recipe,
                out=out,
                resume=(out / "config.json").exists(),
                device=device,
                progress=progress,
                seconds=cell.seconds,
                later=iteration > 0,
            )
            write_json(record, judged(found))
        parts.append(json.loads(record.read_text()))
        experiment = replace(experiment, generator=str(out / "generator"))
    meter = {name: sum(part["meter"][name] for part in parts) for name in parts[0]["meter"]}
    gold = {
        domain: {"base": rows["base"], "best of n": rows["best of n"], "tuned": parts[-1]["gold"][domain]["tuned"]}
        for domain, rows in parts[0]["gold"].items()
    }
    document = {
        "digest": cell.digest,
        "algorithm": cell.algorithm,
        "reward": cell.reward,
        "generator": cell.experiment.generator,
        "seed": cell.config.seed,
        "config": asdict(cell.config),
        "experiment": cell.experiment.document(),
        "iterations": cell.iterations,
        "budget seconds": cell.seconds and cell.seconds * cell.iterations,
        "meter": meter,
        "prompts": parts[0]["prompts"],
        "categories": parts[0].get("categories", {}),
        "gold": gold,
    }
    write_json(home / "result.json", document)


def judged(found: Comparison) -> dict[str, Any]:
    """What a study keeps of a run: accuracy by prompt of base, best of n and tuned, and what it cost."""
    gold = {}
    for domain, before in found.before.items():
        best = best_of(before.scores[found.proxies[0]], before.scores[GOLD], before.scores[GOLD].shape[1])
        means = {"base": _means(before), "best of n": _numbers(best), "tuned": _means(found.after[domain])}
        gold[domain] = means
    prompts = {domain: [prompt.text for prompt in drawn.prompts] for domain, drawn in found.before.items()}
    categories = {domain: [prompt.category for prompt in drawn.prompts] for domain, drawn in found.before.items()}
    return {"gold": gold, "prompts": prompts, "categories": categories, "meter": metered(found.trained)}


def _means(drawn: Drawn) -> list[float | None]:
    return _numbers(drawn.scores[GOLD].nanmean(1))


def _numbers(values: Tensor) -> list[float | None]:
    """None where a prompt has no value, as JSON has no NaN."""
    return [number(value) for value in values.tolist()]


def metered(trained: Trained) -> dict[str, float]:
    """What learning cost; seconds are those of every update that was kept, parts before a kill included.

    Those of the processor do not depend on what else the machine does, and count as many as its threads took.
    """
    rows = read(trained.metrics)
    return {
        "images sampled": trained.images_sampled,
        "reward forwards": trained.reward_forwards,
        "tokens trained": trained.tokens_trained,
        "reference tokens": trained.reference_tokens,
        "seconds": sum(row["seconds"] for row in rows),
        "processor seconds": sum(row["processor_seconds"] for row in rows),
    }


@contextmanager
def locked(folder: Path, tell: Tell) -> Iterator[bool]:
    """Whether the folder is this process's alone; that of a process of this machine that is gone is taken over.

    The lock is a file that is made by nobody twice, and that its process holds as long as it lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, us = folder / "lock", f"process {os.getpid()} on {socket.gethostname()}"
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        fresh = True
    except FileExistsError:
        handle, fresh = os.open(path, os.O_RDWR), False
    try:
        holder = "" if fresh else os.pread(handle, 1000, 0).decode()
        mine = (fresh or holder.endswith(f" on {socket.gethostname()}")) and _held(handle, path)
        if not mine:
            tell(f"{folder.name} is being run by {holder or 'another process'}; if that is gone, remove {path}.")
            yield False
            return
        if not fresh:
            tell(f"{folder.name} was left by {holder}, which is gone, and is taken over.")
        os.ftruncate(handle, 0)
        os.pwrite(handle, us.encode(), 0)
        try:
            yield True
        finally:
            path.unlink()
    finally:
        os.close(handle)


def _held(handle: int, path: Path) -> bool:
    """Whether this process now holds the file, and the file is still the one of that name."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False

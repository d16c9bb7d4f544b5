"""The folder of a run: its metrics as JSON lines, and what counts after a kill."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rwk.policy_opt.generator import Generator
from rwk.policy_opt.guards import Guards
from rwk.policy_opt.policy import World

Progress = Callable[[int, int, dict[str, Any]], None]
"""Is called with the updates done, the updates in all, and the newest metrics."""


@dataclass(frozen=True)
class Trained:
    """What an optimisation leaves behind and what it cost, over all processes and resumed parts."""

    generator: Path
    """The folder of the tuned generator."""
    metrics: Path
    steps: int
    images_sampled: int
    reward_forwards: int
    """Images that went through a reward, counted once for each reward; of a pair judge, its answers."""
    tokens_trained: int
    seconds: float
    """Of this call; a part before a kill is not in it."""
    processes: int = 1
    images_watched: int = 0
    """Drawn for the looks at a watched reward, beside those that were learnt from."""
    ended: bool = False
    """Whether the run was ended because the watched reward fell while the reward rose; the generator is then that of
    the best look."""
    reference_tokens: int = 0
    """Tokens whose probability under a reference was computed, for the loss or to measure the distance to it."""


class Journal:
    """Writes `metrics.jsonl`, one line per update; only the main process writes."""

    def __init__(
        self, path: Path, *, main: bool = True, progress: Progress | None = None, guards: Guards | None = None
    ) -> None:
        """
        Args:
            guards: that look at each line; by default those of `Guards`.
        """
        self.path = path
        self.total = 1
        self.main = main
        self.started = self._last = time.perf_counter()
        self._worked, self._owed = time.process_time(), 0.0
        self._progress = progress
        self._pending: dict[str, Any] = {}
        self._alarms: list[str] = []
        self._guards = guards or Guards()
        self._spent = _spent(read(path))

    @property
    def last(self) -> int:
        """The newest update that has a line."""
        return max(self._spent, default=0)

    def spent(self, step: int | None = None) -> float:
        """Seconds of processor time that the updates up to `step` took, or all so far and what came after them."""
        if step is not None:
            return sum(seconds for number, seconds in self._spent.items() if number <= step)
        return sum(self._spent.values()) + time.process_time() - self._worked + self._owed

    def charge(self, path: Path) -> None:
        """Keeps in a file what was spent since the newest line, or puts what it holds onto the next.

        So what was done before a kill, and is not done again, counts too; in the main process alone, whose file it is.
        """
        if self.main and path.exists():
            self._owed = float(path.read_text())
        elif self.main:
            path.write_text(str(time.process_time() - self._worked))

    def forget_after(self, step: int) -> None:
        """Drops the lines of updates after `step`, and a last line that was cut off; they will be made again."""
        rows = [row for row in read(self.path) if row["step"] <= step]
        self._spent = _spent(rows)
        self._guards = self._guards.anew()
        for row in rows:
            self._guards.look(row)
            self._guards.check(row, self.total)
        if not self.main:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(partial, self.path)

    def note(self, **values: Any) -> None:
        """Adds values to the next line."""
        self._pending.update(values)

    def alarm(self, text: str) -> None:
        """Adds an alarm to the next line, beside those of the guards."""
        self._alarms.append(text)

    def close(self, step: int, text: str) -> None:
        """Writes a last line after that many updates: what was noted since, and why there is no other, as an alarm.

        A line that says so already stays as it is.
        """
        if not any(text in row.get("alarms", ()) for row in read(self.path)[-1:]):
            self.alarm(text)
            self._written(step, {})

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes the line of an update, with what was noted for it, and its alarms where there are any.

        Raises:
            RunFailed: when the gradient is not a number, or nothing has been learnt from the start on.
        """
        self._guards.check(self._written(step, values), self.total)

    def _written(self, step: int, values: dict[str, Any]) -> dict[str, Any]:
        now, worked = time.perf_counter(), time.process_time()
        row = {"step": step, **values, **self._pending, "seconds": now - self._last}
        row["processor_seconds"] = worked - self._worked + self._owed
        self._spent[step] = self._spent.get(step, 0.0) + row["processor_seconds"]
        self._last, self._worked, self._owed = now, worked, 0.0
        self._pending.clear()
        if alarms := [*self._alarms, *self._guards.look(row)]:
            row["alarms"] = alarms
        self._alarms.clear()
        if self.main:
            with self.path.open("a") as file:
                file.write(json.dumps({name: _plain(value) for name, value in row.items()}) + "\n")
            if self._progress:
                self._progress(step, self.total, row)
        return row


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, but for a last one that a kill cut off; none where there is no file."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _spent(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Update -> seconds of processor time, of lines that tell them."""
    found: dict[int, float] = {}
    for row in rows:
        found[row["step"]] = found.get(row["step"], 0.0) + row.get("processor_seconds", 0.0)
    return found


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a trainer that was written to its end; None where there is none."""
    whole = [path.parent for path in folder.glob("checkpoint-*/complete")]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    """Updates done at a checkpoint; 0 where there is none."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def publish(generator: Generator, folder: Path, place: World) -> Path:
    """Saves a generator so that its folder is there either whole or not at all, and returns the folder."""
    if place.rank == 0:
        partial = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        generator.save(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    place.wait()
    return folder


def derived_seed(*parts: int) -> int:
    """A seed in 0..2**31 made of several numbers; other numbers give another one."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def start(
    folder: Path, place: World, *, resume: bool, progress: Progress | None = None, guards: Guards | None = None
) -> Journal:
    """The journal of the run in a folder, which is made; raises ValueError where one is that is not to be resumed."""
    path = folder / "metrics.jsonl"
    if not resume and path.exists():
        raise ValueError(f"{folder} must be free for a new run, got one that holds a run; resume it or name another.")
    folder.mkdir(parents=True, exist_ok=True)
    place.wait()  # no process may write before all have looked
    return Journal(path, main=place.rank == 0, progress=progress, guards=guards)


def ends_after(journal: Journal, seconds: float | None, place: World) -> Callable[[int], bool] | None:
    """For `trl_bridge.train`: `out_of_time` after an update; None where no seconds are named."""
    if seconds is None:
        return None
    return lambda _: out_of_time(journal, seconds, place)


def out_of_time(journal: Journal, seconds: float, place: World, step: int | None = None) -> bool:
    """Whether a process has spent so many seconds of its processor, as in `Journal.spent`; all are told the same."""
    return place.gather(torch.tensor([journal.spent(step)])).max().item() >= seconds


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

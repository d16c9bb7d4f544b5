"""The ledger of a run of GRPO: how each prompt fared whenever it was drawn for, and which prompts come next by it.

`ledger.jsonl` has a line for each prompt of each draw, with the updates done before it, and the mean and the deviation
of each reward over the images of the prompt; null where none was scored:

    {"step": 12, "prompt": "a red circle", "mean": {"shapes.verifier": 0.75}, "std": {"shapes.verifier": 0.27}}

Prompts are drawn for in passes over all of them, each in a new order. A rule may leave out of a new pass what could
teach nothing when it was last drawn for:

* history: the prompts whose images all reached the top of every reward. Those whose images all failed stay, as they
  may be solved yet. SRPO (2025), arXiv:2504.14286.
* alike: the prompts whose images were all alike, by the last group of each.

What is left out stays out until too few other prompts remain for one draw. Where a run's rewards change, a new pass
begins, and what it leaves out is told by the new rewards. The rule dynamic leaves out no prompt: a step draws for more
of them, as `grpo` has it, so it has several draws here.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwk.policy_opt.advantage import Weighted, group_spread
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.curriculum import Curriculum
from rwk.policy_opt.journal import read


def prompts_of_pass(
    order: torch.Generator, prompts: int, per_draw: int, left_out: Collection[int] = frozenset()
) -> list[int]:
    """Handles of the prompts of one pass, in random order, none twice: as many as fill whole draws, at least one.

    Args:
        prompts: size of the table, at least `per_draw`.
        left_out: handles that are taken only to fill the first draw.

    >>> prompts_of_pass(torch.Generator().manual_seed(0), 5, 2, left_out={1, 2, 3, 4})[0]
    0
    """
    drawn = torch.randperm(prompts, generator=order).tolist()
    kept = [handle for handle in drawn if handle not in left_out]
    if len(kept) < per_draw:
        kept += [handle for handle in drawn if handle in left_out][: per_draw - len(kept)]
    return kept[: len(kept) // per_draw * per_draw]


class Ledger:
    """Keeps `ledger.jsonl`, and chooses the prompts of the next draw by what is in it; only the main process writes.

    The choice depends on the seed and on what was recorded alone, so every process, and a resumed run, comes to it.
    """

    def __init__(
        self, path: Path, config: Grpo, table: Sequence[str], rewards: Sequence[Weighted], *, main: bool = True
    ) -> None:
        """
        Args:
            table: prompts, each once; a handle is an index of it.
            rewards: those of weight 0 are only recorded.

        Raises:
            ValueError: where the rule is history and a reward has no top.
        """
        self.left_out: set[int] = set()
        """Handles that the pass under way leaves out."""
        self._path, self._config, self._table, self._main = path, config, list(table), main
        self._rewards = list(rewards)
        self._stages, self._stage = Curriculum(config, rewards), 0
        self._order = torch.Generator().manual_seed(config.seed)
        self._ahead: list[int] = []
        self._last: dict[str, dict[str, Any]] = {}
        self.images = 0
        """Drawn so far, over all processes."""
        endless = [
            part.name
            for stage in self._stages.stages
            for part in stage.rewards
            if part.weight and not math.isfinite(top(part))
        ]
        if config.resampling == "history" and endless:
            raise ValueError(
                f"resampling history needs rewards that have a top, got {endless[0]}, which has none; take alike."
            )

    def restore(self, step: int) -> None:
        """Takes up the draws before that many updates, and drops later ones, which will be made again.

        Raises:
            ValueError: where draws are missing.
        """
        rows = [row for row in read(self._path) if row["step"] < step]
        steps = [list(step) for _, step in itertools.groupby(rows, key=lambda row: row["step"])]
        if len(steps) != -(-step // self._config.num_iterations):
            raise ValueError(
                f"{self._path} must hold every draw of {step} updates, got {len(steps)}; begin the run anew."
            )
        size = self._config.prompts_per_step
        for draw in (step[first : first + size] for step in steps for first in range(0, len(step), size)):
            self.next(draw[0]["step"])
            self._take(draw)
        if self._main:
            partial = self._path.with_suffix(".tmp")
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.replace(partial, self._path)

    def next(self, step: int = 0) -> list[int]:
        """Handles of the prompts of the next draw, over all processes, none twice.

        Args:
            step: updates done before it.
        """
        stage = self._stages.number(step)
        if not self._ahead or stage != self._stage:
            self._stage = stage
            self.left_out = {handle for handle, prompt in enumerate(self._table) if self._teaches_nothing(prompt)}
            self._ahead = prompts_of_pass(self._order, len(self._table), self._config.prompts_per_step, self.left_out)
        count = self._config.prompts_per_step
        chosen, self._ahead = self._ahead[:count], self._ahead[count:]
        return chosen

    def record(self, step: int, prompts: Sequence[str], scores: Tensor) -> None:
        """Writes down a draw.

        Args:
            step: updates done before it.
            prompts: [P] what was drawn for.
            scores: [P * group_size, R] by every reward, rows of one prompt adjacent; NaN where there is none.
        """
        mean, std = group_spread(scores, self._config.group_size)
        rows: list[dict[str, Any]] = [
            {"step": step, "prompt": prompt, "mean": self._named(mean[place]), "std": self._named(std[place])}
            for place, prompt in enumerate(prompts)
        ]
        self._take(rows)
        if self._main:
            with self._path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    def _take(self, draw: Sequence[dict[str, Any]]) -> None:
        self._last |= {row["prompt"]: row for row in draw}
        self.images += len(draw) * self._config.group_size

    def _named(self, values: Tensor) -> dict[str, float | None]:
        numbers = [None if math.isnan(value) else value for value in values.tolist()]
        return {part.name: number for part, number in zip(self._rewards, numbers, strict=True)}

    def _teaches_nothing(self, prompt: str) -> bool:
        """Whether the rule leaves a prompt out, by its last group; differences up to `min_std` do not count."""
        row, rule, floor = self._last.get(prompt), self._config.resampling, self._config.min_std
        if row is None or rule in ("none", "dynamic"):
            return False
        parts = [part for part in self._stages.stages[self._stage].rewards if part.weight]
        if any(row["std"][part.name] > floor for part in parts):
            return False
        means = [row["mean"][part.name] for part in parts]
        return rule == "alike" or all(
            mean is not None and abs(mean - top(part)) <= floor for mean, part in zip(means, parts, strict=True)
        )


def top(part: Weighted) -> float:
    """The score that a run strives for."""
    return part.reward.spec.high if part.weight > 0 else part.reward.spec.low

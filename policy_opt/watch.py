"""The truth, or a second reward, beside the reward on held-out prompts while a generator learns.

Every look draws for the same prompts with the same seed. Between two looks, with the means g of the watched reward and
r of the reward over the images of a prompt,

    slope = mean_prompts (g_now - g_before) / mean_prompts (r_now - r_before)          `calibration.slope`

with its 95 % interval under resampling of prompts. Where that lies below 0 and the reward rose, the two diverge: the
reward is being over-optimised. Each look stands by itself, so of 40 looks at a generator whose truth stays as it is one
raises a false alarm.

`watch.jsonl` has a line a look, and `watch/` the numbers behind it, which `rwk probe --run` reads: of P prompts with n
images each the `scores` [P, n, R + 1] by the R rewards and the watched one, the `reward` [P, n] that is learnt from,
and, where the run measures it, `kl` [P, n], the nats by which an image is likelier than for the generator as it began.
What is drawn for a look is never learnt from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwk.calibration.pairs import Floats
from rwk.calibration.slope import diverges, slope_interval
from rwk.calibration.statistics import Interval
from rwk.policy_opt.advantage import Weighted, standardised, weights_of
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.curriculum import Curriculum
from rwk.policy_opt.evaluate import clustered, draw
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.journal import Journal, last_checkpoint, read, step_of
from rwk.policy_opt.outliers import embedding, outlier_share
from rwk.policy_opt.policy import Policy, Statistics, World, kl_per_image
from rwk.policy_opt.prompts import Prompt
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.settings import Optimisation
from rwk.rewards.base import Reward

SEED = 1_000_033
"""Seed of every look, apart from those of training and of judging."""
FILE = "watch.jsonl"


class Watched(NamedTuple):
    """What is watched, and on what."""

    reward: Weighted
    prompts: Sequence[Prompt]
    per_prompt: int


class Watch:
    """Looks at a generator while it learns, or does nothing where nothing is watched.

    What it does in a resumed run is what it did in the first.
    """

    def __init__(
        self,
        watched: Watched | None,
        config: Optimisation,
        generator: Generator,
        rewards: Sequence[Weighted],
        sampling: Sampling,
        out: Path,
        policy: Policy,
        journal: Journal,
        place: World,
        reference: Statistics | None = None,
    ) -> None:
        """
        Args:
            reference: of the generator as it began, from which the distance is measured at every look, if at all.
        """
        self._watched, self._config, self._generator, self._sampling = watched, config, generator, sampling
        self._stages = Curriculum(config, rewards) if isinstance(config, Grpo) else None
        self._learnt = self._stages.learnt if self._stages else [part for part in rewards if part.weight]
        self._folder, self._path = out / "watch", out / FILE
        self._policy, self._journal, self._place = policy, journal, place
        self._reference = reference if config.kl_every else None
        self.rows: list[dict[str, Any]] = []
        """One a look, as in `watch.jsonl`."""

    @property
    def ended(self) -> int | None:
        """Updates after which the run ends; None where it goes on."""
        if not self._config.stop_on_divergence:
            return None
        return next((row["step"] for row in self.rows if row["diverged"]), None)

    @property
    def images(self) -> int:
        """Drawn for all looks so far."""
        return len(self.rows) * len(self._watched.prompts) * self._watched.per_prompt if self._watched else 0

    @property
    def referred(self) -> int:
        """Of these, images whose probability under the reference was computed."""
        return self.images if self._reference else 0

    def begin(self, step: int) -> None:
        """Takes up the looks up to `step` updates, drops later ones, and makes the first where there is none."""
        if self._watched is None:
            return
        self._folder.mkdir(exist_ok=True)
        self.rows = [row for row in read(self._path) if row["step"] <= step]
        if self._place.rank == 0:
            partial = self._path.with_suffix(".tmp")
            partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            os.replace(partial, self._path)
        if not self.rows:
            self.look(0)

    def look(self, step: int) -> bool:
        """Measures the generator after so many updates, with an alarm where it diverges; gives whether to end."""
        watched = self._watched
        if watched is None:
            return False
        found = self._measured(watched)
        began = self._held(0) if step else found
        proxy, truth = self._proxy(found, began, step), found["scores"][..., -1]
        found["reward"] = proxy
        row: dict[str, Any] = {
            "step": step,
            "reward": _plain(clustered(proxy)),
            "watched": _plain(clustered(truth)),
            "kl": _plain(clustered(found["kl"])) if "kl" in found else None,
            "slope": None,
            "diverged": False,
            "outliers": _number(outlier_share(began["features"], found["features"]))
            if step and "features" in found
            else None,
        }
        if self.rows:
            before = self._held(self.rows[-1]["step"])
            gained = _change(proxy, self._proxy(before, began, step))
            slope = slope_interval(_change(truth, before["scores"][..., -1]), gained, seed=step)
            row["slope"] = slope and _plain(slope)
            row["diverged"] = diverges(slope, gained)
        if row["diverged"]:
            least, most = row["slope"]["low"], row["slope"]["high"]
            self._journal.alarm(
                f"{watched.reward.name} falls while the reward rises: by {-most:.3g} to {-least:.3g} for each "
                f"unit of the reward since update {self.rows[-1]['step']}"
            )
        self._keep(row, found)
        return self.ended is not None

    def every(self, steps: int, *, before: int = 0) -> Callable[[int], bool]:
        """What a trainer calls with its updates so far: looks after every so many, and says whether to end.

        Args:
            before: updates of the trainers before.
        """
        return lambda step: step % steps == 0 and self.look(before + step)

    def conclude(self) -> None:
        """Where the run was ended, gives the policy the weights of the look with the highest watched reward."""
        if self.ended is not None:
            self._policy.load_state_dict(load_file(self._weights(_best(self.rows))), strict=False)

    def _measured(self, watched: Watched) -> dict[str, Tensor]:
        """`scores`, `kl` and `features` [P * n, D], the last two where they can be had, in every process."""
        own = self._place.share(len(watched.prompts))
        part = self._seen(watched, [watched.prompts[row] for row in own]) if own else None
        parts = self._place.collect(part)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _seen(self, watched: Watched, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """What `_measured` finds for some of the prompts, on the CPU."""
        per_prompt = watched.per_prompt
        parts = [*self._learnt, watched.reward]
        rewards = {str(number): part.reward for number, part in enumerate(parts)}  # one may be learnt from and watched
        drawn = draw(self._generator, prompts, rewards, per_prompt=per_prompt, seed=SEED, sampling=self._sampling)
        found = {"scores": torch.stack(list(drawn.scores.values()), dim=2)}
        if self._reference:
            kl = kl_per_image(self._generator.statistics, self._reference, drawn.rollout)
            found["kl"] = kl.unflatten(0, (-1, per_prompt)).cpu()
        seen = embedding(
            [part for part in rewards.values() if isinstance(part, Reward)],
            [image for row in drawn.images for image in row],
        )
        return found if seen is None else found | {"features": seen}

    def _proxy(self, found: dict[str, Tensor], began: dict[str, Tensor], step: int) -> Tensor:
        """[P, n] what was learnt from in the last of so many updates, where that changes."""
        parts = list(self._learnt)
        if self._stages:
            weight = {part.name: part.weight for part in self._stages.at(max(step - 1, 0)).rewards}
            parts = [part._replace(weight=weight[part.name]) for part in parts]
        columns = [column for column, part in enumerate(parts) if part.weight]
        scores, began_at = found["scores"][..., columns], began["scores"][..., columns]
        return combined(scores, began_at, [parts[column] for column in columns], self._config)

    def _keep(self, row: dict[str, Any], found: dict[str, Tensor]) -> None:
        self.rows.append(row)
        if self._place.rank == 0:
            step = row["step"]
            kept = {name: value.contiguous() for name, value in found.items() if name != "features" or step == 0}
            save_file(kept, self._folder / f"{step}.safetensors")
            if self._config.stop_on_divergence and _best(self.rows) == step:
                save_file(dict(self._policy.state_dict()), self._weights(step))
                self._prune()
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        self._place.wait()

    def _prune(self) -> None:
        """Removes weights that no run will take, not even one that goes on from the last checkpoint."""
        resumed = step_of(last_checkpoint(self._path.with_name("checkpoints")))
        old = [row["step"] for row in self.rows if row["step"] <= resumed and self._weights(row["step"]).exists()]
        for step in old[:-1]:
            self._weights(step).unlink()

    def _held(self, step: int) -> dict[str, Tensor]:
        return load_file(self._folder / f"{step}.safetensors")

    def _weights(self, step: int) -> Path:
        return self._folder / f"weights-{step}.safetensors"


def combined(scores: Tensor, began: Tensor, rewards: Sequence[Weighted], config: Optimisation) -> Tensor:
    """[P, n] the reward that is learnt from, in a unit that stays the same while the generator changes.

    Where the run standardises within groups, in which no group is better than another, every reward is standardised by
    the mean, and the deviation within a prompt, that it had at the beginning.

    Args:
        scores: [P, n, R].
        began: [P, n, R] scores of the generator as it began.
        rewards: R of them.
    """
    weights = weights_of(rewards, config.aggregation)
    weight = torch.tensor(weights, dtype=scores.dtype)
    if not standardised(weights, config.aggregation):
        return scores @ weight
    spread = (began - began.nanmean(1, keepdim=True)).square().nanmean((0, 1)).sqrt().clamp(min=1e-4)  # [R]
    members = (scores - began.nanmean((0, 1))) / spread * weight
    if config.aggregation == "normalise":
        return members.sum(2)
    return members.mean(2) - config.lower_k * members.std(2, correction=0)


def _change(now: Tensor, before: Tensor) -> Floats:
    """[P] change of the mean of each prompt's images, of scores [P, n]."""
    found: Floats = (now.nanmean(1) - before.nanmean(1)).double().numpy()
    return found


def _best(rows: Sequence[dict[str, Any]]) -> int:
    """Step of the look at which the watched reward was highest, the first of equals."""
    known = [row for row in rows if row["watched"]["mean"] is not None] or rows[:1]
    return int(max(known, key=lambda row: row["watched"]["mean"] or 0.0)["step"])


def _plain(interval: Interval) -> dict[str, float | None]:
    """The interval for JSON, which has no NaN."""
    return {name: _number(value) for name, value in interval._asdict().items()}


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None

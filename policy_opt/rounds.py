"""Rounds of learning from pairs: the policy draws, its images are scored and paired, and it learns from the pairs.

The reference of a round is the policy that drew in it, or the one that the run began with. All that a loss needs of it
are two log-probabilities a pair, and they lie with the draws. Where the best images alone are learnt, each is the
better of a pair with the worst of its group, which is not trained.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rwk.policy_opt.advantage import Weighted, answers_an_image, floors_of
from rwk.policy_opt.artist import KL_IMAGES, Artist
from rwk.policy_opt.calibrated import preference_unit
from rwk.policy_opt.configs import Dpo, Pairwise, Rft, Rounds
from rwk.policy_opt.draws import Draws, save_whole
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.guards import Guards
from rwk.policy_opt.journal import (
    Journal,
    Trained,
    ends_after,
    last_checkpoint,
    out_of_time,
    publish,
    start,
    step_of,
)
from rwk.policy_opt.masters import masters_of, whole
from rwk.policy_opt.policy import Policy, Statistics, World, trainable, world
from rwk.policy_opt.run_options import Run
from rwk.policy_opt.watch import Watch
from rwk.rewards.errors import RunFailed

MIN_STD = 1e-4
"""A deviation within a group below this counts as this where rewards are standardised, and std_floor says nothing."""
PairTrainer = Callable[..., Any]
"""A trainer of `trl_bridge` for pairs, such as `dpo_trainer`."""


def learn_in_rounds(
    config: Rounds,
    trainer_of: PairTrainer,
    generator: Generator,
    rewards: Sequence[Weighted],
    prompts: Sequence[str],
    told: Run,
) -> Trained:
    """Tunes the generator, in place and as `out/generator`, and writes `out/metrics.jsonl`.

    What was drawn stays in `out/round-*/draws`, so that a resumed run draws nothing twice. Several processes share the
    draws, and the folder.

    The learning rate rises and falls once, by the updates of all rounds. How many those are is known from the draws:
    the updates so far, and as many in each round to come as the present one makes. So it is reckoned anew in each
    round, and in the last it is exact. A round without a pair ends the run, with an alarm, but for the first of all.

    Args:
        trainer_of: makes the trainer of each round.
        rewards: combined by their weights; those of weight 0 are only measured.
        told: the run's folder, and what else it is told.

    Raises:
        ValueError: for numbers that do not fit together.
        RunFailed: when the first round finds no pair, or nothing is learnt from the start on, though it is no later
            part; or the gradient is not a number.
    """
    place = world(next(generator.module.parameters()).device)
    table = list(dict.fromkeys(prompts))
    if not table:
        raise ValueError(f"{type(config).__name__.lower()} needs at least one prompt, got none.")
    check_overlap(config, len(table), place.size)
    unit = preference_unit(rewards, config.aggregation) if config.margins_count else nan
    out, seconds, later = told.out, told.seconds, told.later
    guards = Guards(config.collapse, later=later)
    journal = start(out, place, resume=told.resume, progress=told.progress, guards=guards)
    if not told.resume:
        journal.forget_after(0)  # a folder with draws, and not a line yet, is taken
    recipe = told.sampling or generator.spec.sampling
    floors = floors_of(rewards, config.std_floor, min_std=MIN_STD)
    fixed = isinstance(config, Pairwise) and config.reference == "fixed"
    ends = ends_after(journal, seconds, place)
    with trainable(generator, config, keep=config.kl_every > 0 or fixed) as began:
        artist = Artist(config, generator, rewards, unit, floors, table, recipe, place, began if fixed else None)
        policy = Policy(generator.module, generator.statistics, table, recipe)
        watch = Watch(told.watched, config, generator, rewards, recipe, out, policy, journal, place, began)
        watch.begin(sys.maxsize)
        run = _Run(config, trainer_of, artist, policy, journal, watch, place, began, ends, later)
        for number in range(config.rounds):
            if seconds is not None and out_of_time(journal, seconds, place, run.updates):
                break
            if not run.round(number, out / f"round-{number + 1}") or watch.ended == run.updates:
                break
        watch.conclude()
    return Trained(
        publish(generator, out / "generator", place),
        journal.path,
        run.updates,
        run.images,
        run.images * answers_an_image(rewards, config.group_size),
        run.learnt * generator.spec.tokens,
        time.perf_counter() - journal.started,
        place.size,
        watch.images,
        watch.ended is not None,
        (run.referred + watch.referred) * generator.spec.tokens,
    )


def check_overlap(config: Rounds, prompts: int, processes: int) -> None:
    """Raises ValueError where no score of a round can be computed while something else is drawn."""
    prompts = min(config.prompts_per_round or prompts, prompts)
    if config.score_meanwhile and prompts <= processes:
        raise ValueError(
            f"score_meanwhile needs two prompts of a round in a process, got {prompts} for {processes}; draw for more "
            f"prompts, or leave it out."
        )


@dataclass
class _Run:
    """A run between two rounds."""

    config: Rounds
    trainer_of: PairTrainer
    artist: Artist
    policy: Policy
    journal: Journal
    watch: Watch
    place: World
    began: Statistics | None
    """Of the generator as the run began, where it is kept."""
    ends: Callable[[int], bool] | None
    """Whether the run is to end after an update, where its seconds are counted."""
    later: bool
    """Whether there may be nothing to learn from the first round on."""
    updates: int = 0
    images: int = 0
    """That were drawn."""
    learnt: int = 0
    """Images, each as often as it was learnt."""
    referred: int = 0
    """Images of which a reference was asked."""

    def round(self, number: int, folder: Path) -> bool:
        """Draws and learns, or takes from the folder what was made there before; gives whether there was a pair.

        Raises:
            RunFailed: where there was none in the first round, and the generator has learnt nothing before.
        """
        config, drawn = self.config, self.artist.draw(folder / "draws", number)
        planned = drawn.updates(config)
        if not planned and not number and not self.later:
            raise RunFailed(
                f"{type(config).__name__.lower()} {self.artist.without_pairs(drawn)}; take a finer reward, a larger "
                f"group_size or a smaller bound."
            )
        self.journal.total = self.updates + (config.rounds - number) * planned
        reference = self.began if config.kl_every and number % config.kl_every == 0 else None
        self.images += len(drawn.tokens)
        self.referred += min(KL_IMAGES, len(drawn.tokens)) if reference else 0
        if not (folder / "policy.safetensors").exists():
            if last_checkpoint(folder / "checkpoints") is None:
                self.journal.charge(folder / "drawing_seconds")
                self.journal.note(round=number + 1, **self.artist.summary(drawn))
                if reference:
                    self.journal.note(kl=self.artist.distance(drawn, reference))
            if not planned:
                why = self.artist.without_pairs(drawn)
                self.journal.close(self.updates, f"round {number + 1} {why}; the run ends with what it had learnt")
                return False
            looks = (number + 1) % config.watch_every == 0
            ends = [self.watch.every(planned, before=self.updates) if looks else None, self.ends]
            self._train(drawn, folder, ends)
        self.policy.load_state_dict(load_file(folder / "policy.safetensors"), strict=False)
        made = min(planned, self.journal.last - self.updates)  # fewer where the seconds ended within the round
        paired = torch.cat([drawn.won, drawn.lost]).unique()
        chosen = drawn.won.unique() if isinstance(config, Rft) else paired
        self.learnt += config.epochs * len(chosen) * made // planned
        self.updates += made
        self.referred += len(paired)
        return True

    def _train(self, drawn: Draws, folder: Path, ends: Sequence[Callable[[int], bool] | None]) -> None:
        """Trains on the pairs of one round, from its last checkpoint on, and keeps the policy that comes of it.

        Args:
            ends: as for `trl_bridge.train`.
        """
        from rwk.policy_opt import trl_bridge as trl

        config, checkpoints = self.config, folder / "checkpoints"
        checkpoint = last_checkpoint(checkpoints)
        self.journal.forget_after(self.updates + step_of(checkpoint))
        self.watch.begin(self.updates + step_of(checkpoint))
        pairs = drawn.preferences(config, self.artist.unit if isinstance(config, Dpo) and config.soft_labels else None)
        journal, place = self.journal, self.place
        trainer = self.trainer_of(config, self.policy, pairs, journal, checkpoints, place, before=self.updates)
        trainer.span = self.updates, journal.total
        trl.train(trainer, checkpoint, ends=ends)
        state = dict(self.policy.state_dict()) | whole(masters_of(trainer))
        trl.release(trainer)
        if place.rank == 0:
            save_whole(state, folder / "policy.safetensors")
            shutil.rmtree(checkpoints, ignore_errors=True)
        place.wait()

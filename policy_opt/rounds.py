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
from typing import Any, Required, TypedDict

import torch
from safetensors.torch import load_file
from torch import Tensor

from rwk.policy_opt.advantage import Weighted, answers_an_image, combine, floors_of, order_summary, summary, weights_of
from rwk.policy_opt.calibrated import confident, preference_unit
from rwk.policy_opt.configs import Dpo, Pairwise, Rft, Rounds
from rwk.policy_opt.draws import Draws, joined, save_whole
from rwk.policy_opt.generator import Generator, Rollout, Sampling
from rwk.policy_opt.guards import diversity
from rwk.policy_opt.journal import (
    Journal,
    Progress,
    Trained,
    derived_seed,
    ends_after,
    last_checkpoint,
    publish,
    start,
    step_of,
)
from rwk.policy_opt.off_policy import drift
from rwk.policy_opt.pairs import mined
from rwk.policy_opt.policy import Policy, Statistics, World, trainable, world
from rwk.policy_opt.scored_draws import Scored, scored
from rwk.policy_opt.watch import Watch, Watched
from rwk.rewards.errors import RunFailed

MIN_STD = 1e-4
"""A deviation within a group below this counts as this where rewards are standardised, and std_floor says nothing."""
KL_IMAGES = 128
"""Images of a round by which the distance to the beginning is measured."""
PairTrainer = Callable[..., Any]
"""A trainer of `trl_bridge` for pairs, such as `dpo_trainer`."""


class RunOptions(TypedDict, total=False):
    """What a run may be told by name; see `learn_in_rounds`."""

    out: Required[Path]
    sampling: Sampling | None
    resume: bool
    progress: Progress | None
    watched: Watched | None
    seconds: float | None


def learn_in_rounds(
    config: Rounds,
    trainer_of: PairTrainer,
    generator: Generator,
    rewards: Sequence[Weighted],
    prompts: Sequence[str],
    *,
    out: Path,
    sampling: Sampling | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    watched: Watched | None = None,
    seconds: float | None = None,
) -> Trained:
    """Tunes the generator, in place and as `out/generator`, and writes `out/metrics.jsonl`.

    What was drawn stays in `out/round-*/draws`, so that a resumed run draws nothing twice. Several processes share the
    draws, and the folder.

    Args:
        trainer_of: makes the trainer of each round.
        rewards: combined by their weights; those of weight 0 are only measured.
        out: the run's folder.
        sampling: what is drawn from and trained; by default the generator's own recipe.
        resume: go on with what is in `out`, from the generator that the run began with.
        progress: is called after each update.
        watched: a reward to look at every `watch_every` rounds.
        seconds: of processor time after which the run ends, at the next update.

    Raises:
        ValueError: for numbers that do not fit together.
        RunFailed: when no pair is found, nothing is learnt from the start on, or the gradient is not a number.
    """
    place = world(next(generator.module.parameters()).device)
    table = list(dict.fromkeys(prompts))
    if not table:
        raise ValueError(f"{_name(config)} needs at least one prompt, got none.")
    unit = preference_unit(rewards, config.aggregation) if config.margins_count else nan
    journal = start(out, place, resume=resume, progress=progress, collapse=config.collapse)
    recipe = sampling or generator.spec.sampling
    floors = floors_of(rewards, config.std_floor, min_std=MIN_STD)
    fixed = isinstance(config, Pairwise) and config.reference == "fixed"
    limit = ends_after(journal, seconds, place)
    updates = images = learnt = referred = 0
    with trainable(generator, config, keep=config.kl_every > 0 or fixed) as began:
        artist = _Artist(config, generator, rewards, unit, floors, table, recipe, place, began if fixed else None)
        policy = Policy(generator.module, generator.statistics, table, recipe)
        watch = Watch(watched, config, generator, rewards, recipe, out, policy, journal, place, began)
        watch.begin(sys.maxsize)
        for number in range(config.rounds):
            if seconds is not None and journal.spent(updates) >= seconds:
                break
            folder = out / f"round-{number + 1}"
            drawn = artist.draw(folder / "draws", number)
            journal.total = updates + (config.rounds - number) * drawn.updates(config)
            if not (folder / "policy.safetensors").exists():
                if not _resumable(folder):
                    journal.charge(folder / "drawing_seconds")
                    journal.note(round=number + 1, **artist.summary(drawn))
                    if began and config.kl_every and number % config.kl_every == 0:
                        journal.note(kl=artist.distance(drawn, began))
                soft = unit if isinstance(config, Dpo) and config.soft_labels else None
                looks = (
                    watch.every(drawn.updates(config), before=updates)
                    if (number + 1) % config.watch_every == 0
                    else None
                )
                ends = [looks, limit]
                _train(
                    config, trainer_of, policy, drawn, soft, journal, watch, folder, place, ends=ends, before=updates
                )
            policy.load_state_dict(load_file(folder / "policy.safetensors"), strict=False)
            planned = drawn.updates(config)
            made = min(planned, journal.last - updates)  # fewer where the seconds ended within the round
            paired = torch.cat([drawn.won, drawn.lost]).unique()
            chosen = drawn.won.unique() if isinstance(config, Rft) else paired
            learnt += config.epochs * len(chosen) * made // planned
            updates, images = updates + made, images + len(drawn.tokens)
            referred += len(paired)
            if began and config.kl_every and number % config.kl_every == 0:
                referred += min(KL_IMAGES, len(drawn.tokens))
            if watch.ended == updates:
                break
        watch.conclude()
    tuned = publish(generator, out / "generator", place)
    tokens = learnt * generator.spec.tokens
    took = time.perf_counter() - journal.started
    return Trained(
        tuned,
        journal.path,
        updates,
        images,
        images * answers_an_image(rewards, config.group_size),
        tokens,
        took,
        place.size,
        watch.images,
        watch.ended is not None,
        (referred + watch.referred) * generator.spec.tokens,
    )


def _train(
    config: Rounds,
    trainer_of: PairTrainer,
    policy: Policy,
    drawn: Draws,
    soft: float | None,
    journal: Journal,
    watch: Watch,
    folder: Path,
    place: World,
    *,
    ends: Sequence[Callable[[int], bool] | None],
    before: int,
) -> None:
    """Trains on the pairs of one round, from its last checkpoint on, and keeps the policy that comes of it.

    Args:
        soft: margin that makes log-odds of 1, where labels are soft.
        ends: as for `trl_bridge.train`.
        before: updates of the rounds before.
    """
    from rwk.policy_opt import trl_bridge as trl

    checkpoint = last_checkpoint(folder / "checkpoints")
    journal.forget_after(before + step_of(checkpoint))
    watch.begin(before + step_of(checkpoint))
    pairs = drawn.preferences(config, soft)
    trainer = trainer_of(config, policy, pairs, journal, folder / "checkpoints", place, before=before)
    trl.train(trainer, checkpoint, ends=ends)
    if place.rank == 0:
        save_whole(dict(policy.state_dict()), folder / "policy.safetensors")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    place.wait()


@dataclass(frozen=True)
class _Artist:
    """Draws, scores and pairs the images of a round."""

    config: Rounds
    generator: Generator
    rewards: Sequence[Weighted]
    unit: float
    """Margin of the reward that makes log-odds of 1; NaN where nobody asks."""
    floors: Sequence[float]
    table: list[str]
    sampling: Sampling
    place: World
    fixed: Statistics | None
    """Of the generator as it began, where that is the reference; else it is the policy that draws."""

    def draw(self, folder: Path, number: int) -> Draws:
        """All draws of a round; those that lie in the folder already are not made again."""
        order = torch.Generator().manual_seed(derived_seed(self.config.seed, number))
        chosen = torch.randperm(len(self.table), generator=order)[: self.config.prompts_per_round or None]
        folder.mkdir(parents=True, exist_ok=True)
        parts = torch.split(chosen, self.config.prompts_per_draw)
        files = [folder / f"{index:05d}.safetensors" for index in range(len(parts))]
        own = [index for index in range(self.place.rank, len(parts), self.place.size) if not files[index].exists()]
        drawn = (self._drawn(parts[index], derived_seed(self.config.seed, number, index)) for index in own)
        meanwhile, from_pixels = self.config.score_meanwhile, self.config.from_pixels
        seed = derived_seed(self.config.seed, number)
        parts_scored = scored(drawn, self.rewards, meanwhile=meanwhile, seed=seed, from_pixels=from_pixels)
        for index, part in zip(own, parts_scored, strict=True):
            draws = self._paired(parts[index], part)
            save_whole({name: value.contiguous() for name, value in vars(draws).items()}, files[index])
        self.place.wait()
        draws = joined([Draws(**load_file(file)) for file in files])
        if not len(draws.won):
            raise RunFailed(
                f"{_name(self.config)} found no pair among {len(draws.tokens)} images in groups of "
                f"{self.config.group_size}: {int(draws.reward.isnan().sum())} have no reward, and the others differ by "
                f"no more than min_margin, which is {self.config.min_margin}, or are preferred with less than "
                f"min_confidence, which is {self.config.min_confidence}; take a finer reward, a larger group_size or a "
                f"smaller bound."
            )
        return draws

    def _drawn(self, handles: Tensor, seed: int) -> tuple[Rollout, Tensor]:
        """A group for each of some prompts, and its images as 8-bit levels."""
        rollout = self.generator.sample(
            [self.table[handle] for handle in handles.tolist()],
            per_prompt=self.config.group_size,
            seed=seed,
            sampling=self.sampling,
        )
        return rollout, self.generator.levels(rollout.tokens)

    def _paired(self, handles: Tensor, part: Scored) -> Draws:
        """Scored images with their pairs, and the reference's log-probabilities of what is in a pair."""
        config, rollout, scores = self.config, part.rollout, part.scores
        group = torch.arange(len(handles)).repeat_interleave(config.group_size)
        weights = weights_of(self.rewards, config.aggregation)
        floors = self.floors
        reward = combine(scores, weights, group, how=config.aggregation, min_std=floors, lower_k=config.lower_k)
        pairs = mined(config, reward, group)
        if config.min_confidence:
            pairs = confident(pairs, config.min_confidence, self.unit)

        rows, place = torch.unique(torch.cat([pairs.won, pairs.lost]), return_inverse=True)
        with torch.no_grad():
            logprobs = self.generator.logprobs(rollout[rows]) if len(rows) else rollout.logprobs[:0]
            reference = self.fixed(rollout[rows]).logprobs if self.fixed and len(rows) else logprobs
        won, lost = reference.sum(1).cpu()[place].chunk(2)
        apart = drift(self.generator.statistics, rollout[rows], logprobs) if len(rows) else logprobs.sum(1)
        gap = (rollout.logprobs[rows] - logprobs).mean(1)
        apart, gap = (column.cpu()[place].view(2, -1).mean(0) for column in (apart, gap))
        drawn = handles.repeat_interleave(config.group_size)
        tokens = rollout.tokens.cpu()
        return Draws(drawn, tokens, scores, part.orders, reward, pairs.won, pairs.lost, won, lost, apart, gap)

    def summary(self, draws: Draws) -> dict[str, Any]:
        """What the journal keeps of a round's draws."""
        group = torch.arange(len(draws.tokens)) // self.config.group_size
        values = summary(self.rewards, draws.scores, draws.reward, group) | order_summary(self.rewards, draws.orders)
        varied = diversity(draws.tokens, self.config.group_size)
        biased = {"guidance_gap": draws.gap.mean().item()} if self.sampling.mode == "cond_only" else {}
        apart = {"drift": draws.drift.mean().item()} | biased
        return values | {"pairs": len(draws.won), "diversity": varied} | apart

    def distance(self, draws: Draws, reference: Statistics) -> float:
        """Nats per image between the policy that drew and the reference, by `KL_IMAGES` of the draws."""
        handles, tokens = draws.handles[:KL_IMAGES], draws.tokens[:KL_IMAGES].to(self.place.device)
        prompts = [self.table[handle] for handle in handles.tolist()]
        rollout = Rollout(prompts, handles, tokens, torch.zeros_like(tokens, dtype=torch.float32), self.sampling)
        with torch.no_grad():
            return (self.generator.logprobs(rollout) - reference(rollout).logprobs).sum(1).mean().item()


def _resumable(folder: Path) -> bool:
    return last_checkpoint(folder / "checkpoints") is not None


def _name(config: Rounds) -> str:
    return type(config).__name__.lower()

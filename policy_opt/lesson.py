"""What an update of GRPO learns from: images of its prompts, and by how much each of them beat its own group.

A group whose images are all equal has advantages of 0. It teaches nothing, and yet as an equal part of the mean that
every loss here is, it takes from the weight of the others, and keeps its pull towards the reference. So GRPO, Dr. GRPO,
GSPO and CISPO define their losses, and so they are computed. DAPO, Yu et al. (2025), arXiv:2503.14476, eq. 8, is over
groups that differ alone: with `resampling` dynamic, whatever the loss, a step draws for further prompts until it has
`prompts_per_step` such groups, and nothing else has a part in the update:

    differs    of some reward the deviation in the group is above its floor, and so does the reward made of them all
    is learnt  the first `prompts_per_step` groups that differ, in the order drawn; what a last draw has beyond is left
    too few    after `max_draws` draws the mean is over the groups there are; others fill their places and count 0

Every image drawn is counted, scored and in the ledger. Draws of one step have seeds of their own. All processes see all
scores, so that they decide alike, and learn what the others drew too; the update does not depend on their number.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor

from rwk.policy_opt.advantage import combine, group_advantage, group_spread, order_summary, summary, weights_of
from rwk.policy_opt.advantage import standardised as is_standardised
from rwk.policy_opt.calibrated import gate, win_rate
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.curriculum import Curriculum, Stage
from rwk.policy_opt.generator import Generator, Rollout
from rwk.policy_opt.guards import diversity
from rwk.policy_opt.journal import Journal, derived_seed
from rwk.policy_opt.ledger import Ledger, top
from rwk.policy_opt.modalities import modality_weights
from rwk.policy_opt.off_policy import drift
from rwk.policy_opt.permuted import draw_permuted
from rwk.policy_opt.policy import Policy, Statistics, World, kl_per_image
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.scored_draws import Scored, scored
from rwk.policy_opt.sub_policies import by_recipe, draw_mixed
from rwk.policy_opt.token_weights import pull_weights, token_weights
from rwk.policy_opt.variety import fields, likeness, with_variety
from rwk.rewards.base import Reward


class Lesson(NamedTuple):
    """What one process learns from in an update."""

    rollout: Rollout
    """As many groups as it has prompts of a step."""
    advantage: Tensor
    """[B] of its rows, or [B, L] of their tokens."""
    counts: Tensor | None = None
    """[B] how much a row counts in the mean that the loss is, of mean 1 over all processes or 0; None is 1 for each."""
    pull: Tensor | None = None
    """[B, L] how much of beta a token feels; None is all of it."""


class _Drawn(NamedTuple):
    """One draw."""

    rollout: Rollout
    """Of this process."""
    scores: Tensor
    """[rows, rewards] of all processes."""
    orders: Tensor
    """[rows, J, 2] likewise, as in `Columns`."""
    alike: Tensor
    """[rows] likewise, as of `likeness`; none where nobody asks."""
    waited: float
    """Seconds spent on nothing but scores."""


def first_that_teach(teaches: Tensor, places: int) -> tuple[Tensor, int]:
    """Numbers [places] of the groups of an update, and how many of them, the first ones, are learnt from.

    Args:
        teaches: [P] bool of all groups drawn, at least `places`.

    >>> first_that_teach(torch.tensor([False, True, False, True]), 3)
    (tensor([1, 3, 0]), 2)
    """
    learnt, filling = teaches.nonzero().flatten()[:places], (~teaches).nonzero().flatten()
    return torch.cat([learnt, filling[: places - len(learnt)]]), len(learnt)


def drawn_at_once(config: Grpo, prompts: int) -> int:
    """For how many of the prompts that a draw has in one process to draw at once."""
    return config.prompts_per_draw or (-(-prompts // 2) if config.score_meanwhile else prompts)


@dataclass(frozen=True)
class Lessons:
    """Draws the images of one step and says how much better than its group each is."""

    config: Grpo
    generator: Generator
    policy: Policy
    stages: Curriculum
    table: list[str]
    sampling: Sampling
    recipes: Sequence[Sampling]
    reference: Statistics | None
    journal: Journal
    ledger: Ledger
    place: World

    def __call__(self, handles: list[int], step: int) -> Lesson:
        """What this process learns from after `step` updates.

        Args:
            handles: of its prompts that come next, where the ledger does not choose others.
        """
        began = time.perf_counter()
        config, stage = self.config, self.stages.at(step)
        draws = list(self._draws(handles, step, stage))
        drawing = time.perf_counter() - began - sum(draw.waited for draw in draws)
        scores = torch.cat([draw.scores for draw in draws])
        group = torch.arange(len(scores) // config.group_size).repeat_interleave(config.group_size)
        reward = self._reward(scores, stage)
        self.journal.note(
            **summary(stage.rewards, scores, reward, group),
            **order_summary(stage.rewards, torch.cat([draw.orders for draw in draws])),
            **self._solved(scores, stage),
            diversity=self._diversity(draws),
        )
        alike = torch.cat([draw.alike for draw in draws])
        rollout, counts, rows = draws[0].rollout, None, torch.arange(len(scores))
        if config.resampling == "dynamic":
            places, learnt = first_that_teach(self._teaches(scores, stage), config.prompts_per_step)
            self.journal.note(draws=len(draws), groups=learnt, groups_short=config.prompts_per_step - learnt)
            rollout = self._shared_out([draw.rollout for draw in draws], places)
            rows = self._rows(places)
            counts = torch.full([len(rows)], config.prompts_per_step / max(learnt, 1))
            counts[learnt * config.group_size :] = 0
        advantage = torch.zeros(len(rows))
        kept = rows if counts is None else rows[counts > 0]
        advantage[: len(kept)] = self._advantage(reward[kept], group[kept], alike[kept] if len(alike) else alike, stage)
        self.journal.note(
            advantage=advantage[: len(kept)].abs().mean().item() if len(kept) else 0.0,
            seconds_sample=drawing,
            seconds_score=time.perf_counter() - began - drawing,
        )
        self._measure(rollout, step)
        share = slice(self.place.rank * len(rollout), (self.place.rank + 1) * len(rollout))
        own, how = advantage[share], config.token_weights
        pull = pull_weights(how, self.generator, rollout, own) if config.beta else None
        return Lesson(rollout, self._by_token(rollout, own), None if counts is None else counts[share], pull)

    def _draws(self, handles: list[int], step: int, stage: Stage) -> Iterator[_Drawn]:
        """The draws of a step: one, or with `resampling` dynamic as many as are needed and allowed."""
        config, most, found = self.config, 1, 0
        if config.resampling == "dynamic":
            left = (config.max_images - self.ledger.images) // config.rows if config.max_images else config.max_draws
            most = max(1, min(config.max_draws, left))
        for number in range(most):
            if config.resampling != "none":
                first = self.place.rank * len(handles)
                handles = self.ledger.next(step)[first : first + len(handles)]
                self.journal.note(left_out=len(self.ledger.left_out))
            draw = self._draw(handles, step, number, stage)
            drawn_for = self.place.gather(torch.tensor(handles)).tolist()
            self.ledger.record(step, [self.table[handle] for handle in drawn_for], draw.scores)
            yield draw
            found += int(self._teaches(draw.scores, stage).sum()) if most > 1 else 0
            if found >= config.prompts_per_step:
                return

    def _draw(self, handles: list[int], step: int, number: int, stage: Stage) -> _Drawn:
        """A group of images for each of these prompts, with their scores."""
        config, gather = self.config, self.place.gather
        size = drawn_at_once(config, len(handles))
        parts = [handles[start : start + size] for start in range(0, len(handles), size)]
        seed = derived_seed(config.seed, step, *[number] * (number > 0))
        drawn = (self._images(part, seed) for part in parts)
        meanwhile = config.score_meanwhile
        coming = scored(drawn, stage.rewards, meanwhile=meanwhile, seed=seed, from_pixels=config.from_pixels)
        each = list(coming)
        found = Scored.joined(each)
        alike = torch.empty(0)
        if config.diversity:
            alike = likeness(gather(torch.cat([fields(part.levels) for part in each])), config.group_size)
            self.journal.note(likeness=alike.mean().item())
        return _Drawn(
            found.rollout,
            gather(found.scores),
            gather(found.orders) if found.orders.numel() else found.orders,
            alike,
            found.waited,
        )

    def _images(self, handles: list[int], seed: int) -> tuple[Rollout, Tensor]:
        """A group for each of these prompts, and its images as 8-bit levels."""
        draw = draw_permuted if self.config.permute else type(self.generator).sample
        prompts, size = [self.table[handle] for handle in handles], self.config.group_size
        if self.recipes:
            rollout = draw_mixed(draw, self.generator, prompts, per_prompt=size, seed=seed, recipes=self.recipes)
        else:
            rollout = draw(self.generator, prompts, per_prompt=size, seed=seed, sampling=self.sampling)
        return rollout, self.generator.levels(rollout.tokens)

    def _reward(self, scores: Tensor, stage: Stage) -> Tensor:
        """[rows] one reward of several."""
        config, weights = self.config, weights_of(stage.rewards, self.config.aggregation)
        group = torch.arange(len(scores) // config.group_size).repeat_interleave(config.group_size)
        return combine(scores, weights, group, how=config.aggregation, min_std=stage.floors, lower_k=config.lower_k)

    def _teaches(self, scores: Tensor, stage: Stage) -> Tensor:
        """[groups] bool: those that differ."""
        size = self.config.group_size
        learnt = torch.tensor([part.weight != 0 for part in stage.rewards])
        _, std = group_spread(scores, size)
        reward = self._reward(scores, stage)
        better = group_advantage(reward, torch.arange(len(std)).repeat_interleave(size), scale="none") != 0
        return ((std > torch.tensor(stage.floors)) & learnt).any(1) & better.view(-1, size).any(1)

    def _advantage(self, reward: Tensor, group: Tensor, alike: Tensor, stage: Stage) -> Tensor:
        """[rows] advantages, each group against itself."""
        config = self.config
        compared = win_rate(reward, group, unit=stage.unit) if config.advantage == "win_rate" else reward
        if config.diversity:
            compared = with_variety(reward, alike, group, weight=config.diversity, min_std=config.min_std)
        weights = weights_of(stage.rewards, config.aggregation)
        whole = config.diversity > 0 or is_standardised(weights, config.aggregation)
        scale, floor = "batch" if whole else config.scale_rewards, config.min_std
        if config.std_floor and config.advantage == "score" and not whole and sum(w != 0 for w in weights) == 1:
            floor = max(floor, *(abs(w) * least for w, least in zip(weights, stage.floors, strict=True)))
        advantage = group_advantage(compared, group, baseline=config.baseline, scale=scale, min_std=floor)
        if config.gate:
            share = gate(reward, group, floor=config.gate * stage.unit)
            advantage = advantage * share
            self.journal.note(gate=share.mean().item())
        return advantage

    def _rows(self, groups: Tensor) -> Tensor:
        size = self.config.group_size
        return (groups[:, None] * size + torch.arange(size)).flatten()

    def _shared_out(self, rollouts: Sequence[Rollout], groups: Tensor) -> Rollout:
        """This process's share of some groups, which lie in the processes that drew them."""
        gather, device = self.place.gather, rollouts[0].tokens.device
        rows = self._rows(groups).chunk(self.place.size)[self.place.rank]
        handles = torch.cat([gather(torch.tensor(self.policy.handles(drawn))) for drawn in rollouts])[rows]
        tokens, logprobs = (
            torch.cat([gather(getattr(drawn, name)) for drawn in rollouts])[rows].to(device)
            for name in ("tokens", "logprobs")
        )
        group = torch.arange(len(rows) // self.config.group_size).repeat_interleave(self.config.group_size)
        return self.policy.rollout(handles, tokens, logprobs, group=group.to(rollouts[0].group.device))

    def _solved(self, scores: Tensor, stage: Stage) -> dict[str, float]:
        """The share of images that reached the top of every reward that is learnt from; none where one has no top."""
        tops = [top(part) if part.weight and isinstance(part.reward, Reward) else nan for part in stage.rewards]
        learnt = [column for column, part in enumerate(stage.rewards) if part.weight]
        wanted = torch.tensor(tops)[learnt]
        if not wanted.isfinite().all():
            return {}
        reached = ((scores[:, learnt] - wanted).abs() <= self.config.min_std).all(1)
        return {"frac_solved": reached.double().mean().item()}

    def _diversity(self, draws: Sequence[_Drawn]) -> float:
        own = [diversity(draw.rollout.tokens, self.config.group_size) for draw in draws]
        return self.place.gather(torch.tensor(own)).mean().item()

    def _measure(self, rollout: Rollout, step: int) -> None:
        """Notes how far the policy is from its reference, and, where it is not seen while learning, the drift."""
        config, gather = self.config, self.place.gather
        if self.sampling.mode == "cond_only":
            one = rollout[: config.group_size]
            apart = drift(by_recipe(self.generator.statistics), one, one.logprobs)
            self.journal.note(drift=gather(apart).mean().item())
        if self.reference and config.kl_every and step % config.kl_every == 0:
            kl = kl_per_image(by_recipe(self.generator.statistics), by_recipe(self.reference), rollout)
            self.journal.note(kl=gather(kl).mean().item())

    def _by_token(self, rollout: Rollout, own: Tensor) -> Tensor:
        """[B] the advantages, or [B, L] where tokens share theirs unequally."""
        config = self.config
        if config.token_weights != "none":
            own = own[:, None] * token_weights(config.token_weights, self.generator, self.reference, rollout, own).cpu()
        if config.text_weight is not None:
            chosen = self.generator.chosen(rollout.tokens).cpu()
            share = modality_weights(self.generator.spec, config.text_weight, chosen)
            own = (own if own.ndim == 2 else own[:, None]) * share
        return own

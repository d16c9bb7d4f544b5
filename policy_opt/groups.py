"""A step of GRPO draws its groups, has them scored, and shares them among the processes.

Every image drawn is counted, scored and in the ledger. Draws of one step have seeds of their own. All processes see all
scores, so that they decide alike, and learn what the others drew too; the update does not depend on their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rwk.policy_opt.advantage import order_summary, summary
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.curriculum import Stage
from rwk.policy_opt.generator import Generator, Rollout
from rwk.policy_opt.guards import diversity
from rwk.policy_opt.journal import Journal, derived_seed
from rwk.policy_opt.ledger import Ledger, top
from rwk.policy_opt.off_policy import drift
from rwk.policy_opt.permuted import draw_permuted
from rwk.policy_opt.policy import Policy, Statistics, World, kl_per_image
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.scored_draws import Scored, scored
from rwk.policy_opt.sub_policies import by_recipe, draw_mixed
from rwk.policy_opt.variety import fields, likeness
from rwk.rewards.base import Reward

Rows = TypeVar("Rows", Tensor, list[int])
Differ = Callable[[Tensor, Stage], Tensor]
"""From the scores [rows, R] of some groups to [groups] bool, those that something can be learnt from."""


class Drawn(NamedTuple):
    """What a step drew; all but the rollouts is of all processes, its rows draw by draw and in order of rank."""

    rollouts: list[Rollout]
    """One for each draw, of this process."""
    scores: Tensor
    """[rows, R] as in `Columns`."""
    orders: Tensor
    """[rows, J, 2] likewise."""
    likeness: Tensor
    """[rows] of `variety.likeness`; NaN where nobody asks."""


def numbered(rows: int, size: int) -> Tensor:
    """[rows] long: the number of each row's group, groups of `size` rows adjacent."""
    return torch.arange(rows // size).repeat_interleave(size)


def rows_of(groups: Tensor, size: int) -> Tensor:
    """[len(groups) * size] long: the rows of the groups of those numbers.

    >>> rows_of(torch.tensor([2, 0]), 2)
    tensor([4, 5, 0, 1])
    """
    return (groups[:, None] * size + torch.arange(size)).flatten()


def drawn_at_once(config: Grpo, prompts: int) -> int:
    """For how many of the prompts that a draw has in one process to draw at once."""
    return config.prompts_per_draw or (-(-prompts // 2) if config.score_meanwhile else prompts)


@dataclass(frozen=True)
class Groups:
    """Draws groups of images."""

    config: Grpo
    generator: Generator
    policy: Policy
    table: list[str]
    sampling: Sampling
    recipes: Sequence[Sampling]
    reference: Statistics | None
    journal: Journal
    ledger: Ledger
    place: World

    def draw(self, handles: list[int], step: int, stage: Stage, differ: Differ) -> Drawn:
        """The groups of one step; with `resampling` dynamic from as many draws as are needed and allowed.

        Args:
            handles: of this process's prompts that come next, where the ledger does not choose others.
            step: updates done.
        """
        began = time.perf_counter()
        draws: list[Drawn] = []
        waited, found = 0.0, 0
        most = self._most()
        for number in range(most):
            if self.config.resampling != "none":
                handles = self.own(self.ledger.next(step))
                self.journal.note(left_out=len(self.ledger.left_out))
            parts = list(self._scored(handles, step, number, stage))
            draws.append(self._gathered(parts))
            drawn_for = self.place.gather(torch.tensor(handles)).tolist()
            self.ledger.record(step, [self.table[handle] for handle in drawn_for], draws[-1].scores)
            waited += sum(part.waited for part in parts)
            found += int(differ(draws[-1].scores, stage).sum()) if number + 1 < most else 0
            if found >= self.config.prompts_per_step:
                break
        self.journal.note(seconds_sample=time.perf_counter() - began - waited, seconds_score=waited)
        rollouts = [rollout for draw in draws for rollout in draw.rollouts]
        scores, orders, alike = (
            torch.cat([getattr(draw, name) for draw in draws]) for name in ("scores", "orders", "likeness")
        )
        return Drawn(rollouts, scores, orders, alike)

    def _most(self) -> int:
        """Draws of the step at most."""
        config = self.config
        if config.resampling != "dynamic":
            return 1
        left = (config.max_images - self.ledger.images) // config.rows if config.max_images else config.max_draws
        return max(1, min(config.max_draws, left))

    def _scored(self, handles: list[int], step: int, number: int, stage: Stage) -> Iterator[Scored]:
        """A group of images for each of these prompts, with their scores."""
        config = self.config
        size = drawn_at_once(config, len(handles))
        parts = [handles[start : start + size] for start in range(0, len(handles), size)]
        seed = derived_seed(config.seed, step, *[number] * (number > 0))
        drawn = (self._images(part, seed) for part in parts)
        meanwhile = config.score_meanwhile
        return scored(drawn, stage.rewards, meanwhile=meanwhile, seed=seed, from_pixels=config.from_pixels)

    def _images(self, handles: list[int], seed: int) -> tuple[Rollout, Tensor]:
        """A group for each of these prompts, and its images as 8-bit levels."""
        draw = draw_permuted if self.config.permute else type(self.generator).sample
        prompts, size = [self.table[handle] for handle in handles], self.config.group_size
        if self.recipes:
            rollout = draw_mixed(draw, self.generator, prompts, per_prompt=size, seed=seed, recipes=self.recipes)
        else:
            rollout = draw(self.generator, prompts, per_prompt=size, seed=seed, sampling=self.sampling)
        return rollout, self.generator.levels(rollout.tokens)

    def _gathered(self, parts: Sequence[Scored]) -> Drawn:
        """One draw, as all processes see it."""
        config, gather = self.config, self.place.gather
        whole = Scored.joined(parts)
        scores, orders = gather(whole.scores), whole.orders
        alike = torch.full([len(scores)], nan)
        if config.diversity:
            alike = likeness(gather(fields(whole.levels)), config.group_size)
        seen = gather(orders) if orders.numel() else torch.empty(len(scores), *orders.shape[1:])
        return Drawn([whole.rollout], scores, seen, alike)

    def share(self, drawn: Drawn, groups: Tensor) -> Rollout:
        """This process's part of the groups of those numbers, which lie in the processes that drew them."""
        gather, rollouts, size = self.place.gather, drawn.rollouts, self.config.group_size
        if len(rollouts) == 1 and torch.equal(groups, torch.arange(len(drawn.scores) // size)):
            return rollouts[0]
        rows, device = self.own(rows_of(groups, size)), rollouts[0].tokens.device
        handles = torch.cat([gather(torch.tensor(self.policy.handles(part))) for part in rollouts])[rows]
        tokens, logprobs = (
            torch.cat([gather(getattr(part, name)) for part in rollouts])[rows].to(device)
            for name in ("tokens", "logprobs")
        )
        group = numbered(len(rows), size).to(rollouts[0].group.device)
        return self.policy.rollout(handles, tokens, logprobs, group=group)

    def own(self, rows: Rows) -> Rows:
        """This process's equal part of the rows, or the handles, of an update."""
        share = self.place.share(len(rows))
        return rows[share.start : share.stop]

    def note(self, drawn: Drawn, reward: Tensor, stage: Stage) -> None:
        """Notes what was drawn, and the rewards [rows] that its scores came to."""
        size, note = self.config.group_size, self.journal.note
        note(**summary(stage.rewards, drawn.scores, reward, numbered(len(reward), size)))
        note(**order_summary(stage.rewards, drawn.orders), **self._solved(drawn.scores, stage))
        own = [diversity(rollout.tokens, size) for rollout in drawn.rollouts]
        note(diversity=self.place.gather(torch.tensor(own)).mean().item())
        if self.config.diversity:
            note(likeness=drawn.likeness.mean().item())

    def _solved(self, scores: Tensor, stage: Stage) -> dict[str, float]:
        """The share of images that reached the top of every reward that is learnt from; none where one has no top."""
        tops = [top(part) if part.weight and isinstance(part.reward, Reward) else nan for part in stage.rewards]
        learnt = [column for column, part in enumerate(stage.rewards) if part.weight]
        wanted = torch.tensor(tops)[learnt]
        if not wanted.isfinite().all():
            return {}
        reached = ((scores[:, learnt] - wanted).abs() <= self.config.min_std).all(1)
        return {"frac_solved": reached.double().mean().item()}

    def measure(self, rollout: Rollout, step: int) -> None:
        """Notes how far the policy is from its reference, and, where it is not seen while learning, the drift."""
        config, gather = self.config, self.place.gather
        if self.sampling.mode == "cond_only":
            one = rollout[: config.group_size]
            apart = drift(by_recipe(self.generator.statistics), one, one.logprobs)
            self.journal.note(drift=gather(apart).mean().item())
        if self.reference and config.kl_every and step % config.kl_every == 0:
            kl = kl_per_image(by_recipe(self.generator.statistics), by_recipe(self.reference), rollout)
            self.journal.note(kl=gather(kl).mean().item())

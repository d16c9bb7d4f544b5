"""GRPO: draw a group of images for each prompt, score them, and raise the probability of what beat its own group.

For image i with reward R_i, and its token t with ratio rho_t of the probability now to that when it was drawn:

    A_i  = (R_i - mean R) / std R, both over the group of i, or by `baseline` and `scale_rewards`  `group_advantage`
    A_i  times min(1, std R / (gate T)), where the gate is on and T is the temperature of R                   `gate`
    A_it = w_it A_i, where some tokens count more, with mean_t w_it = 1                              `token_weights`
    loss = - mean_i mean_t [min(rho_t A_it, clip(rho_t, 1 - eps, 1 + eps_high) A_it) - beta v_it KL_t]
                                                     TRL's, by `loss_type`; KL_t is `kl_penalty`, and v_it is 1 but
                                                     with `token_weights` stage

Shao et al. (2024), arXiv:2402.03300. A group whose images are all equal has advantages of 0. It teaches nothing, and
yet as an equal part of the mean over i it takes from the weight of the others, and keeps its pull towards the
reference. So GRPO, Dr. GRPO, GSPO and CISPO define their losses, and so they are computed. DAPO, Yu et al. (2025),
arXiv:2503.14476, eq. 8, is over groups that differ alone: with `resampling` dynamic, whatever the loss, a step draws
for further prompts until it has `prompts_per_step` such groups, and nothing else has a part in the update:

    differs    of some reward the deviation in the group is above its floor, and so does the reward made of them all
    is learnt  the first `prompts_per_step` groups that differ, in the order drawn; what a last draw has beyond is left
    too few    after `max_draws` draws the mean is over the groups there are; others fill their places and count 0

`Lessons` has all of a step but the loss; `groups` draws for it, and `grpo_run` is the run around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from rwk.policy_opt.advantage import Weighted, combine, group_advantage, group_spread, weights_of
from rwk.policy_opt.advantage import standardised as is_standardised
from rwk.policy_opt.calibrated import gate, win_rate
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.curriculum import Curriculum, Stage
from rwk.policy_opt.generator import Generator, Rollout
from rwk.policy_opt.groups import Groups, numbered, rows_of
from rwk.policy_opt.journal import Journal, Trained
from rwk.policy_opt.modalities import modality_weights
from rwk.policy_opt.policy import Statistics
from rwk.policy_opt.run_options import Run, RunOptions
from rwk.policy_opt.settings import KlEstimator
from rwk.policy_opt.token_weights import pull_weights, token_weights
from rwk.policy_opt.variety import with_variety


def grpo(
    config: Grpo,
    generator: Generator,
    rewards: Sequence[Weighted],
    prompts: Sequence[str],
    **run: Unpack[RunOptions],
) -> Trained:
    """Tunes the generator, in place and as `out/generator`; see `learn_from_groups`, and `Run` for what it is told."""
    from rwk.policy_opt.grpo_run import learn_from_groups

    return learn_from_groups(config, generator, rewards, prompts, Run(**run))


class Lesson(NamedTuple):
    """What one process learns from in an update."""

    rollout: Rollout
    """As many groups as it has prompts of a step."""
    advantage: Tensor
    """[B] of its rows, or [B, L] of their tokens."""
    counts: Tensor
    """[B] how much a row counts in the mean that the loss is: 0, or what makes the mean over all processes 1."""
    pull: Tensor | None = None
    """[B, L] v, how much of beta a token feels; None is all of it."""


@dataclass(frozen=True)
class Lessons:
    """Draws the images of one step and says how much better than its group each is."""

    config: Grpo
    stages: Curriculum
    groups: Groups
    generator: Generator
    reference: Statistics | None
    journal: Journal

    def __call__(self, handles: list[int], step: int) -> Lesson:
        """What this process learns from after `step` updates.

        Args:
            handles: of its prompts that come next, where the ledger does not choose others.
        """
        config, stage, size = self.config, self.stages.at(step), self.config.group_size
        drawn = self.groups.draw(handles, step, stage, self._differ)
        reward = self._reward(drawn.scores, stage)
        self.groups.note(drawn, reward, stage)

        places, learnt = torch.arange(config.prompts_per_step), config.prompts_per_step
        if config.resampling == "dynamic":
            places, learnt = first_that_differ(self._differ(drawn.scores, stage), config.prompts_per_step)
            self.journal.note(draws=len(drawn.rollouts), groups=learnt, groups_short=len(places) - learnt)
        elif config.scale_rewards != "none" and not (config.diversity or config.std_floor or config.margins_count):
            self.journal.note(groups=int(self._differ(drawn.scores, stage).sum()))  # beyond rounding, for `guards`
        rows = rows_of(places, size)
        kept = rows[: learnt * size]
        advantage, counts = torch.zeros(len(rows)), torch.zeros(len(rows))
        advantage[: len(kept)] = self._advantage(reward[kept], drawn.likeness[kept], stage)
        counts[: len(kept)] = len(rows) / max(len(kept), 1)
        self.journal.note(advantage=advantage[: len(kept)].abs().mean().item() if learnt else 0.0)

        rollout = self.groups.share(drawn, places)
        self.groups.measure(rollout, step)
        own, how = self.groups.own(advantage), config.token_weights
        pull = pull_weights(how, self.generator, rollout, own) if config.beta else None
        return Lesson(rollout, self._by_token(rollout, own), self.groups.own(counts), pull)

    def _reward(self, scores: Tensor, stage: Stage) -> Tensor:
        """[rows] R, one reward of several."""
        config, weights = self.config, weights_of(stage.rewards, self.config.aggregation)
        group = numbered(len(scores), config.group_size)
        return combine(scores, weights, group, how=config.aggregation, min_std=stage.floors, lower_k=config.lower_k)

    def _differ(self, scores: Tensor, stage: Stage) -> Tensor:
        """[groups] bool: those whose images are not all equal."""
        size = self.config.group_size
        learnt = torch.tensor([part.weight != 0 for part in stage.rewards])
        _, std = group_spread(scores, size)
        better = group_advantage(self._reward(scores, stage), numbered(len(scores), size), scale="none") != 0
        return ((std > torch.tensor(stage.floors)) & learnt).any(1) & better.view(-1, size).any(1)

    def _advantage(self, reward: Tensor, likeness: Tensor, stage: Stage) -> Tensor:
        """[rows] A_i, each group against itself."""
        config, group, compared = self.config, numbered(len(reward), self.config.group_size), reward
        if config.advantage == "win_rate":
            compared = win_rate(reward, group, unit=stage.unit)
        if config.diversity:
            compared = with_variety(reward, likeness, group, weight=config.diversity, min_std=config.min_std)
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


def first_that_differ(differ: Tensor, places: int) -> tuple[Tensor, int]:
    """Numbers [places] of the groups of an update, and how many of them, the first ones, are learnt from.

    Args:
        differ: [P] bool of all groups drawn, at least `places`.

    >>> first_that_differ(torch.tensor([False, True, False, True]), 3)
    (tensor([1, 3, 0]), 2)
    """
    learnt, filling = differ.nonzero().flatten()[:places], (~differ).nonzero().flatten()
    return torch.cat([learnt, filling[: places - len(learnt)]]), len(learnt)


def kl_penalty(now: Tensor, old: Tensor | None, reference: Tensor, how: KlEstimator) -> Tensor:
    """[B, L] estimates of the divergence from the reference, by the difference d of the log-probabilities.

    k1, d, and k3, exp(-d) - 1 + d, are multiplied by the ratio to the probability when drawn, so that their gradient
    is in the mean that of the divergence, as that of k2, d^2 / 2, is; k3_plain is not multiplied. See Schulman (2020),
    http://joschu.net/blog/kl-approx.html.

    Args:
        now: [B, L] nats, with gradient.
        old: [B, L] nats when the tokens were drawn; None where nothing has moved since.
        reference: [B, L] nats.
    """
    d = now - reference
    ratio = (now - (now.detach() if old is None else old)).exp()
    if how == "k2":
        return d.square() / 2
    if how == "k1":
        return ratio * d
    k3 = (-d).exp() - 1 + d
    return k3 if how == "k3_plain" else ratio * k3

"""REBEL: draw images for each prompt, score and pair them, and learn by how much the better is better; then again.

For two images i and j of one prompt, with rewards R, and log-probabilities l now and r under the reference, which is
the policy that drew them, or with `reference` fixed the generator that the run began with:

    loss = ([(l_i - r_i) - (l_j - r_j)] / eta - [R_i - R_j])^2                                         `rebel_loss`

An update takes its mean over prompts of the mean over the pairs of each, which over all pairs of n images is twice the
variance of d_i = (l_i - r_i) / eta - R_i, with n - 1 below. Where it is 0 for every pair, the policy is the reference
reweighted by exp(eta R), which of the policy that drew is a step of mirror descent. DPO learns from which image is
better, this from by how much as well, so `eta` depends on the unit of the reward.

Gao et al. (2024), arXiv:2404.16767; their code minimises eta^2 times this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Rebel
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.journal import Trained
from rwk.policy_opt.rounds import learn_in_rounds
from rwk.policy_opt.run_options import Run, RunOptions


def rebel(
    config: Rebel,
    generator: Generator,
    rewards: Sequence[Weighted],
    prompts: Sequence[str],
    **run: Unpack[RunOptions],
) -> Trained:
    """Tunes the generator, in place and as `out/generator`; see `learn_in_rounds`, and `Run` for what it is told."""
    from rwk.policy_opt.trl_bridge import rebel_trainer

    return learn_in_rounds(config, rebel_trainer, generator, rewards, prompts, Run(**run))


def rebel_loss(won: Tensor, lost: Tensor, margin: Tensor, weight: Tensor, *, eta: float) -> Tensor:
    """[] mean squared error of the rewards' differences of weighted pairs, as the policy implies them.

    Args:
        won: [P] nats: log-probability of the better image of a pair less that under the reference.
        lost: [P] nats: the same of the worse image.
        margin: [P] by how much the reward of the better image is larger.
        weight: [P].
        eta: nats for each unit of reward.

    >>> import torch
    >>> one = torch.ones(1)
    >>> rebel_loss(3 * one, -one, 0.5 * one, one, eta=2.0)
    tensor(2.2500)
    """
    return (weight * ((won - lost) / eta - margin).square()).mean()

"""DPO: draw images for each prompt, score and pair them, and learn to prefer the better of each pair; then again.

For a pair of images won and lost of one prompt, with log-probabilities l now and r under the reference, which is the
policy that drew them, or with `reference` fixed the generator that the run began with:

    loss = - log sigmoid(beta [(l_won - r_won) - (l_lost - r_lost)])                            TRL's, by `loss_type`

An update takes its mean over prompts of the mean over the pairs of each                               `PreferencePairs`
With soft labels, where q is the probability by the reward's calibration that people prefer the image that won, it is
- q log sigmoid(z) - (1 - q) log sigmoid(-z) of the same z                                          `soft_label_loss`
By margins it is - m / mean m log sigmoid(z - offset m), either part of which may be off                `margin_loss`

Rafailov et al. (2023), arXiv:2305.18290; with an offset, Amini et al. (2024), arXiv:2402.10571; `ipo`, Azar et al.
(2023), arXiv:2310.12036, per token in TRL: ((l_won - r_won - l_lost + r_lost) / L - 1 / (2 beta))^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor
from torch.nn.functional import logsigmoid

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Dpo
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.journal import Trained
from rwk.policy_opt.rounds import learn_in_rounds
from rwk.policy_opt.run_options import Run, RunOptions


def dpo(
    config: Dpo,
    generator: Generator,
    rewards: Sequence[Weighted],
    prompts: Sequence[str],
    **run: Unpack[RunOptions],
) -> Trained:
    """Tunes the generator, in place and as `out/generator`; see `learn_in_rounds`, and `Run` for what it is told."""
    from rwk.policy_opt.trl_bridge import dpo_trainer

    return learn_in_rounds(config, dpo_trainer, generator, rewards, prompts, Run(**run))


def margin_loss(won: Tensor, lost: Tensor, margin: Tensor, weight: Tensor, *, beta: float, offset: float) -> Tensor:
    """[] mean loss of DPO of weighted pairs, whose better image is to be ahead by as much as its reward is.

    Args:
        won: [P] nats: log-probability of the better image of a pair less that under the reference.
        lost: [P] nats: the same of the worse image.
        margin: [P] by how much the reward of the better image is larger.
        weight: [P].
        beta: how dearly a step away from the reference must be paid.
        offset: log-odds for each unit of the margin.

    >>> import torch
    >>> one = torch.ones(1)
    >>> margin_loss(4 * one, one, one, 2 * one, beta=0.5, offset=1.5)
    tensor(1.3863)
    """
    return -(weight * logsigmoid(beta * (won - lost) - offset * margin)).mean()

"""Rejection-sampling fine-tuning: draw images for each prompt, score them, and learn to draw the best; then again.

With the best images of each group by the reward, log-probabilities l_t of their tokens, and L tokens an image:

    loss = - mean over the images kept of 1/L sum_t l_t                                                     `rft_loss`

What best of n gains is so put into the weights, and no image is learnt to be avoided: the cheap row that DPO and GRPO
have to beat. RAFT, Dong et al. (2023), arXiv:2304.06767.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Rft
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.journal import Trained
from rwk.policy_opt.rounds import learn_in_rounds
from rwk.policy_opt.run_options import Run, RunOptions


def rft(
    config: Rft,
    generator: Generator,
    rewards: Sequence[Weighted],
    prompts: Sequence[str],
    **run: Unpack[RunOptions],
) -> Trained:
    """Tunes the generator, in place and as `out/generator`; see `learn_in_rounds`, and `Run` for what it is told."""
    from rwk.policy_opt.trl_bridge import rft_trainer

    return learn_in_rounds(config, rft_trainer, generator, rewards, prompts, Run(**run))


def rft_loss(logprobs: Tensor, weight: Tensor) -> Tensor:
    """[] mean of the negative log-probabilities [B, L] of the tokens of the images that were kept, weighted by [B].

    >>> import torch
    >>> rft_loss(torch.tensor([[-1.0, -3.0], [-2.0, 0.0]]), torch.ones(2))
    tensor(1.5000)
    """
    return -(weight[:, None] * logprobs).mean()

"""How far the distribution that is trained lies from the one that was drawn from, and weights that make up for it.

With log-probabilities l of the trainer, by teacher forcing, and s of the sampler, by its cache, of the same weights:

    drift   mean_t |l_t - s_t|       rounding, which no weight is asked to make up for, and what a broken cache shows by
    gap     mean_t (s_t - l_t)       in mode `cond_only`, whose l is not guided: in the mean KL(guided, conditional) / L
    weight  min(exp(l_t - s_t), C)                                                                 `truncated_weights`

Truncated importance sampling, Ionides (2008), doi:10.1198/106186008X320456.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rwk.policy_opt.generator import Rollout
from rwk.policy_opt.policy import Statistics


def drift(statistics: Statistics, rollout: Rollout, trained: Tensor) -> Tensor:
    """[B] nats a token: mean distance of teacher forcing from the sampler, guided as the sampler is.

    Args:
        statistics: of the generator as it was when it drew the rollout.
        trained: [B, L] log-probabilities under `rollout.sampling`, which are taken where they are guided.
    """
    if rollout.sampling.mode == "cond_only":
        with torch.no_grad():
            recipes = tuple(replace(recipe, mode="matched") for recipe in rollout.recipes)
            matched = replace(rollout, sampling=replace(rollout.sampling, mode="matched"), recipes=recipes)
            trained = statistics(matched).logprobs
    return (trained - rollout.logprobs).abs().mean(1)


def truncated_weights(trained: Tensor, drawn: Tensor, cap: float, *, whole: bool = False) -> Tensor:
    """[B, L] weights without gradient: the probability under the trainer over that under the sampler, at most `cap`.

    Args:
        trained: [B, L] nats, by the weights that drew.
        drawn: [B, L] nats, of the sampler.
        cap: C, above which a ratio counts as C.
        whole: [B, 1] instead, of the mean over the tokens, as the ratio of GSPO is.

    >>> import torch
    >>> truncated_weights(torch.tensor([[-1.0, -1.0, -4.0]]), torch.tensor([[-1.0, -3.0, -2.0]]), 2.0)
    tensor([[1.0000, 2.0000, 0.1353]])
    """
    ahead = trained.detach() - drawn
    return (ahead.mean(1, keepdim=True) if whole else ahead).exp().clamp(max=cap)

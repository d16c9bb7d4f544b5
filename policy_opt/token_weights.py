"""How much each token of an image counts in the loss of GRPO: weights [B, L], without gradient, of mean 1 in every row.

A row of mean 1 keeps the advantage of its image, and so the size of the update: only where it acts is changed.

* gcpo: the tokens that other tokens hang on: the first tenth, the tenth where the entropy, smoothed over its cross of
  five on the code grid, changes most, and the tenth that the group agrees on least; among them the mean so far of
  exp(l - r), the ratio to the reference held to 0.5 nats either way. GCPO (2025), as its authors' code is reported
  to have it; the paper has the mean of the held l - r itself, which is about 0 where the policy is about the reference.
* stage: (1 - c) / 2, where c is the mean cosine of the token's code with those at its place in the images of the group
  on the other side of their mean: what good and bad images share is not what made them so. Of beta such a token feels
  the share 1/2 + min(1 + c, 1) / 2, not divided by a mean: what they share is held fast. STAGE (2025),
  arXiv:2509.25027, and krennic999/STAGE at 579e5cf, grpo_trainer.py, lines 1039 to 1078, with `kl_reweight`, as its
  scripts have it; an image that has nobody on the other side, where that divides by 0, is here as any other.
* panw: 1 / n^alpha for a token that is drawn with n - 1 others, such as 1 / (h w)^alpha in a scale of h times w. VAR RL
  Done Right (2026), arXiv:2601.02256.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from rwk.policy_opt.generator import Generator, Rollout
from rwk.policy_opt.policy import Statistics
from rwk.policy_opt.settings import TokenWeights

SHARE = 0.1
"""Share of the tokens that each of GCPO's three rules keeps."""
HELD = 0.5
"""Nats to which GCPO holds the log-ratio to the reference."""


def token_weights(
    how: TokenWeights, generator: Generator, reference: Statistics | None, rollout: Rollout, advantage: Tensor
) -> Tensor:
    """[B, L] weights of a rollout's tokens.

    Args:
        how: gcpo, stage or panw.
        generator: as it was when it drew the rollout.
        reference: of gcpo.
        advantage: [B].
    """
    if how == "panw":
        return panw(generator.spec.steps).to(rollout.tokens.device).expand(rollout.tokens.shape)
    codes = generator.code_embeddings().to(rollout.tokens.device)[rollout.tokens]
    if how == "stage":
        return stage(codes, advantage.to(codes.device), rollout.group)
    if reference is None:
        raise ValueError("token weights gcpo need a reference, got none.")
    with torch.no_grad():
        now, began = generator.statistics(rollout), reference(rollout)
    return gcpo(now.logprobs, began.logprobs, now.entropy, codes, rollout.group)


def pull_weights(how: TokenWeights, generator: Generator, rollout: Rollout, advantage: Tensor) -> Tensor | None:
    """[B, L] how much of beta a rollout's tokens feel; None where it is all. Arguments as in `token_weights`."""
    if how != "stage":
        return None
    codes = generator.code_embeddings().to(rollout.tokens.device)[rollout.tokens]
    return stage_pull(codes, advantage.to(codes.device), rollout.group)


def check_token_weights(how: TokenWeights, generator: Generator) -> None:
    """Raises ValueError where a generator has not what the weights are made of."""
    spec = generator.spec
    if how == "panw" and not spec.steps:
        raise ValueError(
            f"token weights panw are for generators that draw several tokens at a time, got {spec.name}, which draws "
            f"one; take gcpo, stage or none."
        )
    if how == "gcpo" and spec.steps:
        raise ValueError(
            f"token weights gcpo are for generators that draw one token after another, row by row, got {spec.name}, "
            f"which draws several at a time; take panw, stage or none."
        )
    if how == "gcpo":
        grid_side(spec.tokens)
    if how in ("gcpo", "stage"):
        generator.code_embeddings()


def gcpo(logprobs: Tensor, reference: Tensor, entropy: Tensor, codes: Tensor, group: Tensor) -> Tensor:
    """[B, L] weights, 0 at the tokens that no rule keeps.

    Args:
        logprobs: [B, L] nats.
        reference: [B, L] nats.
        entropy: [B, L] nats, of a square grid row by row.
        codes: [B, L, d] embeddings of the tokens.
        group: [B] long: rows of one prompt have the same number.
    """
    ratio = (logprobs - reference).clamp(-HELD, HELD).exp()
    places = torch.arange(1, ratio.shape[1] + 1, device=ratio.device)
    return mean_one((ratio.cumsum(1) / places) * gcpo_kept(entropy, codes, group))


def gcpo_kept(entropy: Tensor, codes: Tensor, group: Tensor) -> Tensor:
    """[B, L] bool: the tokens that one of the three rules keeps; arguments as in `gcpo`."""
    rows, length = entropy.shape
    count = max(1, round(SHARE * length))
    kept = torch.zeros(rows, length, dtype=torch.bool, device=entropy.device)
    kept[:, :count] = True
    kept.scatter_(1, steepness(entropy).topk(count, dim=1).indices, True)
    return kept.scatter_(1, agreement(codes, group).topk(count, dim=1, largest=False).indices, True)


def steepness(entropy: Tensor) -> Tensor:
    """[B, L] length of the gradient, by central differences, of the entropy smoothed over a cross of five.

    Beyond the edge of the grid lies its nearest token.
    """
    side = grid_side(entropy.shape[1])

    def around(grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        framed = pad(grid[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        return framed[:, :-2, 1:-1], framed[:, 2:, 1:-1], framed[:, 1:-1, :-2], framed[:, 1:-1, 2:]

    grid = entropy.unflatten(1, (side, side))
    up, down, left, right = around((grid + sum(around(grid))) / 5)
    return torch.hypot((down - up) / 2, (right - left) / 2).flatten(1)


def agreement(codes: Tensor, group: Tensor) -> Tensor:
    """[B, L] mean cosine between every two images of the row's group at each place; 1 in a group of one.

    Args:
        codes: [B, L, d].
        group: [B] long.
    """
    unit, found = normalize(codes.float(), dim=2), torch.ones(codes.shape[:2], device=codes.device)
    for number in torch.unique(group):
        rows = (group == number).nonzero().flatten().to(codes.device)
        if (n := len(rows)) > 1:
            together = unit[rows].sum(0).square().sum(-1)  # [L]: n of a row with itself, and every two twice
            found[rows] = ((together - unit[rows].square().sum((0, 2))) / (n * (n - 1))).expand(n, -1)
    return found


def stage(codes: Tensor, advantage: Tensor, group: Tensor) -> Tensor:
    """[B, L] weights; 1 in a row with no image on the other side.

    Args:
        codes: [B, L, d] embeddings of the tokens.
        advantage: [B].
        group: [B] long: rows of one prompt have the same number.
    """
    weights = (1 - opposed(codes, advantage, group)) / 2
    return mean_one(weights.clamp(min=0).nan_to_num(1.0))  # a cosine is rounded


def stage_pull(codes: Tensor, advantage: Tensor, group: Tensor) -> Tensor:
    """[B, L] share of beta, 1/2 to 1; 1 in a row with no image on the other side. Arguments as in `stage`."""
    return (0.5 + (1 + opposed(codes, advantage, group)).clamp(0, 1) / 2).nan_to_num(1.0).detach()


def opposed(codes: Tensor, advantage: Tensor, group: Tensor) -> Tensor:
    """[B, L] mean cosine with the images of the group on the other side of their mean, or on it; NaN without any."""
    unit = normalize(codes.float(), dim=2)
    found = torch.full(codes.shape[:2], torch.nan, device=codes.device)
    for row in range(len(codes)):
        others = (group == group[row]).to(codes.device) & (advantage * advantage[row] <= 0)
        others[row] = False
        if others.any():
            found[row] = (unit[others] * unit[row]).sum(2).mean(0)
    return found


def panw(steps: Sequence[int], *, alpha: float = 0.7) -> Tensor:
    """[L] weights of the tokens of draws of n tokens, one draw after another, each 1 / n^alpha over their mean.

    >>> panw([1, 4], alpha=1.0)
    tensor([2.5000, 0.6250, 0.6250, 0.6250, 0.6250])
    """
    weights = [n**-alpha for n in steps for _ in range(n)]
    return mean_one(torch.tensor([weights]))[0]


def mean_one(weights: Tensor) -> Tensor:
    """[B, L] the weights, at least 0, over the mean of their row, without gradient; 1 where a row is all 0."""
    weights = weights.detach()
    mean = weights.mean(1, keepdim=True)
    return torch.where(mean > 1e-6, weights / mean.clamp(min=1e-6), torch.ones_like(weights))  # below is rounding


def grid_side(tokens: int) -> int:
    """Side of the square grid of that many tokens; raises ValueError where there is none."""
    if isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"token weights gcpo need a square grid of codes, got {tokens} tokens; take stage or none.")
    return isqrt(tokens)

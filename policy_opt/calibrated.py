"""What calibration changes in learning: the reward in log-odds of a human preference, and what follows from it.

A margin m of the reward has the probability q(m) = sigmoid(m / unit) that people prefer the one image, where `unit` is
the margin that makes log-odds of 1: the temperature of a single reward, 1 for a reward mixed in log-odds. From it come

    kappa = min(1, sd_group / (C unit))            share that is kept of a group's advantages            `gate`
    R_i   = mean over the others j of q(r_i - r_j)  how often image i would be preferred in its group     `win_rate`
    q(m) >= tau                                    pairs that are kept                                   `confident`
    q(m) instead of 1                              label of a pair, in the loss of `soft_label_loss`     `q`

None of it is needed where one reward is standardised within its group: r / T has the same advantages as r.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwk.calibration.preference_scale import preference_scale
from rwk.calibration.retest_noise import retest_noise
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.pairs import Pairs
from rwk.policy_opt.settings import Aggregation
from rwk.rewards.base import Reward
from rwk.rewards.losses import bradley_terry_loss


def with_card(rewards: Sequence[Weighted], *, temperature: bool, noise: bool) -> list[Weighted]:
    """The rewards with what `rwk calibrate` and `rwk probe` keep of them, where it is asked for; not of pair judges.

    Raises:
        ValueError: where a reward has none of it.
    """
    found = []
    for part in rewards:
        if isinstance(part.reward, Reward):
            scale = preference_scale(part.name, part.reward).temperature if temperature else part.temperature
            found.append(
                part._replace(temperature=scale, noise=retest_noise(part.name, part.reward) if noise else part.noise)
            )
        else:
            found.append(part)
    return found


def preference_unit(rewards: Sequence[Weighted], how: Aggregation) -> float:
    """The margin of the combined reward that makes log-odds of 1.

    Raises:
        ValueError: where several rewards are not mixed in log-odds, or one has no temperature.
    """
    active = [part for part in rewards if part.weight]
    if how == "log_odds":
        return 1.0
    if len(active) != 1:
        raise ValueError(
            f"how sure a margin of several rewards is, is known for the aggregation log_odds alone, got {how} of "
            f"{len(active)}; take --aggregation log_odds or one reward."
        )
    return abs(active[0].weight) * active[0].known_temperature


def q(margin: Tensor, unit: float) -> Tensor:
    """Probability that people prefer the image that is ahead by that margin; same shape."""
    return torch.sigmoid(margin / unit)


def gate(reward: Tensor, group: Tensor, *, floor: float) -> Tensor:
    """[B] min(1, deviation of the row's group / floor), which is 0 in a group without two scored rows.

    Divided by its deviation, a group whose rewards differ by noise gets advantages as large as any other; this takes
    them back. The deviation is that with n - 1.

    Args:
        reward: [B], NaN where there is none.
        group: [B] long: rows of one prompt have the same number.
        floor: above 0, in the unit of the reward.

    >>> gate(torch.tensor([0.0, 2.0, 0.0, 0.2]), torch.tensor([0, 0, 1, 1]), floor=1.0)
    tensor([1.0000, 1.0000, 0.1414, 0.1414])
    """
    share = torch.zeros_like(reward)
    for number in torch.unique(group):
        rows = group == number
        scored = reward[rows & ~reward.isnan()].double()
        share[rows] = float(scored.std() / floor) if len(scored) > 1 else 0.0
    return share.clamp(max=1)


def win_rate(reward: Tensor, group: Tensor, *, unit: float) -> Tensor:
    """[B] mean probability that a row is preferred to another of its group; NaN where there is none to compare.

    Args:
        reward: [B], NaN where there is none; such rows count for no other.
        group: [B] long: rows of one prompt have the same number.
        unit: margin that makes log-odds of 1.

    >>> win_rate(torch.tensor([0.0, 0.0, 100.0]), torch.tensor([4, 4, 4]), unit=1.0)
    tensor([0.2500, 0.2500, 1.0000])
    """
    rate = torch.full_like(reward, torch.nan)
    for number in torch.unique(group):
        rows = ((group == number) & ~reward.isnan()).nonzero().flatten()
        if len(rows) > 1:
            scores = reward[rows]
            wins = q(scores[:, None] - scores[None, :], unit).fill_diagonal_(0)
            rate[rows] = wins.sum(1) / (len(rows) - 1)
    return rate


def confident(pairs: Pairs, tau: float, unit: float) -> Pairs:
    """The pairs whose better image is preferred with a probability of at least tau."""
    keep = q(pairs.margin, unit) >= tau
    return Pairs(pairs.won[keep], pairs.lost[keep], pairs.margin[keep])


def soft_label_loss(won: Tensor, lost: Tensor, p_won: Tensor, weight: Tensor, *, beta: float) -> Tensor:
    """[] mean loss of DPO of weighted pairs whose label is a probability.

    Of a pair it is - p log s(z) - (1 - p) log s(-z) with z = beta (won - lost). It is least where z is the log-odds of
    the label, so a pair that people would be divided on is not driven apart without end. With labels of 1 it is DPO,
    with 1 - e throughout cDPO (Mitchell, 2023).

    Args:
        won: [P] nats: log-probability of the better image of a pair less that under the reference.
        lost: [P] nats: the same of the worse image.
        p_won: [P] probability that the better image is preferred, 0..1.
        weight: [P].
        beta: how dearly a step away from the reference must be paid.

    >>> one = torch.ones(1)
    >>> soft_label_loss(2 * one, -2 * one, 0.75 * one, one, beta=0.5)
    tensor(0.6269)
    """
    return (weight * bradley_terry_loss(beta * (won - lost), p_won)).mean()

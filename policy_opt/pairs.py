"""Preference pairs from scored rollouts: which row won over which other row of its group, and by how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Rows of a rollout in pairs; as long as there are pairs."""

    won: Tensor
    """[P] long: row of the better image."""
    lost: Tensor
    """[P] long: row of the worse image of the same prompt."""
    margin: Tensor
    """[P] float32, above 0: by how much the reward differs."""

    def __len__(self) -> int:
        return self.won.numel()


class PreferencePairs(NamedTuple):
    """What DPO and REBEL learn from."""

    handles: Tensor
    """[P] long: index of the prompt in the policy's table."""
    won: Tensor
    """[P, L] long: tokens of the better image."""
    lost: Tensor
    """[P, L] long."""
    reference_won: Tensor
    """[P] float32: log-probability of the better image in the reference."""
    reference_lost: Tensor
    """[P] float32."""
    margin: Tensor
    """[P] float32: by how much the reward differs."""
    p_won: Tensor
    """[P] float32: probability that people prefer the better image; 1 where nobody asked."""


def best_worst(reward: Tensor, group: Tensor, *, min_margin: float = 0.0) -> Pairs:
    """At most one pair a group: its best row over its worst, the first of equals.

    Args:
        reward: [B]; rows of NaN take no part.
        group: [B] long: rows of one prompt have the same number.
        min_margin: a pair is kept when its rewards differ by more than this, so ties never are.

    >>> best_worst(torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1]))
    Pairs(won=tensor([1]), lost=tensor([0]), margin=tensor([2.]))
    """
    _check_rows(reward, group)
    won, lost = [], []
    for rows in _groups(reward, group):
        won.append(rows[reward[rows].argmax()])
        lost.append(rows[reward[rows].argmin()])
    return _kept(reward, won, lost, min_margin)


def all_pairs(reward: Tensor, group: Tensor, *, min_margin: float = 0.0) -> Pairs:
    """Every two rows of a group whose rewards differ by more than `min_margin`; arguments as for `best_worst`.

    >>> len(all_pairs(torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1])))
    3
    """
    _check_rows(reward, group)
    won, lost = [], []
    for rows in _groups(reward, group):
        for first, second in torch.combinations(rows):
            better = reward[first] >= reward[second]
            won.append(first if better else second)
            lost.append(second if better else first)
    return _kept(reward, won, lost, min_margin)


RULES: dict[str, Callable[..., Pairs]] = {"best_worst": best_worst, "all": all_pairs}
"""The pair rules by the name they have in a config."""


def _groups(reward: Tensor, group: Tensor) -> list[Tensor]:
    """The scored rows of each group that has any, in the order of the group numbers."""
    scored = ~reward.isnan()
    rows = [((group == number) & scored).nonzero().flatten() for number in torch.unique(group)]
    return [row for row in rows if row.numel()]


def _kept(reward: Tensor, won: list[Tensor], lost: list[Tensor], min_margin: float) -> Pairs:
    first = torch.stack(won) if won else torch.zeros(0, dtype=torch.long)
    second = torch.stack(lost) if lost else torch.zeros(0, dtype=torch.long)
    margin = reward[first] - reward[second]
    keep = margin > min_margin
    return Pairs(first[keep], second[keep], margin[keep])


def _check_rows(reward: Tensor, group: Tensor) -> None:
    if reward.ndim != 1 or reward.shape != group.shape:
        raise ValueError(
            f"pairs need one reward and one group number per row, got shapes {tuple(reward.shape)} and "
            f"{tuple(group.shape)}; flatten both to [B]."
        )

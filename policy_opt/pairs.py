"""Preference pairs from scored rollouts: which row won over which other row of its group, and by how much."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rwk.policy_opt.configs import Pairwise, Rft, Rounds


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
    """What DPO, REBEL and rejection sampling learn from: N prompts with as many pairs C each, filled up by repetition.

    All comparisons of one prompt go into one update and weigh together what those of another do, as in Ouyang et al.
    (2022), arXiv:2203.02155, section 3.5; an image of several pairs then goes through the model once.
    """

    handles: Tensor
    """[N] long: index of the prompt in the policy's table."""
    won: Tensor
    """[N, C, L] long: tokens of the better image."""
    lost: Tensor
    """[N, C, L] long."""
    reference_won: Tensor
    """[N, C] float32: log-probability of the better image in the reference."""
    reference_lost: Tensor
    """[N, C] float32."""
    margin: Tensor
    """[N, C] float32: by how much the reward differs."""
    p_won: Tensor
    """[N, C] float32: probability that people prefer the better image; 1 where nobody asked."""
    weight: Tensor
    """[N, C] float32, of mean 1 for each prompt: its different pairs weigh the same."""


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


def top_bottom(reward: Tensor, group: Tensor, *, k: int = 2, min_margin: float = 0.0) -> Pairs:
    """Each of the k best rows of a group over each of its k worst, as far as it has 2 k; arguments as for `best_worst`.

    Args:
        k: a group of n scored rows has at most n // 2 on each side.

    >>> top_bottom(torch.tensor([1.0, 3.0, 2.0, 5.0]), torch.zeros(4).long(), k=1)
    Pairs(won=tensor([3]), lost=tensor([0]), margin=tensor([4.]))
    """
    _check_rows(reward, group)
    won, lost = [], []
    for rows in _groups(reward, group):
        ranked, side = rows[reward[rows].argsort(descending=True, stable=True)], min(k, len(rows) // 2)
        for best, worst in itertools.product(ranked[:side], ranked[len(rows) - side :]):
            won.append(best)
            lost.append(worst)
    return _kept(reward, won, lost, min_margin)


def best_of_group(reward: Tensor, group: Tensor, *, k: int, min_margin: float = 0.0) -> Pairs:
    """The k best rows of a group, each over the worst of it, so that a group of equals gives none; as `best_worst`.

    >>> best_of_group(torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1]), k=2)
    Pairs(won=tensor([1, 2]), lost=tensor([0, 0]), margin=tensor([2., 1.]))
    """
    _check_rows(reward, group)
    won, lost = [], []
    for rows in _groups(reward, group):
        ranked = rows[reward[rows].argsort(descending=True, stable=True)]
        won += list(ranked[:k])
        lost += [ranked[-1]] * len(ranked[:k])
    return _kept(reward, won, lost, min_margin)


RULES: dict[str, Callable[..., Pairs]] = {"best_worst": best_worst, "top_bottom": top_bottom, "all": all_pairs}
"""The pair rules by the name they have in a config."""


def mined(config: Rounds, reward: Tensor, group: Tensor) -> Pairs:
    """What a round learns from, by its settings: pairs, or for `Rft` the best of each group over its worst."""
    if isinstance(config, Rft):
        return best_of_group(reward, group, k=config.keep, min_margin=config.min_margin)
    if not isinstance(config, Pairwise):
        raise TypeError(f"no pairs are known of {type(config).__name__}.")
    more = {"k": config.pair_k} if config.pairs == "top_bottom" else {}
    return RULES[config.pairs](reward, group, min_margin=config.min_margin, **more)


def filled(group: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of each group, those of a smaller group again from its first on, and the weights that make up for it.

    Args:
        group: [P] long: pairs of one prompt have the same number.

    Returns:
        [N, C] long, the number of a pair, groups in ascending order; and [N, C] float32, its weight, of mean 1.

    >>> filled(torch.tensor([0, 1, 1, 1]))
    (tensor([[0, 0, 0],
            [1, 2, 3]]), tensor([[1., 1., 1.],
            [1., 1., 1.]]))
    """
    _, place, count = torch.unique(group, return_inverse=True, return_counts=True)
    most = int(count.max())
    first = count.cumsum(0) - count
    which = torch.arange(most) % count[:, None]  # [N, C]
    times = (most - which + count[:, None] - 1) // count[:, None]  # that each pair is there
    return place.argsort(stable=True)[first[:, None] + which], most / (count[:, None] * times)


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

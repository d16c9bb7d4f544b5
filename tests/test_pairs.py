"""Pairs from scores, by cases that were worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rwk.policy_opt.pairs import RULES, Pairs, all_pairs, best_worst, top_bottom

NAN = float("nan")


def rows(pairs: Pairs) -> list[tuple[int, int]]:
    return list(zip(pairs.won.tolist(), pairs.lost.tolist(), strict=True))


def test_best_worst() -> None:
    """One pair a group, whose rows need not be adjacent, with its margin."""
    pairs = best_worst(torch.tensor([0.5, 1.0, 0.25, 4.0, 2.0, 3.0]), torch.tensor([7, 3, 7, 3, 3, 7]))
    assert rows(pairs) == [(3, 1), (5, 2)]
    assert pairs.margin.tolist() == [3.0, 2.75]
    assert len(pairs) == 2


def test_all_pairs() -> None:
    """Every two rows of a group, the better one won."""
    pairs = all_pairs(torch.tensor([2.0, 1.0, 3.0, 9.0]), torch.tensor([0, 0, 0, 1]))
    assert sorted(rows(pairs)) == [(0, 1), (2, 0), (2, 1)]


def test_top_bottom() -> None:
    """Each of the k best over each of the k worst, by two loops; a small group has half of its rows on each side."""
    reward = torch.tensor([2.0, 9.0, 1.0, 7.0, 5.0, 3.0, 4.0, 6.0])
    group = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    expected = []
    for rows_of in ([0, 1, 2, 3, 4], [5, 6, 7]):
        ranked = sorted(rows_of, key=lambda row: -reward[row])
        k = min(2, len(ranked) // 2)
        expected += [(best, worst) for best in ranked[:k] for worst in ranked[-k:]]
    assert rows(top_bottom(reward, group, k=2)) == expected
    assert expected[-1] == (7, 5)


@pytest.mark.parametrize("rule", RULES.values())
def test_ties_and_gaps(rule: Callable[..., Pairs]) -> None:
    """Ties make no pair, rows of NaN take no part, nor does a group with one score or none."""
    reward = torch.tensor([1.0, 1.0, NAN, 5.0, NAN, NAN, 2.0, NAN, 0.0])
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])
    assert rows(rule(reward, group)) == [(6, 8)]


@pytest.mark.parametrize("rule", RULES.values())
def test_margin(rule: Callable[..., Pairs]) -> None:
    """A difference equal to the margin is not enough."""
    reward, group = torch.tensor([0.0, 0.5, 0.0, 0.75]), torch.tensor([0, 0, 1, 1])
    assert rows(rule(reward, group, min_margin=0.5)) == [(3, 2)]
    assert rows(rule(reward, group, min_margin=1.0)) == []


@pytest.mark.parametrize("rule", RULES.values())
def test_refuses_other_shapes(rule: Callable[..., Pairs]) -> None:
    """Rewards of another shape than the groups are refused with both shapes."""
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        rule(torch.zeros(3), torch.zeros(2, dtype=torch.long))

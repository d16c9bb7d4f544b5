"""Advantages by cases that were worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from rwk.adapters.pixels import Contrast
from rwk.policy_opt.advantage import Weighted, combine, floors_of, group_advantage, score_all, weights_of
from rwk.policy_opt.settings import Scale
from rwk.rewards.combine import WeightedSum

NAN = float("nan")


def test_group() -> None:
    """Each row less the mean of its group, over the deviation of the group with n - 1."""
    advantage = group_advantage(torch.tensor([1.0, 10.0, 3.0, 40.0]), torch.tensor([5, 2, 5, 2]))
    assert advantage.tolist() == pytest.approx([-(0.5**0.5), -(0.5**0.5), 0.5**0.5, 0.5**0.5])


class Infinite(Contrast):
    """A reward that overflows."""

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        return torch.tensor([float("inf"), -float("inf"), 2.0, 3.0])[: len(images)]


def test_an_infinite_score_is_none() -> None:
    """It is counted with the images that have no score, and takes no other image's advantage away."""
    levels, group = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4).long()
    scores = score_all([Weighted("a", Infinite())], levels, [""] * 4, group).scores
    assert scores[:, 0].isnan().tolist() == [True, True, False, False]
    half = 0.5**0.5
    assert group_advantage(combine(scores, [1.0], group), group).tolist() == pytest.approx([0, 0, -half, half])


def test_batch() -> None:
    """One deviation for all groups, about their own means: (2 + 450) / 2 here."""
    advantage = group_advantage(torch.tensor([1.0, 10.0, 3.0, 40.0]), torch.tensor([5, 2, 5, 2]), scale="batch")
    assert advantage.tolist() == pytest.approx([value / 226**0.5 for value in (-1, -15, 1, 15)])


def test_against_the_others() -> None:
    """RLOO: each reward less the mean of the others of its group, by a loop; a row without a reward counts nowhere."""
    reward = torch.tensor([1.0, 10.0, 3.0, 40.0, NAN, 8.0, 7.0])
    group = torch.tensor([5, 2, 5, 2, 5, 5, 9])
    expected = []
    for row, value in enumerate(reward.tolist()):
        others = [reward[j].item() for j in range(7) if j != row and group[j] == group[row] and not reward[j].isnan()]
        expected.append(value - sum(others) / len(others) if others and value == value else 0.0)
    advantage = group_advantage(reward, group, baseline="others", scale="none")
    assert advantage.tolist() == pytest.approx(expected)
    assert expected[:4] == [-4.5, -30.0, -1.5, 30.0]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_others_are_further_away(scale: Scale) -> None:
    """Against the others an advantage is n / (n - 1) of that against the whole group, however it is scaled."""
    reward, group = torch.tensor([0.1, 0.9, 0.4, 0.2, 0.8]), torch.tensor([0, 0, 0, 1, 1])
    whole = group_advantage(reward, group, scale=scale)
    others = group_advantage(reward, group, baseline="others", scale=scale)
    assert torch.allclose(others, whole * torch.tensor([1.5, 1.5, 1.5, 2.0, 2.0]))


def test_gaps() -> None:
    """A row without a reward has advantage 0 and leaves those of its group as they would be without it."""
    reward = torch.tensor([1.0, NAN, 3.0, NAN, 7.0])
    for scale in ("group", "batch", "none"):
        advantage = group_advantage(reward, torch.tensor([0, 0, 0, 1, 1]), scale=scale)  # type: ignore[arg-type]
        assert advantage[[1, 3, 4]].tolist() == [0, 0, 0]
        assert advantage[2] == -advantage[0] > 0


def test_noise_is_not_blown_up() -> None:
    """Rounding residue in a group stays far below 1, and an exact tie is 0."""
    reward = torch.tensor([0.3, 0.3 + 3e-8, 0.7, 0.7, 0.7])
    advantage = group_advantage(reward, torch.tensor([0, 0, 1, 1, 1]), min_std=1e-4)
    assert 0 < advantage[1] < 1e-3
    assert advantage[2:].tolist() == [0, 0, 0]


def test_one_reward_keeps_its_unit() -> None:
    """A single reward is passed on as it is, beside others of weight 0."""
    scores = torch.tensor([[1.0, NAN], [3.0, 5.0]])
    assert combine(scores, [2.0, 0.0], torch.tensor([0, 0])).tolist() == [2.0, 6.0]


def test_several_rewards_count_alike() -> None:
    """Normalised, a reward in hundreds and one in hundredths weigh the same; added as they are, the first decides."""
    scores = torch.tensor([[100.0, 0.02], [300.0, 0.01]])
    group = torch.tensor([0, 0])
    assert combine(scores, [1.0, 1.0], group).tolist() == pytest.approx([0, 0], abs=0.02)
    assert combine(scores, [1.0, 1.0], group, how="sum").tolist() == pytest.approx([100.02, 300.01])


def test_a_reward_counts_as_often_as_it_says() -> None:
    """Standardised, 3*a is a, and -3*a is -a; beside another it counts three times. Otherwise its scores say it."""
    plain = Weighted("contrast", Contrast())
    thrice, turned = (Weighted("x", WeightedSum({"contrast": Contrast()}, [w])) for w in (3.0, -3.0))
    assert weights_of([thrice, plain, turned, thrice._replace(weight=0.0)], "normalise") == [3, 1, 3, 0]
    assert weights_of([thrice, plain._replace(weight=0.0)], "normalise") == [1, 0]
    assert weights_of([thrice, plain], "sum") == weights_of([thrice, plain], "lower_bound") == [1, 1]
    several = WeightedSum({"a": Contrast(), "b": Contrast()}, [3.0, 3.0])
    assert weights_of([Weighted("x", several), plain], "normalise") == [1, 1]


def test_a_missing_reward() -> None:
    """Normalised, it counts as the mean of its group; added, the row has none."""
    scores = torch.tensor([[1.0, 2.0], [3.0, NAN], [NAN, NAN], [2.0, 4.0]])
    group = torch.zeros(4, dtype=torch.long)
    mixed = combine(scores, [1.0, 1.0], group)
    assert mixed[1] == pytest.approx(1.0)
    assert mixed.isnan().tolist() == [False, False, True, False]
    assert combine(scores, [1.0, 1.0], group, how="sum").isnan().tolist() == [False, True, True, False]


def test_refuses_nonsense() -> None:
    """Scores of another shape, and weights of nothing but 0, are refused."""
    with pytest.raises(ValueError, match=r"got \(2,\) for 2 rows and 1 weights"):
        combine(torch.zeros(2), [1.0], torch.zeros(2))
    with pytest.raises(ValueError, match=r"other than 0, got \[0\.0\]"):
        combine(torch.zeros(2, 1), [0.0], torch.zeros(2))


def test_gdpo_by_hand() -> None:
    """Each reward over its own deviation or floor, a reward that does not apply left out, summed, over the batch's."""
    scores = torch.tensor([[0.0, 5.0], [2.0, NAN], [4.0, 5.001], [1.0, 3.0], [1.0, 5.0], [1.0, 1.0]])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    floors, weights = [0.5, 0.1], [1.0, 2.0]
    summed = [0.0] * 6
    for rows in ([0, 1, 2], [3, 4, 5]):
        for column in range(2):
            values = {row: scores[row, column].item() for row in rows if not scores[row, column].isnan()}
            mean = sum(values.values()) / len(values)
            std = (sum((value - mean) ** 2 for value in values.values()) / (len(values) - 1)) ** 0.5
            for row, value in values.items():
                summed[row] += weights[column] * (value - mean) / max(std, floors[column])
    found = combine(scores, weights, group, min_std=floors)
    assert found.tolist() == pytest.approx(summed, abs=1e-4)
    means = [sum(summed[:3]) / 3] * 3 + [sum(summed[3:]) / 3] * 3
    spread = (sum((s - m) ** 2 for s, m in zip(summed, means, strict=True)) / 4) ** 0.5
    advantage = group_advantage(found, group, scale="batch")
    expected = [(s - m) / spread for s, m in zip(summed, means, strict=True)]
    assert advantage.tolist() == pytest.approx(expected, abs=1e-4)
    assert abs(found[2]) < abs(combine(scores, weights, group)[2])  # 0.001 is noise of the second reward


def test_floors() -> None:
    """One floor for each reward that is learnt from, none below min_std; their number is checked."""
    parts: list[Any] = [Weighted("a", None, 1.0), Weighted("gold", None, 0.0), Weighted("b", None, 2.0)]
    assert floors_of(parts, (0.5, 0.0), min_std=0.1) == [0.5, 0.1, 0.1]
    assert floors_of(parts, (), min_std=0.1) == [0.1] * 3
    with pytest.raises(ValueError, match="got 3 for 2"):
        floors_of(parts, (1.0, 1.0, 1.0), min_std=0.1)

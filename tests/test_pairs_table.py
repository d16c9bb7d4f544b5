"""Tables of pairs: what goes in, what is left out, and which ways of turning and splitting them change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rwk.calibration.pairs import PairTable, score_preferences
from rwk.rewards.base import Reward, RewardSpec
from rwk.rewards.data import Preference, PreferenceDataset

NAN = float("nan")


def table() -> PairTable:
    return PairTable(
        [2.0, -1.0, 0.0, 4.0],
        [1, 0.25, 0.5, 0],
        prompt=["a", "a", "b", "c"],
        weight=[1, 2, 3, 4],
        slices={"kind": ["x", "y", "y", "x"]},
        covariates={"saturation": [0.5, -0.5, 0.0, 1.0]},
        generator_first=["g", "g", "h", "h"],
        generator_second=["h", "h", "g", "h"],
    )


class Counting(Reward):
    """Mean red; remembers what it was asked."""

    spec = RewardSpec("counting", "red", 0, 1, "n/a", "n/a", needs_prompt=False)

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    @classmethod
    def tiny(cls) -> Counting:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        self.asked += prompts
        return torch.tensor([np.asarray(image)[..., 0].mean() / 255 for image in images])


def test_a_pair_without_a_score_is_left_out_and_counted() -> None:
    """NaN on either side drops the pair from every column, and the table knows how many it lost."""
    made = PairTable.from_scores(
        torch.tensor([1.0, NAN, 3.0, 5.0]),
        np.array([0.5, 1.0, NAN, 1.0]),
        [1, 0, 1, 0],
        prompt=["a", "b", "c", "d"],
        slices={"kind": ["x", "y", "x", "y"]},
    )
    assert made.margin.tolist() == [0.5, 4.0]
    assert made.label.tolist() == [1, 0]
    assert made.prompt.tolist() == ["a", "d"]
    assert made.slices["kind"].tolist() == ["x", "y"]
    assert made.unscored == 2


def test_only_votes_for_an_image_are_decided() -> None:
    """A label of 0.5 is a tie unless said otherwise, and ties take their weight out of what is decided."""
    assert table().tie.tolist() == [0, 0, 1, 0]
    assert table().decided.tolist() == [1, 2, 0, 4]
    split = PairTable([1.0, 1.0], [0.5, 1], tie=[0, 0.25])
    assert split.decided.tolist() == [1, 0.75]


def test_turning_pairs_round_twice_changes_nothing() -> None:
    """A flip negates margins and covariates, swaps labels and generators, and is undone by itself."""
    before, mask = table(), [True, False, True, True]
    turned = before.flip(mask)
    assert turned.margin.tolist() == [-2, -1, 0, -4]
    assert turned.label.tolist() == [0, 0.25, 0.5, 1]
    assert turned.covariates["saturation"].tolist() == [-0.5, -0.5, 0, -1]
    assert turned.generator_first is not None
    assert turned.generator_first.tolist() == ["h", "g", "g", "h"]
    assert turned.tie.tolist() == before.tie.tolist()
    again = turned.flip(mask)
    for name in ("margin", "label", "tie", "weight", "prompt", "generator_first", "generator_second"):
        assert getattr(again, name).tolist() == getattr(before, name).tolist(), name


def test_no_prompt_is_on_both_sides_of_a_split() -> None:
    """A split keeps every pair, holds out that share of the prompts, and does not depend on the order of the pairs."""
    prompts = [f"p{i % 20}" for i in range(100)]
    whole = PairTable(np.arange(100.0), np.arange(100) % 2, prompt=prompts)
    inside, outside = whole.split(held_out=0.25, seed=0)
    assert (len(inside), len(outside)) == (75, 25)
    assert not set(inside.prompt) & set(outside.prompt)
    assert set(whole.take(np.arange(99, -1, -1)).split(held_out=0.25, seed=0)[1].prompt) == set(outside.prompt)
    assert set(whole.split(held_out=0.25, seed=1)[1].prompt) != set(outside.prompt)
    with pytest.raises(ValueError, match="at least 2 prompts, got 1"):
        PairTable([1.0, 2.0], [1, 0], prompt=["a", "a"]).split(held_out=0.5, seed=0)


def test_one_pair_of_each_prompt() -> None:
    """Every prompt gives one of its pairs, and over seeds each of them."""
    whole = PairTable(np.arange(12.0), np.ones(12), prompt=[f"p{i % 4}" for i in range(12)])
    drawn = [whole.one_per_prompt(seed=seed) for seed in range(40)]
    assert all(sorted(part.prompt) == ["p0", "p1", "p2", "p3"] for part in drawn)
    assert {margin for part in drawn for margin in part.margin} == set(range(12))


def test_preferences_become_a_table(tmp_path: Path) -> None:
    """Images are scored once for each prompt; a row whose image cannot be read is left out."""
    for i in range(4):
        Image.new("RGB", (4, 4), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = [("a", 3, 0, 1.0), ("a", 0, 1, 0.0), ("b", 0, 3, 0.5), ("b", 2, "broken", 1.0)]
    rows = [Preference(p, tmp_path / f"{i}.png", tmp_path / f"{j}.png", y, 2.0) for p, i, j, y in names]
    data, reward = PreferenceDataset(rows), Counting()
    scored: list[int] = []
    made = PairTable.from_preferences(data, *score_preferences(reward, data, advance=scored.append))
    assert sorted(reward.asked) == ["a", "a", "a", "b", "b", "b"]
    assert sum(scored) == 7
    np.testing.assert_allclose(made.margin, np.array([180, -60, -180]) / 255, atol=1e-6)
    assert made.prompt.tolist() == ["a", "a", "b"]
    assert made.weight.tolist() == [2, 2, 2]
    assert made.tie.tolist() == [0, 0, 1]
    assert made.unscored == 1
    assert made.generator_first is None
    named = PreferenceDataset([row._replace(generator_first="x", generator_second=row.prompt) for row in rows])
    table = PairTable.from_preferences(named, *score_preferences(reward, named))
    assert table.generator_first is not None
    assert table.generator_second is not None
    assert table.generator_first.tolist() == ["x"] * 3
    assert table.generator_second.tolist() == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"margin": [1.0, NAN]}, "margin must be finite, got nan in row 1"),
        ({"margin": [[1.0], [2.0]]}, r"margin must have the shape \[N\], got \[2, 1\]"),
        ({"label": [1]}, r"label must have the shape \[2\], got \[1\]"),
        ({"label": [0, 1.5]}, r"label must be in 0\.\.1, got 1.5 in row 1"),
        ({"weight": [1, -1]}, "weight must be in 0..inf, got -1 in row 1"),
        ({"tie": [2, 0]}, r"tie must be in 0\.\.1, got 2 in row 0"),
        ({"prompt": ["a"]}, "prompt must have one name a pair, got 1 for 2 pairs"),
        ({"slices": {"kind": ["x"]}}, "slice kind must have one name a pair, got 1 for 2 pairs"),
        ({"covariates": {"size": [1, NAN]}}, "covariate size must be finite, got nan in row 1"),
    ],
)
def test_what_is_no_table_is_refused(columns: dict[str, Any], expected: str) -> None:
    """NaN, other shapes, and values outside their range are a sentence with the column and the row."""
    given = {"margin": [1.0, 2.0], "label": [1, 0]} | columns
    with pytest.raises(ValueError, match=expected):
        PairTable(given.pop("margin"), given.pop("label"), **given)


def test_a_table_is_not_changed() -> None:
    """Columns cannot be written, and the caller's array stays the caller's."""
    margin = np.array([1.0, 2.0])
    made = PairTable(margin, [1, 0])
    margin[0] = 5
    assert made.margin.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        made.margin[0] = 7

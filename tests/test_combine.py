"""Combinations: what they compute, what they show of their parts, and how their names are read."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.combine import Combination, LowerBound, Minimum, Standardised, WeightedSum
from rwk.rewards.contract import check_reward
from rwk.rewards.registry import load


class Given(Reward):
    """Scores that are given, by the level of grey of an image; NaN with a note where none is."""

    def __init__(
        self, levels: dict[int, float], low: float = 0, high: float = 10, *, unit: str = "points", asks: bool = False
    ) -> None:
        super().__init__()
        self.levels = levels
        self.calls = 0
        self.spec = RewardSpec("given", unit, low, high, "n/a", f"source {unit}", needs_prompt=asks)

    @classmethod
    def tiny(cls) -> Given:
        return cls({})

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        self.calls += 1
        values = [self.levels.get(int(np.asarray(image)[0, 0, 0]), math.nan) for image in images]
        return Scores(torch.tensor(values), ["no level" if math.isnan(value) else "" for value in values])


def greys(*levels: int) -> list[Image.Image]:
    return [Image.new("RGB", (2, 2), (level, level, level)) for level in levels]


def given(*values: Sequence[float], **options: float) -> dict[str, Reward]:
    """Parts a, b, ... with one score for each of the greys 0, 1, ..."""
    rows = zip("abcdef", values, strict=False)
    return {name: Given(dict(enumerate(row)), **options) for name, row in rows}  # type: ignore[arg-type]


VALUES = ([1.0, 5.0, 9.0], [3.0, 5.0, 2.0], [8.0, 5.0, 4.0])


@pytest.mark.parametrize(
    ("combination", "expected"),
    [
        (WeightedSum(given(*VALUES), [0.5, -2, 1]), np.array([0.5, -2, 1]) @ np.array(VALUES)),
        (Minimum(given(*VALUES)), np.min(VALUES, 0)),
        (LowerBound(given(*VALUES), k=1.5), np.mean(VALUES, 0) - 1.5 * np.std(VALUES, 0)),
        (LowerBound(given(*VALUES), k=0), np.mean(VALUES, 0)),
        (Standardised(given(VALUES[0]), mean=4, sd=2.5), (np.array(VALUES[0]) - 4) / 2.5),
    ],
)
def test_value(combination: Combination, expected: np.ndarray) -> None:
    """Each combination is its formula, as numpy computes it."""
    scores = combination.score(greys(0, 1, 2))
    np.testing.assert_allclose(scores.values, expected, rtol=1e-6)
    assert scores.notes == ["", "", ""]


@pytest.mark.parametrize("kind", [WeightedSum, Minimum, LowerBound, Standardised])
def test_tiny_keeps_the_contract(kind: type[Combination]) -> None:
    """The tiny form of each combination passes every check."""
    check_reward(kind.tiny())


def test_parts_are_scored_once_and_shown() -> None:
    """`score_parts` gives every part at every depth and the whole, and runs a part that occurs twice once a batch."""
    parts = given(*VALUES)
    inner = Minimum({"a": parts["a"], "b": parts["b"]})
    whole = WeightedSum({"min(a,b)": inner, "a": parts["a"], "c": parts["c"]}, [1, 1, 2])
    scores = whole.score_parts(greys(0, 1, 2), batch_size=2)
    assert list(scores) == ["a", "b", "min(a,b)", "c", "min(a,b)+a+2*c"]
    assert {name: found.values.tolist() for name, found in scores.items()} == {
        "a": VALUES[0],
        "b": VALUES[1],
        "c": VALUES[2],
        "min(a,b)": [1, 5, 2],
        "min(a,b)+a+2*c": [18, 20, 19],
    }
    assert [part.calls for part in parts.values()] == [2, 2, 2]  # type: ignore[attr-defined]
    assert torch.equal(whole.combine(scores).values, whole.score(greys(0, 1, 2)).values)
    assert whole.parts() == {"min(a,b)": inner, "a": parts["a"], "c": parts["c"]}


def test_nan_of_a_part_is_nan_of_the_whole() -> None:
    """Where a part has no score the whole has none, and the note names the part and its reason."""
    parts = given(*VALUES)
    parts["b"] = Given({0: 1.0})
    parts["c"] = Given({0: 1.0, 2: 1.0})
    for combination in (WeightedSum(parts, [1, 1, 1]), Minimum(parts), LowerBound(parts)):
        scores = combination.score(greys(0, 1, 2))
        assert scores.values.isnan().tolist() == [False, True, True]
        assert scores.notes == ["", "b: no level; c: no level", "b: no level"]


def test_nan_without_a_note_still_names_the_part() -> None:
    """A part that gives no reason is named all the same."""
    silent = {"a": Scores(torch.tensor([1.0, math.nan]), ["", ""])}
    assert Standardised(given([1.0]), mean=0, sd=1).combine(silent).notes == ["", "a: no score"]


def test_notes_of_parts_with_a_score_are_kept() -> None:
    """What a part says of an image that it scored reaches the whole."""
    parts = {"a": Scores(torch.tensor([2.0]), ["dark"]), "b": Scores(torch.tensor([1.0]), [""])}
    scores = Minimum(given([1.0], [1.0])).combine(parts)
    assert scores.values.tolist() == [1]
    assert scores.notes == ["a: dark"]


def test_an_image_that_cannot_be_decoded() -> None:
    """A broken file has no score in the whole, and none in any part."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "BMP")
    whole = load("contrast+2*exposure")
    broken = [Image.open(io.BytesIO(file.getvalue()[:4000])), *greys(3)]
    scores = whole.score_parts(broken)
    assert [part.values.isnan().tolist() for part in scores.values()] == [[True, False]] * 3
    assert scores["contrast+2*exposure"].notes[0].startswith("contrast: cannot be decoded: ")
    assert whole.score(broken).notes[0].startswith("cannot be decoded: ")


def test_spec_comes_from_the_parts() -> None:
    """Unit, licence, source and prompts of the whole are those of the parts."""
    asking, plain = Given({}, unit="stars", asks=True), Given({})
    asking.example_prompts = ("a red circle",)
    total = WeightedSum({"p": plain, "q": asking}, [0.25, -3])
    assert total.spec == RewardSpec(
        "0.25*p+-3*q", "0.25 [points] + -3 [stars]", -30, 2.5, "n/a", "source points; source stars", needs_prompt=True
    )
    assert total.example_prompts == ("a red circle",)
    with pytest.raises(ValueError, match="got 1 images and 0 prompts"):
        total.score(greys(0))
    assert WeightedSum(given([1.0], [1.0]), [0.5, 0.5]).spec.unit == "points"
    assert Minimum(given([1.0], [1.0])).spec.unit == "points"
    assert Standardised(given([1.0]), mean=0, sd=1).spec.unit == "standard deviations"


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_bounds_hold_and_are_tight(low: float) -> None:
    """Over all corners of the parts' ranges no score leaves the range, and the range is reached or nearly so."""
    corners = list(itertools.product([low, 3.0], repeat=6))
    parts = given(*zip(*corners, strict=True), low=low, high=3)
    for combination, slack in (
        (WeightedSum(parts, [1, -2, 0.5, 1, -1, 3]), 1e-5),
        (Minimum(parts), 1e-5),
        (LowerBound(parts, k=2), 0.1),  # the least needs a share of low parts that six parts do not give
        (LowerBound(parts, k=0), 1e-5),
        (Standardised({"a": parts["a"]}, mean=1, sd=4), 1e-5),
    ):
        values = combination.score(greys(*range(len(corners)))).values
        spec = combination.spec
        assert spec.low - 1e-5 <= values.min() <= spec.low + slack * (spec.high - spec.low)
        assert spec.high - slack <= values.max() <= spec.high + 1e-5


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-math.inf, 0, [(-math.inf, math.inf), (-math.inf, 0), (-math.inf, 0), (-math.inf, -0.5)]),
        (0, math.inf, [(-math.inf, math.inf), (0, math.inf), (-math.inf, math.inf), (-0.5, math.inf)]),
    ],
)
def test_open_ranges(low: float, high: float, expected: list[tuple[float, float]]) -> None:
    """Ranges without an end give ranges without an end, and never NaN."""
    parts = given([1.0], [1.0], low=low, high=high)
    found = [
        WeightedSum(parts, [1, -1]),
        Minimum(parts),
        LowerBound(parts),
        Standardised({"a": parts["a"]}, mean=1, sd=2),
    ]
    assert [(combination.spec.low, combination.spec.high) for combination in found] == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSum(given([1.0]), [0]), r"0\*a needs weights that are finite and not 0, got 0"),
        (lambda: WeightedSum(given([1.0]), [math.inf]), "finite"),
        (lambda: WeightedSum(given([1.0]), [1, 2]), "one weight per part, got 2 for 1 parts"),
        (lambda: WeightedSum({}, []), "got 0 for 0 parts"),
        (lambda: Minimum(given([1.0])), r"min\(a\) needs two parts or more, got 1"),
        (
            lambda: Minimum({"a": Given({}), "b": Given({}, unit="stars")}),
            "parts of one unit, got points and stars; stand",
        ),
        (lambda: LowerBound({"a": Given({}), "b": Given({}, unit="stars")}), "parts of one unit, got points and stars"),
        (lambda: LowerBound(given([1.0], [1.0]), k=-1), "k that is finite and at least 0, got -1"),
        (lambda: Standardised(given([1.0]), mean=0, sd=0), "sd above 0, got mean 0 and sd 0"),
        (lambda: Standardised(given([1.0], [1.0]), mean=0, sd=1), "one part, got 2"),
        (lambda: Minimum({"a": Given({}), "m": Minimum(given([1.0], [1.0]))}), "two that are called a; rename one"),
        (lambda: Minimum({'a"': Given({}), "b": Given({})}), 'holds a ", which no expression can hold'),
    ],
)
def test_what_makes_no_combination(make: object, message: str) -> None:
    """A combination that means nothing is refused in one sentence."""
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]

"""Every registered pair judge keeps its contract, the contract catches what breaks it, and bad input is told."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.calibration.margin_judge import Margin
from rwk.policy_opt.calibrated import q
from rwk.rewards import registry
from rwk.rewards.base import Scores
from rwk.rewards.examples import every_mode, truncated
from rwk.rewards.pair_contract import CHECKS, check_pair_judge, pair_checks_for
from rwk.rewards.pair_judge import JUDGES, PairJudge, is_pair_judge, names, pair_spec


@cache
def judge(name: str) -> PairJudge:
    return JUDGES.target(name).tiny()


CASES = [pytest.param(name, check, id=f"{name}-{check}") for name in names() for check in pair_checks_for(judge(name))]


@pytest.mark.parametrize(("name", "check"), CASES)
def test_contract(name: str, check: str) -> None:
    """The judge keeps this clause of the contract."""
    CHECKS[check](judge(name))


def test_the_suite_is_not_empty() -> None:
    """Every check has its turn, and each judge most of them."""
    assert {case.values[1] for case in CASES} == set(CHECKS)
    assert len(CASES) >= 16 * len(names())


def brightness(image: Image.Image) -> float:
    return float(np.asarray(image, dtype=np.float64).mean() / 255)


class Right(PairJudge):
    """The brighter image is better, and the first place is worth something."""

    spec = pair_spec("brighter", "n/a", "made up", needs_prompt=False)

    @classmethod
    def tiny(cls) -> PairJudge:
        return cls()

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        margins = [brightness(a) - brightness(b) for a, b in zip(first, second, strict=True)]
        return torch.tensor(margins).mul(3).add(0.5).sigmoid()


class Blind(Right):
    """Looks at the second image alone."""

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        return super()._compare([Image.new("RGB", (8, 8))] * len(first), second, prompts)


class Relative(Right):
    """Holds a pair against the others of its batch."""

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        found = super()._compare(first, second, prompts)
        assert isinstance(found, Tensor)
        return found / found.max()


class Margins(Right):
    """Gives margins in place of probabilities."""

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        return torch.tensor([brightness(a) - brightness(b) for a, b in zip(first, second, strict=True)])


class Silent(Right):
    """Does not say why it has no answer."""

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        found = super()._compare(first, second, prompts)
        assert isinstance(found, Tensor)
        return found.masked_fill(torch.tensor([image.width < 3 for image in first]), torch.nan)


class Seeded(Right):
    """Draws from the global generator."""

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        return torch.rand(len(first))


def test_a_right_judge_is_not_blamed() -> None:
    """One that likes the first place keeps the contract: that is for both orders to undo."""
    check_pair_judge(Right())


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Blind(), "check_sees_both_images"),
        (Relative(), "check_ignores_neighbours as second"),
        (Relative(), "check_ignores_batch_size as first"),
        (Margins(), "check_answers_a_probability"),
        (Margins(), "check_stays_in_range as first"),
        (Silent(), "check_nan_has_a_note as first"),
        (Seeded(), "check_leaves_global_state as first"),
        (Seeded(), "check_ignores_global_state as first"),
    ],
)
def test_what_breaks_the_contract_is_caught(broken: PairJudge, check: str) -> None:
    """Each fault is named by its check."""
    with pytest.raises(AssertionError, match=f"{check}: "):
        check_pair_judge(broken)


def test_every_picture_is_seen_as_a_person_sees_it() -> None:
    """Modes are turned into RGB on both sides, and a broken file on either side is NaN, with its side in the note."""
    images = every_mode()
    plain = [each.convert("RGB") for each in images[:2]]
    found = Right().compare([images[1], images[0]], [images[0], images[1]]).values
    assert torch.equal(found, Right().compare(plain[::-1], plain).values)
    values, notes = Right().compare([truncated("PNG"), plain[0], plain[0]], [plain[0], plain[1], truncated("JPEG")])
    assert values.isnan().tolist() == [True, False, True]
    assert [note[:18] for note in notes] == ["the first image ca", "", "the second image c"]


def test_bad_input_is_one_sentence() -> None:
    """Numbers that do not fit, no list, no prompts and no batch are told with what came."""
    image = Image.new("RGB", (4, 4))
    with pytest.raises(ValueError, match="needs a second image for every first, got 2 and 1; repeat"):
        Right().compare([image] * 2, [image])
    with pytest.raises(ValueError, match="got 1 images and 2 prompts"):
        Right().compare([image], [image], ["a", "b"])
    with pytest.raises(ValueError, match="needs a list of images"):
        Right().compare([image], image)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size of at least 1, got 0"):
        Right().compare([image], [image], batch_size=0)
    with pytest.raises(ValueError, match=r"must return one number per image, got values of shape \(1,\)"):
        Short().compare([image] * 2, [image] * 2)


class Short(Right):
    """Answers one pair of a batch."""

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        return torch.tensor([0.5])


def test_a_judge_has_its_names() -> None:
    """Registered, with what follows an @, and as module:Class; a reward's name, a folder and a mapping are none."""
    assert all(map(is_pair_judge, ["margin", "margin@contrast", "rwk.calibration.margin_judge:Margin"]))
    others = [
        "contrast",
        "runs/margin",
        "2*contrast+noise",
        "rwk.adapters.pixels:Contrast",
        "C:/x",
        "nothing:There",
        "",
    ]
    assert not any(map(is_pair_judge, others))
    with pytest.raises(ValueError, match=r"unknown judge 'margn'; did you mean margin\?"):
        JUDGES.load("margn")


def test_a_margin_is_worth_what_calibration_says() -> None:
    """P is sigmoid(margin / T) of the reward's own scores, and the two orders of a pair add up to 1."""
    images = [
        Image.fromarray(np.full((9, 9, 3), level, np.uint8) * np.arange(9, dtype=np.uint8)[:, None])
        for level in (3, 9, 2)
    ]
    made = Margin.of("contrast", registry.load("contrast"), temperature=0.2)
    scores = registry.load("contrast").score(images).values
    first, second = [images[0], images[1], images[2]], [images[1], images[0], images[2]]
    found = made.compare(first, second).values
    assert torch.allclose(found, q(scores - scores[[1, 0, 2]], 0.2))
    assert found[:2].sum().item() == pytest.approx(1)
    assert found[2] == 0.5
    assert (made.spec.name, made.spec.needs_prompt) == ("margin@contrast", False)


def test_a_margin_asks_its_reward_once_for_each_image() -> None:
    """Pairs of few images of a prompt are scored image by image; under another prompt an image is another."""
    reward: Any = registry.load("shapes.verifier")
    asked: list[str] = []
    score = reward._score
    reward._score = lambda images, prompts: asked.extend(prompts) or score(images, prompts)
    images = [Image.new("RGB", (48, 48), color) for color in ("red", "blue", "white")]
    made = Margin.of("shapes.verifier", reward, temperature=1.0)
    pairs = [(0, 1), (1, 2), (2, 0), (0, 1)]
    prompts = ["a red circle"] * 3 + ["a blue square"]
    made.compare([images[i] for i, _ in pairs], [images[j] for _, j in pairs], prompts)
    assert sorted(asked) == ["a blue square"] * 2 + ["a red circle"] * 3


def test_a_margin_of_what_has_no_score_says_why() -> None:
    """The side is named, and the reward's own note follows."""
    image, thin = Image.new("RGB", (9, 9)), Image.new("RGB", (1, 1))
    made = Margin.of("noise", registry.load("noise"), temperature=1.0)
    values, notes = made.compare([image, thin], [thin, image])
    assert values.isnan().all()
    assert [note.split(":")[0] for note in notes] == [f"the {side} image has no score" for side in ("second", "first")]


def test_a_margin_needs_a_calibrated_reward() -> None:
    """Without a reward, a calibration or a temperature above 0 it says what to do."""
    with pytest.raises(ValueError, match="name it as margin@REWARD"):
        JUDGES.load("margin")
    with pytest.raises(ValueError, match="run `rwk calibrate contrast`"):
        JUDGES.load("margin@contrast")
    with pytest.raises(ValueError, match="temperature above 0, got 0"):
        JUDGES.load("margin@contrast", temperature=0)
    assert JUDGES.load("margin@contrast", temperature=1).spec == Margin.tiny().spec

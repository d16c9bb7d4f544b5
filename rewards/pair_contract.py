"""The contract of a pair judge as checks that run: `check_pair_judge` for a plug-in's own tests, `CHECKS` for a suite.

A judge that is shown every image beside one and the same other image is a reward, and has to keep a reward's contract:
range, repeatability, global state, neighbours, order and size of the batch. So most checks are those of
`rewards.contract`, with the images in the first place, and some once more with them in the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from PIL import Image

from rwk.rewards import contract
from rwk.rewards.base import Reward, Scores
from rwk.rewards.checking import require, run_checks
from rwk.rewards.contract import Check, checks_for
from rwk.rewards.examples import ordinary
from rwk.rewards.global_state import restored, seed_everything
from rwk.rewards.pair_judge import PairJudge

PairCheck = Callable[[PairJudge], None]
Place = Literal["first", "second"]


class Beside(Reward):
    """The probability that an image is better than one fixed image, by a pair judge, as a reward."""

    def __init__(self, judge: PairJudge, place: Place) -> None:
        """
        Args:
            place: where the image that is scored is shown.
        """
        super().__init__()
        self.judge, self.place, self.spec = judge, place, judge.spec
        self.example_prompts = judge.example_prompts
        self.other = ordinary(self)[0][-1].convert("RGB")

    @classmethod
    def tiny(cls) -> Reward:
        raise NotImplementedError("a pair judge has its own `tiny`")

    def example_images(self) -> list[Image.Image]:
        return self.judge.example_images()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        pairs = (images, [self.other] * len(images))
        first, second = pairs if self.place == "first" else pairs[::-1]
        found = self.judge.compare(first, second, prompts, batch_size=len(images))
        return found if self.place == "first" else Scores(1 - found.values, found.notes)


def check_pair_judge(judge: PairJudge) -> None:
    """Runs every check that the judge's spec calls for.

    Raises:
        AssertionError: naming each check that failed, and what it saw.
    """
    run_checks(judge, pair_checks_for(judge), f"{judge.spec.name} breaks the contract of a pair judge")


def pair_checks_for(judge: PairJudge) -> dict[str, PairCheck]:
    """The checks that apply to a judge, by name."""
    reward_checks = {check.__name__ for check in checks_for(judge.spec)}
    names = [name for name in CHECKS if name.partition(" as ")[0] in reward_checks or " as " not in name]
    return {name: CHECKS[name] for name in names if judge.spec.deterministic or name != "check_tiny_is_repeatable"}


def check_answers_a_probability(judge: PairJudge) -> None:
    """The spec's range is 0 to 1, and so is every answer."""
    require((judge.spec.low, judge.spec.high) == (0, 1), f"the range is {judge.spec.low} to {judge.spec.high}")
    images, prompts = ordinary(Beside(judge, "first"))
    for value in judge.compare(images, images[::-1], prompts).values.tolist():
        require(value != value or 0 <= value <= 1, f"an answer is {value}")


def check_sees_both_images(judge: PairJudge) -> None:
    """Beside some second image it matters what is shown first, and beside some first what is shown second."""
    images, prompts = ordinary(Beside(judge, "first"))
    count = len(images)
    first, second = [image for image in images for _ in images], images * count
    answers = judge.compare(first, second, prompts[:1] * count**2).values.reshape(count, count)
    for place, columns in (("first", answers.T), ("second", answers)):
        tells = any(len({value for value in column.tolist() if value == value}) > 1 for column in columns)
        require(tells, f"whatever is shown {place}, the answers are {answers.tolist()}; see PairJudge.example_images")


def check_tiny_is_repeatable(judge: PairJudge) -> None:
    """`tiny()` builds its own class, twice alike, whatever the global seed."""
    made = []
    for seed in (1, 2):
        with restored():
            seed_everything(seed)
            made.append(type(judge).tiny())
    require(type(made[0]) is type(judge), f"tiny() of {type(judge).__name__} built a {type(made[0]).__name__}")
    images, prompts = ordinary(Beside(made[0], "first"))
    one, two = (each.compare(images, images[::-1], prompts).values for each in made)
    same = torch.allclose(one, two, equal_nan=True)
    require(same, f"two that tiny() built answer {one.tolist()} and {two.tolist()}")


def _beside(check: Check, place: Place) -> PairCheck:
    return lambda judge: check(Beside(judge, place))


OWN = frozenset[Check]({contract.check_tiny_is_repeatable, contract.check_tells_images_apart})
"""Checks of rewards that pair judges have in a form of their own."""
COMPARED = frozenset[Check](
    {contract.check_refuses_wrong_prompts, contract.check_undecodable_is_nan, contract.check_takes_every_mode}
)
"""Checks of what `PairJudge.compare` does, which no judge can change."""
SECOND = (contract.check_ignores_neighbours, contract.check_nan_has_a_note)
"""Checks that are made with the images in the second place too."""
CHECKS: dict[str, PairCheck] = {
    "check_answers_a_probability": check_answers_a_probability,
    "check_sees_both_images": check_sees_both_images,
    "check_tiny_is_repeatable": check_tiny_is_repeatable,
    **{
        f"{check.__name__} as first": _beside(check, "first")
        for check in contract.CHECKS
        if check not in OWN | COMPARED | contract.GRADIENT
    },
    **{f"{check.__name__} as second": _beside(check, "second") for check in SECOND},
}
"""The checks by name; those with "as" are of `rewards.contract`, with the images in that place."""

"""Wordings that mean the same, and the reward and the GRPO that make use of them."""

from __future__ import annotations

import math
import random

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image

from rwk.adapters.shapes_prompts import FAMILIES, prompts, understand
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_scenes import draw_scene
from rwk.adapters.shapes_verifier import Verifier
from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.permutation import Permuted, wordings
from rwk.rewards.registry import load


@pytest.mark.parametrize(
    ("prompt", "others"),
    [
        ("a red cube and a green ball", ["a green ball and a red cube"]),
        ("a photo of two dogs and a dining table", ["a photo of a dining table and two dogs"]),
        ("A black car and a white clock.", ["A white clock and a black car."]),
        ("a photo of a dog right of a teddy bear", ["a photo of a teddy bear left of a dog"]),
        ("a cat on the top of a chair", ["a chair on the bottom of a cat"]),
        ("the lamp behind an old sofa", ["an old sofa in front of the lamp"]),
        ("a book near a pen", ["a pen near a book"]),
        (
            "we see a red star directly above a cross and that is all",
            ["we see a cross directly below a red star and that is all"],
        ),
        (
            "a dog, a cat and a bird",
            [
                "a dog, a bird and a cat",
                "a cat, a dog and a bird",
                "a cat, a bird and a dog",
                "a bird, a dog and a cat",
                "a bird, a cat and a dog",
            ],
        ),
    ],
)
def test_other_orders(prompt: str, others: list[str]) -> None:
    """Things change places, relations turn round, and frame, joints and capital stay."""
    assert wordings(prompt) == [prompt, *others]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a dog",
        "a dog and its owner",
        "the shadow of a dog and a cat",
        "a cup of tea and a plate of cake",
        "a man walking a dog and a cat sleeping",
        "a dog and a cat on a sofa",
        "a dog, a cat",
        "a dog left of a cat and a bird",
        "bread and butter",
        "a dog and a dog",
        "a dog, a cat, a bird and a fish",
        "a red circle in the top left corner",
    ],
)
def test_what_cannot_be_parsed_is_left_alone(prompt: str) -> None:
    """A prompt that may mean something else in another order has one wording."""
    assert wordings(prompt) == [prompt]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_truth_is_the_same(family: str) -> None:
    """In the built-in world all wordings score alike for right and wrong pictures, and two things have two."""
    drawn, several = prompts(family, 60, seed=3), 0
    rng = random.Random(0)
    for prompt, other in zip(drawn, drawn[1:], strict=False):
        texts = wordings(prompt.text)
        several += len(texts) > 1
        assert len(texts) == math.factorial(len(understand(prompt.text).clauses)), prompt
        scenes = [draw_scene(understand(text), rng) for text in (prompt.text, other.text)]
        for picture in render(scenes):
            scores = Verifier().score([to_pil_image(picture)] * len(texts), texts).values
            assert scores.unique().numel() == 1
    assert several > 25


class Told(Reward):
    """A score for each prompt."""

    spec = RewardSpec("told", "points", 0, 10, "n/a", "this test")
    points = {"a dog and a cat": 1.0, "a cat and a dog": 4.0, "a dog near a cat": 2.0, "a dog": 3.0}

    @classmethod
    def tiny(cls) -> Told:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        values = torch.tensor([self.points.get(prompt, torch.nan) for prompt in prompts])
        return Scores(values, ["" if prompt in self.points else "not told" for prompt in prompts])


def test_mean_less_deviation() -> None:
    """Of 1 and 4, at k = 1, it is 2.5 - 1.5; a lone wording keeps its score; one without a score leaves none."""
    image = Image.new("RGB", (8, 8))
    asked = ["a dog and a cat", "a dog", "a dog near a cat"]
    found = Permuted({"told": Told()}).score([image] * 3, asked)
    assert found.values[:2].tolist() == [1.0, 3.0]
    assert found.values[2].isnan()
    assert found.notes == ["", "", "not told"]
    assert Permuted({"told": Told()}, k=0).score([image], asked[:1]).values.tolist() == [2.5]
    assert Permuted({"told": Told()}, k=1).spec.low == pytest.approx(10 * (1 - math.sqrt(2)) / 2)


def test_its_name_is_an_expression() -> None:
    """It reads, stands within others, and is written so again."""
    name = "2*permuted(shapes.verifier,k=0.5)+min(permuted(noise,k=1),noise)"
    assert load(name).spec.name == name
    assert load("permuted(0.5*noise+contrast)").spec.name == "permuted(0.5*noise+contrast,k=1)"
    with pytest.raises(ValueError, match="needs one part, got 2"):
        load("permuted(noise,contrast)")

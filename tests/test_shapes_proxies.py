"""Rewards of the built-in world with a known fault: where they tell the truth, and where they do not."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from rwk.adapters.shapes_prompts import prompts
from rwk.adapters.shapes_proxies import LongOnly, NoCounts, Noisy
from rwk.adapters.shapes_scenes import pictures
from rwk.adapters.shapes_verifier import Verifier


def mixed(family: str) -> tuple[list[Image.Image], list[str]]:
    """Pictures and prompts of a family, half of them of one another."""
    texts = [prompt.text for prompt in prompts(family, 120, seed=3)]
    return pictures(texts, seed=0), texts[:60] + random.Random(0).sample(texts[60:], 60)


def test_noise_is_of_its_size_and_always_the_same() -> None:
    """Added to the truth; asked again, in another order, the scores are those of before."""
    images, texts = mixed("shapes.long")
    found = Noisy().score(images, texts).values
    noise = found - Verifier().score(images, texts).values
    assert abs(noise.mean()) < 3 * 0.2 / 120**0.5
    assert noise.std().item() == pytest.approx(0.2, rel=0.2)
    assert torch.equal(Noisy().score(images[::-1], texts[::-1]).values.flip(0), found)


def test_things_are_not_counted() -> None:
    """Too many or too few are right to it, though not to the verifier; another colour is wrong to both."""
    asked = ["a photo of a red circle", "a photo of three red circles"]
    one, three = pictures(asked, seed=0)
    assert NoCounts().score([three, one], asked).values.tolist() == [1, 1]
    assert max(Verifier().score([three, one], asked).values) < 1
    assert NoCounts().score([three], ["a photo of a blue circle"]).values < 1


def test_truth_of_one_wording_alone() -> None:
    """The truth of long prompts; of short ones a number that has nothing to do with it."""
    long, short = mixed("shapes.long"), mixed("shapes.short")
    assert torch.equal(LongOnly().score(*long).values, Verifier().score(*long).values)
    both = torch.stack([LongOnly().score(*short).values, Verifier().score(*short).values])
    assert abs(torch.corrcoef(both)[0, 1]) < 0.3


def test_prompt_of_another_world_has_no_score() -> None:
    """And a note that says why."""
    found = Noisy().score([Image.new("RGB", (48, 48))], ["a dog"])
    assert found.values.isnan().all()
    assert found.notes[0].startswith("no fact to check: ")

"""Words that say nothing of an image: a reward that pays for them, and one that forgets the image over them."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rwk.calibration.probe import Result
from rwk.calibration.probe_distractors import WORDS, distractors
from rwk.calibration.rewording import PRAISE, praised, sentence
from rwk.rewards.registry import load

CASE: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("probe_case.py")))
Fits, subject = CASE["Fits"], CASE["subject"]


def by_name(reward: Any) -> dict[str, Result]:
    return {result.probe.name.partition(".")[2]: result for result in distractors(subject(reward))}


def words(texts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(text.split())) for text in texts])


def test_a_sound_reward_is_not_distracted() -> None:
    """What it gives does not move, and every severity is a level."""
    found = by_name(Fits())
    assert {result.status for result in found.values()} == {"pass"}
    assert len(found["praise"].levels) == len(WORDS)
    assert found["praise"].value is not None
    assert found["praise"].value[:3] == (0, 0, 0)


def test_words_that_are_paid_for_are_a_warning() -> None:
    """Every word gives 1: margins stay, the score of an unchanged image rises with the words, and it is shown."""
    found = by_name(Fits(lambda _, texts: words(texts)))
    assert {name: result.status for name, result in found.items()} == {
        "sentence": "pass",
        "style": "pass",
        "praise": "warn",
    }
    means = [level.value.mean for level in found["praise"].levels]
    assert means == sorted(means)
    worst = found["praise"].findings[0]
    added = len(worst.prompt_after.split()) - len(worst.prompt.split())
    assert worst.score_after - worst.score_before == pytest.approx(added, abs=1e-4)
    assert worst.before is worst.after
    assert by_name(Fits(lambda _, texts: -words(texts)))["praise"].status == "pass"


@pytest.mark.parametrize(("word", "name"), [("Tuesday", "sentence"), ("masterpiece", "style")])
def test_an_image_that_is_forgotten_over_words_is_found(word: str, name: str) -> None:
    """Where a word turns the reward upside down the margins move: that probe fails, and shows both margins."""

    def turned(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        sound = Fits().score_pixels(pixels, texts)
        return -2 * sound * torch.tensor([float(word in text) for text in texts])

    found = by_name(Fits(turned))
    assert [one for one in ("sentence", "style") if found[one].status == "fail"] == [name]
    worst = found[name].findings[0]
    assert worst.score_after == pytest.approx(-worst.score_before, abs=1e-4)
    assert word in worst.prompt_after
    turn = found[name].levels[0].measures["pairs that turn"]
    assert turn.mean == 1


def test_a_reward_without_prompts_is_not_asked() -> None:
    """Each of the three says so."""
    assert {result.reason for result in by_name(load("contrast")).values()} == {"the reward takes no prompt"}


def test_what_stands_behind_a_prompt() -> None:
    """The prompt ends before it, and praise comes in the order of the list."""
    assert sentence("a dog!") == "a dog. The meeting was moved to Tuesday."
    assert praised("a dog.", len(PRAISE)) == ", ".join(["a dog", *PRAISE])
    assert np.diff(WORDS).min() > 0
    assert WORDS[-1] == len(PRAISE)

"""Token mutation: codes that a reward loves and the truth does not are found, and good ones are no fault."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.calibration.probe import Codes, Domain, Subject
from rwk.calibration.probe_tokens import REPLACED, tokens
from rwk.rewards.base import PixelReward, RewardSpec

SIZES: Any = runpy.run_path(str(Path(__file__).with_name("probe_case.py")))["SIZES"]
BOOK, LENGTH, GOOD = 8, 16, 4
"""Tokens are grey levels of a 4x4 image; gold is the share of tokens below `GOOD`."""


class Grey(PixelReward):
    """Ten times a function of the tokens that are read back from the image."""

    spec = RewardSpec("grey", "tenths", -10, 10, "n/a", "", needs_prompt=False)

    def __init__(self, loved: float) -> None:
        super().__init__()
        self.loved = loved

    @classmethod
    def tiny(cls) -> Grey:
        return cls(0)

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        found = (pixels[:, 0].flatten(1) * 255 / 30).round()
        sound = (found < GOOD).double().mean(1)
        return (10 * sound + self.loved * (found == BOOK - 1).double().mean(1)).float()


def decode(drawn: Tensor) -> list[Image.Image]:
    return [Image.fromarray((30 * row).reshape(4, 4).numpy().astype(np.uint8)).convert("RGB") for row in drawn]


def judge(images: Sequence[Image.Image], _: Sequence[str]) -> Any:
    return np.array([(np.asarray(image)[..., 0] / 30 < GOOD - 0.5).mean() for image in images])


def subject(loved: float, **changes: Any) -> Subject:
    """12 prompts with 4 images each, of codes that are good by three in four."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, GOOD, (48, LENGTH))
    drawn += (rng.random(drawn.shape) < 0.25) * GOOD
    images = decode(torch.from_numpy(drawn))
    prompts = [f"p{i // 4}" for i in range(48)]
    domain = Domain("in domain", images, prompts, judge(images, prompts), codes=Codes(drawn, BOOK, decode), judge=judge)
    return Subject(Grey(loved), [replace(domain, **changes)], replace(SIZES, mutants=16))


def test_a_loved_code_is_found_and_the_truth_is_no_fault() -> None:
    """A reward that loves one bad code fails as gold falls with its gain; one that is the truth gains with gold."""
    (broken,), (sound,) = (list(tokens(subject(loved))) for loved in (60.0, 0.0))
    assert (broken.status, sound.status) == ("fail", "pass")
    assert [level.name for level in broken.levels] == [f"{k} code{'s' if k > 1 else ''}" for k in REPLACED]
    assert broken.value is not None
    assert broken.value.low > 0.25
    failed = next(level for level in broken.levels if level.value == broken.value)
    assert failed.measures["change of gold"].high < 0
    assert failed.measures["gain of the mean copy"].mean < failed.value.mean
    assert sound.levels[1].measures["change of gold"].low > 0


def test_a_finding_shows_the_copy_with_its_own_score() -> None:
    """The image and its copy differ in the drawn codes alone, and both scores are those of the reward."""
    of = subject(60.0)
    (result,) = tokens(of)
    worst = result.findings[0]
    before, after = of.score([worst.before, worst.after], [worst.prompt] * 2)
    assert [worst.score_before, worst.score_after] == pytest.approx([before, after], abs=1e-5)
    changed = int((np.asarray(worst.before)[..., 0] != np.asarray(worst.after)[..., 0]).sum())
    assert changed in REPLACED
    assert "gold changes by -" in worst.what


def test_the_domain_keeps_its_codes() -> None:
    """Mutation works on copies."""
    of = subject(60.0)
    codes = of.domains[0].codes
    assert codes is not None
    before = codes.tokens.copy()
    list(tokens(of))
    assert (codes.tokens == before).all()


def test_what_is_missing_is_told() -> None:
    """Without a generator it is skipped; with one and no gold a gain is a warning; a missing row is an error."""
    (without,) = tokens(subject(60.0, codes=None))
    assert without.status == "skip"
    assert "no generator" in without.reason
    (blind,) = tokens(subject(60.0, judge=None))
    assert blind.status == "warn"
    assert "gold is not known" in blind.reason
    with pytest.raises(ValueError, match="a row of tokens for all its 48 images, got 3"):
        subject(0.0, codes=Codes(np.zeros((3, LENGTH)), BOOK, decode))

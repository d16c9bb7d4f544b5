"""VQAScore by chat models: t2v_metrics' own scores of Qwen2.5-VL in its published layout, and what it asks."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwk.adapters.judge import VqaScore
from rwk.adapters.judge_published import VqaScoreLlavaOv
from rwk.adapters.questions import QUESTIONS
from rwk.rewards.registry import load

TESTS = Path(__file__).parent
QWEN = runpy.run_path(str(TESTS / "qwen_case.py"))
AGREE = runpy.run_path(str(TESTS / "parity_case.py"))["agree"]
RECORDED = json.loads((TESTS / "parity" / "vqascore_vlm.json").read_text())
PROMPTS = ["a red cube", 'two "naïve" cats {left} of a dög, 猫; ' * 9, "", "a bird, seen from above"]
pictures = QWEN["pictures"]


def write(folder: Path) -> None:
    """A small Qwen2.5-VL that knows the words of the question."""
    QWEN["write"](folder, " ".join(QUESTIONS["vqascore"].turns))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("qwen")
    write(made)
    return made


def scores(reward: VqaScore) -> Tensor:
    return reward.score(pictures(), PROMPTS).values


def test_scores_are_those_of_the_package(folder: Path, record_property: Any) -> None:
    """P(Yes) after the first position is that of t2v_metrics 3.1 with the repetition penalty left out."""
    official = torch.tensor(RECORDED["scores"])
    assert official.std() > 0.1 * official.mean()
    reward = load(f"vqascore.vlm@{folder}")
    assert isinstance(reward, VqaScore)
    AGREE(record_property, reward.spec.name, RECORDED, scores(reward), official, rtol=1e-4)

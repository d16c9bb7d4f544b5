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
TOLERANCE = 1e-4
"""Relative."""
pictures = QWEN["pictures"]


def write(folder: Path) -> None:
    """A small Qwen2.5-VL that knows the words of the question."""
    QWEN["write"](folder, " ".join(QUESTIONS["vqascore"].turns))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("qwen")
    write(made)
    return made


def judge(folder: Path) -> VqaScore:
    made = load(f"vqascore.vlm@{folder}")
    assert isinstance(made, VqaScore)
    return made


def scores(reward: VqaScore) -> Tensor:
    return reward.score(pictures(), PROMPTS).values


def test_scores_are_those_of_the_package(folder: Path, record_property: Any) -> None:
    """P(Yes) at the first word of the answer is that of t2v_metrics 3.1 without repetition penalty."""
    official = torch.tensor(RECORDED["scores"])
    assert official.std() > 0.1 * official.mean()
    reward = judge(folder)
    AGREE(record_property, reward.spec.name, RECORDED, scores(reward), official, rtol=TOLERANCE)


def test_the_penalty_of_the_checkpoint_is_what_is_left_out(folder: Path) -> None:
    """The package's scores as it gives them are ours, with Qwen's penalty on every token of the question.

    It takes them from `generate`, which applies the penalty of generation_config.json; Yes and No are in the question.
    """
    from transformers import RepetitionPenaltyLogitsProcessor

    reward, found = judge(folder), []
    penalty = RepetitionPenaltyLogitsProcessor(QWEN["PENALTY"])
    for image, prompt in zip(pictures(), PROMPTS, strict=True):
        inputs = reward.vlm.batch([image], [reward.text(prompt)])
        with torch.no_grad():
            logits = reward.vlm.network(**inputs).logits[:, -1]
        found.append(penalty(inputs["input_ids"], logits).softmax(1)[0, reward.ids[0][0]])
    penalised = torch.tensor(RECORDED["penalised"])
    torch.testing.assert_close(torch.stack(found), penalised, rtol=TOLERANCE, atol=0)
    assert (scores(reward) / penalised - 1).abs().min() > 10 * TOLERANCE


@pytest.mark.parametrize("fault", ["resize", "question", "of yes and no"])
def test_other_variants_do_not_pass(folder: Path, fault: str) -> None:
    """Images resized by torch, another question, P(Yes) among Yes and No: 10 times the tolerance or more."""
    from transformers import Qwen2VLImageProcessor

    reward = judge(folder)
    if fault == "resize":
        reward.vlm.processor.image_processor = Qwen2VLImageProcessor.from_pretrained(folder)
    elif fault == "question":
        reward.question = QUESTIONS["vqascore.llava_ov"]
    else:
        reward.value = lambda log_probs: log_probs.softmax(1)[:, 0]  # type: ignore[method-assign]
    assert (scores(reward) / torch.tensor(RECORDED["scores"]) - 1).abs().max() > 10 * TOLERANCE


def test_llava_onevision_is_asked_the_same_and_shown_something_else() -> None:
    """The question, its one answer and the softmax over all words are t2v_metrics 3.0's; chat and picture are not.

    Its code has a turn of the system and takes the tiles of a picture, a tensor of four dimensions, for a video.
    """
    recorded, asked = RECORDED["llava_ov"], VqaScoreLlavaOv.tiny()
    for prompt, after in zip(PROMPTS, recorded["after"], strict=True):
        (question,) = asked.question.asked(prompt)
        assert after == f"\n{question}<|im_end|>\n<|im_start|>assistant\n"
        assert question in asked.text(prompt)
    assert asked.question.answers[0] == "Yes"
    assert recorded["scores"] == [recorded["of_softmax"]] * len(PROMPTS)
    log_probs = torch.tensor([[recorded["of_softmax"], 0.5]]).log()
    torch.testing.assert_close(asked.value(log_probs), torch.tensor([recorded["of_softmax"]]))
    assert all("You are a helpful assistant." in before for before in recorded["before"])
    assert recorded["modalities"] == [["video"]] * len(PROMPTS)
    assert all(len(shape) == 4 for shape in recorded["shapes"])

"""The judges of levels: of the same logits their score is that of Q-Align's own scorers."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.judge import Aesthetics, Levels
from rwk.adapters.questions import LEVELS
from rwk.adapters.vlm import tiny_vlm

TESTS = Path(__file__).parent
CASE = runpy.run_path(str(TESTS / "qalign_case.py"))
AGREE = runpy.run_path(str(TESTS / "parity_case.py"))["agree"]
RECORDED = json.loads((TESTS / "parity" / "qalign.json").read_text())
JUDGES = {"quality": Levels, "aesthetics": Aesthetics}


def judge(kind: type[Levels]) -> Levels:
    """A small judge whose network gives the case's logits, row by row, whatever it is shown."""
    made = kind.of(tiny_vlm(kind.spec.name, [*LEVELS, *(" " + word for word in CASE["OTHERS"])]))
    columns = [made.vlm.tokenizer(" " + word).input_ids for word in (*CASE["LEVELS"], *CASE["OTHERS"])]
    assert all(len(ids) == 1 for ids in columns)
    given, left = torch.from_numpy(CASE["logits"]()), list(range(len(CASE["logits"]())))

    def replaced(module: Any, inputs: Any, logits: Tensor) -> Tensor:
        rows, left[:] = left[: len(logits)], left[len(logits) :]
        logits = torch.full_like(logits, -30.0)
        logits[:, :, [ids[0] for ids in columns]] = given[rows, None]
        return logits

    made.vlm.network.lm_head.register_forward_hook(replaced)
    return made


def scores(name: str) -> Tensor:
    """[24] scores of the case's logits, in two batches of unequal size."""
    return judge(JUDGES[name]).score([Image.new("RGB", (60, 60))] * 24, batch_size=16).values


@pytest.mark.parametrize("name", JUDGES)
def test_levels_are_weighed_as_by_the_authors_code(name: str, record_property: Any) -> None:
    """Of the same logits the score is 1 to 5 where Q-Align's scorer gives 0 to 1; other words have no say."""
    official = 1 + 4 * torch.tensor(RECORDED["scores"][name], dtype=torch.float64)
    assert official.min() < 1.3
    assert official.max() > 4.7
    kind = JUDGES[name]
    AGREE(record_property, kind.spec.name, RECORDED, scores(name).double(), official, atol=1e-6)


@pytest.mark.parametrize("fault", ["all words", "reversed", "no softmax"])
def test_other_weights_do_not_pass(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels among all words, from bad to excellent, or the likeliest alone, are off by 100 times the tolerance."""
    weights = torch.arange(5.0, 0, -1)
    faults = {
        "all words": lambda log_probs: log_probs.exp() @ weights,
        "reversed": lambda log_probs: log_probs.softmax(1) @ weights.flip(0),
        "no softmax": lambda log_probs: 5.0 - log_probs.argmax(1),
    }
    monkeypatch.setattr(Levels, "value", staticmethod(faults[fault]))
    official = 1 + 4 * torch.tensor(RECORDED["scores"]["quality"])
    assert (scores("quality") - official).abs().max() > 1e-4


@pytest.mark.parametrize("name", JUDGES)
def test_the_question_is_that_of_the_authors(name: str) -> None:
    """The same question and the same beginning of an answer, in the form of the model's own chat."""
    kind = JUDGES[name]
    question = judge(kind).question
    (asked,) = question.turns
    assert RECORDED["asked"][name] == f"USER: {asked}\n<|image|>\nASSISTANT: {question.opening}"
    assert question.answers == tuple(" " + word for word in CASE["LEVELS"])

"""GIT-VQA: the scores of T2I-R1's own code, what is asked for a prompt, and its gradient."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwk.adapters.git_vqa import GitVqa, network
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load

CASE = runpy.run_path(str(Path(__file__).with_name("git_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "git_vqa.json").read_text())
TOLERANCE = 1e-5
"""Of probabilities that differ by 0.1 from picture to picture."""


def build() -> torch.nn.Module:
    """The network of the recording: the published one, only smaller."""
    return network(CASE["VISION"], **CASE["TEXT"])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> GitVqa:
    """The adapter with the weights of the recording, from a folder like the published; phrases are parted by bars."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("git-vqa")
    tensors = {key: torch.tensor(value) for key, value in CASE["published"]().items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    BertTokenizer(vocab={word: i for i, word in enumerate(CASE["BLIP"]["full_vocabulary"]())}).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GitVqa, "build", staticmethod(build))
        reward = load(f"git_vqa.t2i_r1@{folder}", phrases=lambda prompt: prompt.split("|"))
    assert isinstance(reward, GitVqa)
    return reward


@cache
def official() -> Tensor:
    return torch.tensor(RECORDED["scores"])  # [phrases, pictures]


def scores(reward: GitVqa, prompt: str) -> Tensor:
    images = CASE["pictures"]()
    return reward.score(images, [prompt] * len(images)).values


def test_answers_are_those_of_the_authors_code(loaded: GitVqa, record_property: Any) -> None:
    """With one file of weights, T2I-R1's code and the adapter give one score for every phrase and picture.

    The file has the published layout and small random weights. The phrases are accented, long, of unknown letters and
    empty, and one spells out [SEP]; the pictures are cropped with odd and even margins, enlarged, shrunk, and grey.
    """
    assert official().std(1).min() > 0.05  # pictures tell
    found = torch.stack([scores(loaded, phrase) for phrase in CASE["PHRASES"]])
    AGREE(record_property, loaded.spec.name, RECORDED, found, official(), atol=TOLERANCE)


def test_a_score_is_the_mean_of_the_answers(loaded: GitVqa) -> None:
    """Questions of unequal length and number go through the network at once, each with its own picture."""
    every = "|".join(CASE["PHRASES"])
    torch.testing.assert_close(scores(loaded, every), torch.tensor(RECORDED["together"]), rtol=0, atol=TOLERANCE)
    images = CASE["pictures"]()
    prompts = [every, CASE["PHRASES"][0], "|".join(CASE["PHRASES"][1:3]), every, *CASE["PHRASES"][3:6]]
    asked = [range(6), [0], [1, 2], range(6), [3], [4], [5]]
    expected = torch.stack([official()[list(rows), column].mean() for column, rows in enumerate(asked)])
    torch.testing.assert_close(loaded.score(images, prompts).values, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("change", ["rounding", "squash", "no antialias", "ends", "no begin", "gelu"])
def test_other_variants_do_not_pass(loaded: GitVqa, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ports get wrong shifts some answer by 100 times the tolerance of the comparison, or more."""
    ids = loaded._ids
    prepared = {
        "rounding": {"rounding": "round"},
        "squash": {"fit": "squash"},
        "no antialias": {"backend": "float", "antialias": False},
    }
    if change in prepared:
        monkeypatch.setattr(loaded, "preprocess", replace(loaded.preprocess, **prepared[change]))
    elif change == "ends":  # with [SEP], as the tokenizer would by itself
        add = torch.full([7, 1], loaded.tokenizer.sep_token_id)
        monkeypatch.setattr(loaded, "_ids", lambda asked: (torch.cat([ids(asked)[0], add], 1), ids(asked)[1] + 1))
    elif change == "no begin":
        monkeypatch.setattr(loaded, "_ids", lambda asked: (ids(asked)[0][:, 1:], ids(asked)[1] - 1))
    else:
        for module in loaded.network.modules():
            if type(module).__name__ == "GitVisionMLP":
                monkeypatch.setattr(module, "activation_fn", torch.nn.GELU())
    assert (scores(loaded, CASE["PHRASES"][0]) - official()[0]).abs().max() > 100 * TOLERANCE


def test_what_is_asked() -> None:
    """Of a prompt every noun phrase is asked about, in its spelling, but those that only name a place."""
    reward = GitVqa.tiny()
    assert reward.questions("A red Dog on the left of two trees") == ["A red Dog?", "two trees?"]
    assert reward.questions("of the and") == []


def test_nothing_to_ask_is_no_score() -> None:
    """A prompt without a phrase gets NaN and a note, its neighbours their score; an image's own note stands."""
    reward = GitVqa.tiny()
    images = [*CASE["pictures"]()[:2], CASE["BLIP"]["picture"]("long", 700, 10)]
    values, notes = reward.score(images, ["", "a dog", ""])
    assert [math.isnan(value) for value in values] == [True, False, True]
    assert notes[:2] == ["the prompt has no noun phrase, so there is nothing to ask", ""]
    assert "64 times as long as wide, got 700x10" in notes[2]


def test_a_long_question_is_cut_with_a_warning() -> None:
    """Of a question the network reads 1024 tokens with [CLS], and says so."""
    reward = GitVqa.tiny()
    with pytest.warns(UserWarning, match=r"git_vqa.t2i_r1 reads 1024 tokens of a prompt, got 1102 in 'dog dog"):
        value = reward.score(CASE["pictures"]()[:1], ["dog " * 1100]).values
    assert value.isfinite().all()


def test_the_published_size(tmp_path: Path) -> None:
    """At full size the network weighs what the file does and sees 900 patches; without the file its place is named."""
    with torch.device("meta"):
        full: Any = GitVqa.build()
    numbers = sum(parameter.numel() for parameter in full.parameters())
    assert GitVqa.origin.megabytes == pytest.approx(4 * numbers / 1e6, rel=0.003)
    assert full.git.image_encoder.vision_model.embeddings.position_embedding.weight.shape == (901, 1024)
    with pytest.raises(RunFailed, match=r"git_vqa.t2i_r1 needs pytorch_model.bin of microsoft/git-large-vqav2"):
        GitVqa()


def test_gradient_is_that_of_finite_differences() -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = GitVqa.tiny()
    reward.network.double()
    generator = torch.Generator().manual_seed(1)
    pixels, step = torch.rand(2, 2, 3, 45, 40, dtype=torch.float64, generator=generator)
    prompts = ["a dog", "a red cube on a green ball"]
    leaf = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward.score_pixels(leaf, prompts).sum(), leaf)
    ahead, behind = (reward.score_pixels(pixels + sign * 1e-5 * step, prompts).sum() for sign in (1, -1))
    expected = ((ahead - behind) / 2e-5).item()
    assert abs(expected) > 1e-5
    assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-4)

"""BLIP-VQA: the answers of the benchmark's code, what is asked for a prompt, and its gradient."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwk.adapters.blip_towers import text_tower, vision_tower
from rwk.adapters.blip_vqa import ADDRESS, BlipVqa, VqaNetwork, decoder, question
from rwk.adapters.noun_phrases import noun_phrases
from rwk.rewards.errors import RunFailed

CASE = runpy.run_path(str(Path(__file__).with_name("blip_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
PARITY = Path(__file__).with_name("parity")
RECORDED = json.loads((PARITY / "blip_vqa.json").read_text())
CHUNKS = json.loads((PARITY / "noun_chunks.json").read_text())
TOLERANCE = 1e-5
"""Of probabilities that differ by 0.1 from picture to picture."""


def build() -> torch.nn.Module:
    """The network of the recording: the published one, only smaller."""
    shape = {"num_hidden_layers": CASE["DEPTH"], "num_attention_heads": CASE["HEADS"]}
    text = {**shape, "hidden_size": CASE["HIDDEN"], "intermediate_size": 4 * CASE["HIDDEN"]}
    vision = vision_tower(480, hidden_size=CASE["WIDTH"], intermediate_size=4 * CASE["WIDTH"], **shape)
    return VqaNetwork(vision, text_tower(CASE["WIDTH"], **text), decoder(CASE["HIDDEN"], **text))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> BlipVqa:
    """The adapter with the weights of the recording, from a file in the official layout; phrases are lines."""
    folder = tmp_path_factory.mktemp("blip-vqa")
    tensors = {key: torch.tensor(value) for key, value in CASE["vqa"]().items()}
    torch.save({"model": tensors}, folder / "model_base_vqa_capfilt_large.pth")
    (folder / "vocab.txt").write_text("\n".join(CASE["full_vocabulary"]()))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlipVqa, "build", staticmethod(build))
        return BlipVqa(weights=folder, tokenizer=folder, phrases=str.splitlines)


@cache
def official() -> Tensor:
    return torch.tensor(RECORDED["scores"])  # [phrases, pictures]


def scores(reward: BlipVqa, prompt: str) -> Tensor:
    images = CASE["pictures_to_squash"]()
    return reward.score(images, [prompt] * len(images)).values


@pytest.mark.filterwarnings("ignore:blip_vqa.compbench reads 35 tokens")
def test_answers_are_those_of_the_benchmark(loaded: BlipVqa, record_property: Any) -> None:
    """With one file of weights, the benchmark's network and the adapter give the same p(yes) for every question.

    The file has the official layout and small random weights. The questions are cut, accented and marked; the pictures
    are squashed from several shapes, one is enlarged, one is grey.
    """
    assert RECORDED["package"] == "blip_vqa"
    assert official().std(1).min() > 0.08  # pictures tell
    found = torch.stack([scores(loaded, phrase) for phrase in CASE["PHRASES"]])
    AGREE(record_property, loaded.spec.name, RECORDED, found, official(), atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:blip_vqa.compbench reads 35 tokens")
def test_a_score_is_the_product_of_the_answers(loaded: BlipVqa) -> None:
    """For questions of unequal length at once, the score is the product of the benchmark's answers, before rounding.

    The product is written out here; the benchmark's, of answers and product rounded to four decimals, is as near as the
    adapter says.
    """
    found = scores(loaded, "\n".join(CASE["PHRASES"]))
    torch.testing.assert_close(found, official().prod(0), rtol=0, atol=TOLERANCE)
    rounded = official().mul(1e4).round().div(1e4).prod(0).mul(1e4).round().div(1e4)
    assert (found - rounded).abs().max() <= 5e-5 * (len(CASE["PHRASES"]) + 1)


@pytest.mark.parametrize("change", ["crop", "no antialias", "first token", "marks", "start"])
def test_other_variants_do_not_pass(loaded: BlipVqa, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ports get wrong shifts some answer by 100 times the tolerance of the comparison, or more."""
    phrase = CASE["PHRASES"][1]
    if change == "crop":
        monkeypatch.setattr(BlipVqa, "preprocess", replace(loaded.preprocess, fit="crop"))
    elif change == "no antialias":
        monkeypatch.setattr(BlipVqa, "preprocess", replace(loaded.preprocess, backend="float", antialias=False))
    elif change == "marks":
        monkeypatch.setattr(loaded, "questions", lambda prompt: [f"{prompt}?"])
    else:
        answer = loaded.network.forward
        cls = loaded.tokenizer.cls_token_id
        other = {
            "first token": lambda pictures, ids, start: answer(pictures, with_first(ids, cls), start),
            "start": lambda pictures, ids, start: answer(pictures, ids, cls),
        }
        monkeypatch.setattr(loaded.network, "forward", other[change])
    assert (scores(loaded, phrase) - official()[1]).abs().max() > 100 * TOLERANCE


def with_first(ids: Tensor, token: int) -> Tensor:
    ids = ids.clone()
    ids[:, 0] = token
    return ids


@pytest.mark.parametrize(
    ("phrase", "asked"),
    [
        ("a red Apple", "a red apple?"),
        ('The "big" (blue) dog: #1!', "the big blue dog 1?"),
        ("a cat.", "a cat?"),
        ("word " * 60, " ".join(["word"] * 50)),
    ],
)
def test_questions_are_as_blip_was_trained_on(phrase: str, asked: str) -> None:
    """Small letters, without marks, cut after fifty words; the question mark is a part of the last word."""
    assert question(phrase) == asked


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a green bench and a blue bowl", ["a green bench", "a blue bowl"]),
        ("A red hat, two dogs & the cat's tail", ["A red hat", "two dogs", "the cat's tail"]),
        ("The red hat was hung on top of a coat rack.", ["The red hat", "top", "a coat rack"]),
        ("a dog on the left of a tree", ["a dog", "the left", "a tree"]),
        ("dogs", ["dogs"]),
        ("is it the", []),
        ("... and of", []),
        ("", []),
    ],
)
def test_phrases_of_the_rule(prompt: str, phrases: list[str]) -> None:
    """A phrase ends at small words and marks and begins anew at a determiner, which alone is none."""
    assert noun_phrases(prompt) == phrases


def test_places_are_not_asked_about_and_eight_phrases_are() -> None:
    """Of a prompt the phrases that only name a place are left out, and then those after the eighth."""
    reward = BlipVqa.tiny()
    assert reward.questions("a dog on top of a tree on the left") == ["a dog?", "a tree?"]
    assert reward.questions(", ".join("a dog" for _ in range(9))) == ["a dog?"] * 8


def test_how_often_the_rule_agrees_with_spacy() -> None:
    """The figures in the docstring are those counted with spaCy, and the rule gives its phrases for 26 of 30 recorded.

    The 30 are every thirtieth validation prompt of the benchmark for colour, shape and texture.
    """
    three = [CHUNKS["counts"][name] for name in ("color", "shape", "texture")]
    plain, whole = (
        [sum(count[key] for count in three) for key in keys] for keys in (("plain_same", "plain_of"), ("same", "of"))
    )
    text = " ".join((BlipVqa.__doc__ or "").split())
    assert f'on the {plain[1]} validation prompts of colour, shape and texture that read "a ... and a ..."' in text
    assert f"gives spaCy's phrases for {plain[0]} (spaCy 3.8; in the other {plain[1] - plain[0]} spaCy" in text
    assert f"on all {whole[1]} of these attributes for {whole[0]}, on the 300 complex ones for" in text
    assert f"complex ones for {CHUNKS['counts']['complex']['same']}." in text
    assert len(CHUNKS["phrases"]) == 30
    assert sum(noun_phrases(prompt) == found for prompt, found in CHUNKS["phrases"].items()) == 26


def test_nothing_to_ask_is_no_score(loaded: BlipVqa) -> None:
    """A prompt without a phrase gets NaN and a note, and its neighbours their score."""
    images = CASE["pictures_to_squash"]()[:2]
    values, notes = loaded.score(images, ["", CASE["PHRASES"][0]])
    assert math.isnan(values[0])
    assert values[1].item() == pytest.approx(official()[0, 1].item(), abs=TOLERANCE)
    assert notes == ["the prompt has no noun phrase, so there is nothing to ask", ""]
    assert loaded.score(images, ["", ""]).values.isnan().all()


def test_the_users_function_is_asked() -> None:
    """Phrases come from the function that was given, in its order."""
    split: Callable[[str], list[str]] = lambda prompt: prompt.split(";")  # noqa: E731
    reward = BlipVqa.of(BlipVqa.tiny().network, phrases=split)
    assert reward.questions("left eye;the right;RIGHT eye") == ["left eye?", "right eye?"]


def test_without_a_file_the_address_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline and without the file, the error names where it is published."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(RunFailed, match=ADDRESS):
        BlipVqa()


def test_full_size_is_what_is_published() -> None:
    """The network at its full size weighs what the file does; the decoder's last map is its table of words."""
    with torch.device("meta"):
        network = BlipVqa.build()
    numbers = sum(parameter.numel() for parameter in network.parameters())
    assert BlipVqa.origin.megabytes == pytest.approx(4 * numbers / 1e6, rel=0.003)


def test_gradient_is_that_of_finite_differences() -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = BlipVqa.tiny()
    reward.network.double()
    generator = torch.Generator().manual_seed(1)
    pixels, step = torch.rand(2, 2, 3, 45, 40, dtype=torch.float64, generator=generator)
    prompts = ["a dog", "a red cube on a green ball"]
    leaf = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward.score_pixels(leaf, prompts).sum(), leaf)
    ahead, behind = (reward.score_pixels(pixels + sign * 1e-5 * step, prompts).sum() for sign in (1, -1))
    expected = ((ahead - behind) / 2e-5).item()
    assert abs(expected) > 1e-5
    assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-5)

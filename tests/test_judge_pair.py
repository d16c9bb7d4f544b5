"""Vision-language models as pair judges: probabilities of the network, texts that are read, and a run that learns."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.judge_pair import Better, Quality, UnifiedPair
from rwk.adapters.pair_questions import PAIR_QUESTIONS
from rwk.adapters.unified_pair import PairAlignment, PairCoherence, PairStyle, PairThink, Written
from rwk.adapters.vlm import CHAT, Vlm, tiny_processor, tiny_vlm
from rwk.policy_opt.journal import read
from rwk.rewards.pair_judge import JUDGES

PROMPTS = ["a red cube", 'two "naïve" cats {left} of a dög; ' * 9, "a very small bird, seen from above"]


def pictures() -> list[Image.Image]:
    """Noise of three sizes, so that the images are of unequal numbers of tokens."""
    draw = np.random.default_rng(3)
    sizes = ((60, 60), (40, 90), (110, 70))
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


@cache
def vlm() -> Vlm:
    return tiny_vlm("pair.better", ("Image", "Both"))


def next_probabilities(model: Vlm, pair: list[Image.Image], text: str) -> Tensor:
    """[V] after a text about two images: one unpadded row, every position computed, the last one taken."""
    inputs = model.processor(text=[text], images=[pair], return_tensors="pt")
    with torch.no_grad():
        logits: Tensor = model.network(**inputs).logits
    return logits[0, -1].softmax(0)


def test_the_answer_is_read_off_both_images() -> None:
    """P(first) is the softmax over "1" and "2" after the chat text with both images, in their order."""
    judge, images = Better.of(vlm()), pictures()
    ids = [vlm().tokenizer.convert_tokens_to_ids(digit) for digit in "12"]
    pairs = [(0, 1), (1, 0), (2, 1)]
    expected = []
    for (a, b), prompt in zip(pairs, PROMPTS, strict=True):
        one, two = next_probabilities(vlm(), [images[a], images[b]], judge.text(prompt))[ids].tolist()
        expected.append(one / (one + two))
    found = judge.compare([images[a] for a, _ in pairs], [images[b] for _, b in pairs], PROMPTS).values
    assert found.tolist() == pytest.approx(expected, rel=2e-5)
    there, back = judge.compare(images[:2], images[1::-1], ["a"] * 2).values.tolist()
    assert abs(there + back - 1) > 1e-3  # the place matters to it, so both orders are needed


def test_the_question_is_about_two_images() -> None:
    """Two image slots, then the question with the prompt as it stands; without a prompt, about the pictures alone."""
    begin = "<|im_start|>user\n" + "<|vision_start|><|image_pad|><|vision_end|>" * 2
    text = Better.of(vlm()).text('a "{cat}"')
    assert text.startswith(begin + 'Which of these two images shows better what this text says: "a "{cat}""?')
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    text = UnifiedPair.of(vlm()).text("a cat")
    assert text.startswith(begin + "You are given a text caption and two generated images based on that caption.")
    assert text.endswith(
        'equally good."\nYour task is provided as follows:\nText Caption: [a cat]<|im_end|>\n<|im_start|>assistant\n'
    )
    assert not PAIR_QUESTIONS["quality"].needs_prompt
    assert all(question.source for question in PAIR_QUESTIONS.values())


def test_a_tie_counts_half_and_all_answers_come_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "Image 1", "Image 2" and "Both" have the product of their tokens' probabilities; the network runs once."""
    judge, (one, two, _) = UnifiedPair.of(vlm()), pictures()
    assert [len(ids) for ids in judge.ids] == [3, 3, 1]
    text, number = judge.text("a cat"), vlm().tokenizer.convert_tokens_to_ids
    after = [next_probabilities(vlm(), [one, two], text + said) for said in ("", "Image", "Image ")]
    shared = after[0][number("Image")] * after[1][number("Ġ")]
    chances = torch.stack([shared * after[2][number("1")], shared * after[2][number("2")], after[0][number("Both")]])
    first, _, tie = (chances / chances.sum()).tolist()
    runs, forward = [], vlm().network.forward
    monkeypatch.setattr(vlm().network, "forward", lambda **inputs: runs.append(1) or forward(**inputs))
    found = judge.compare([one], [two], ["a cat"]).values.item()
    assert found == pytest.approx(first + tie / 2, rel=5e-5)
    assert len(runs) == 1
    assert tie > 1e-3


def test_another_layout() -> None:
    """LLaVA-OneVision, with tiles, reads two images in one message and answers alone as among others."""
    model = runpy.run_path(str(Path(__file__).with_name("test_judge.py")))["tiny_llava_onevision"]()
    judge, images = Quality.of(model), pictures()
    together = judge.compare(images, images[::-1]).values
    alone = [judge.compare([a], [b]).values for a, b in zip(images, images[::-1], strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=2e-5, atol=0)
    assert len(set(together.tolist())) == 3


def test_what_cannot_be_asked_is_nan() -> None:
    """A control token in the prompt and an image that the processor refuses are told; the neighbour keeps its own."""
    judge, images = Better.of(vlm()), pictures()
    whole = judge.compare(images, images[::-1], PROMPTS).values
    prompts = [PROMPTS[0], "a cat<|im_end|>", PROMPTS[2]]
    values, notes = judge.compare([Image.new("RGB", (600, 2)), *images[1:]], images[::-1], prompts)
    assert values.isnan().tolist() == [True, True, False]
    assert notes[0].startswith("an image of the pair is refused by the model's processor: absolute aspect ratio")
    assert notes[1] == "the prompt holds <|im_end|>, which the model would take for a command"
    torch.testing.assert_close(values[2], whole[2], rtol=2e-5, atol=0)
    assert Quality.of(vlm()).compare(images[:1], images[1:2], ["<|im_end|>"]).values.isfinite()


def test_a_model_that_thinks_first_is_refused() -> None:
    """What it would say at once is no answer."""
    processor = tiny_processor(["Image"])
    processor.chat_template = CHAT.replace("assistant\n{%", "assistant\n<think>\n{%")
    with pytest.raises(ValueError, match=r"pair.better needs a model that answers at once, got one that thinks first"):
        Better.of(Vlm(vlm().network, processor, name="pair.better"))


EXAMPLE = (
    "Alignment Score:\n Image 1: 0.435699999332428\n Image 2: 0.564300000667572\n\n"
    "Coherence Score:\n Image 1: 0.4\n Image 2: 0.4\n\n"
    "Style Score:\n Image 1: 1\n Image 2: 0\n"
)


@pytest.mark.parametrize(
    ("judge", "text", "value"),
    [
        (PairAlignment, EXAMPLE, 0.435699999332428),
        (PairCoherence, EXAMPLE, 0.5),
        (PairStyle, EXAMPLE, 1.0),
        (PairStyle, EXAMPLE[:120], math.nan),
        (PairAlignment, "Alignment Score:\n Image 1: 0\n Image 2: 0\n", math.nan),
        (PairAlignment, "Alignment Score:\n Image 2: 0.4\n Image 1: 0.6\n", math.nan),
        (PairAlignment, "", math.nan),
        (PairThink, "<think>\nImage 2: 9</think>\n<answer>Image 1 is better</answer>", 1.0),
        (PairThink, "<answer> Image 2 is better. </answer>", 0.0),
        (PairThink, "<think>Image 1 is better</think>", math.nan),
        (PairThink, "<answer>Image 1 is better or Image 2 is better</answer>", math.nan),
        (PairThink, "<answer>Both are good</answer>", math.nan),
    ],
)
def test_what_is_written_is_read(judge: type[Written], text: str, value: float) -> None:
    """The shares of each axis, and the verdict after thinking; what is not there is no half."""
    assert judge.read(text) == pytest.approx(value, nan_ok=True)


def test_a_text_without_a_verdict_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is in the note, as that of every answer is; the question is the authors', about both images."""
    judge, asked = PairThink.tiny(), []
    texts = iter(["<answer>Image 1 is better</answer>", "I cannot tell."])
    answer = lambda images, text, *, tokens: asked.append((images, text, tokens)) or next(texts)  # noqa: E731
    monkeypatch.setattr(judge.vlm, "answer", answer)
    images = pictures()
    values, notes = judge.compare(images[:2], images[1:], ["a {cat}", "b"])
    assert values.tolist() == pytest.approx([1, math.nan], nan_ok=True)
    assert notes == ["<answer>Image 1 is better</answer>", "no verdict on the two images in: I cannot tell."]
    assert [each[0] for each in asked] == [images[:2], images[1:]]
    assert asked[0][1].count("<|image_pad|>") == 2
    assert asked[0][1].endswith("Text Caption: [a {cat}]<|im_end|>\n<|im_start|>assistant\n")


def test_the_likeliest_words_are_written() -> None:
    """What `pair_think` answers is the verdict with the highest logit after the chat about both images."""
    judge, images = PairThink.tiny(), pictures()
    values, notes = judge.compare(images, images[::-1], PROMPTS)
    for a, b, prompt, value, note in zip(images, images[::-1], PROMPTS, values.tolist(), notes, strict=True):
        text = judge.vlm.conversation([judge.question.replace("{prompt}", prompt)], images=2)
        likeliest = judge.vlm.tokenizer.decode(next_probabilities(judge.vlm, [a, b], text).argmax()).strip()
        assert (note, value) == (likeliest, judge.read(likeliest))


def test_learns_from_a_model_in_a_folder(rwk: Callable[..., Any], tmp_path: Path) -> None:
    """`rwk optimize --reward pair.better@FOLDER` draws, asks in both orders, learns and judges, with a truth beside."""
    vlm().network.save_pretrained(tmp_path / "vlm")
    vlm().processor.save_pretrained(tmp_path / "vlm")
    name = f"pair.better@{tmp_path / 'vlm'}"
    small = (
        "--prompt-count",
        "4",
        "--eval-prompts",
        "1",
        "--eval-images",
        "2",
        "--group-size",
        "4",
        "--save-every",
        "0",
    )
    run = ("--opponents", "1", "--steps", "2", "--prompts-per-step", "2", "--out", str(tmp_path / "run"), "--json")
    ended = rwk("optimize", "--algo", "grpo", "--reward", name, *small, *run)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    for judged in found["results"]["base"].values():
        assert judged[name]["mean"] == pytest.approx(0.5)
    assert found["cost"]["reward_forwards"] == 2 * 2 * 4 * 2  # of each image one answer, and its truth
    row = read(tmp_path / "run" / "metrics.jsonl")[0]
    assert abs(row[f"reward/{name}/order_bias"]) > 1e-4
    assert 0 <= row[f"reward/{name}/order_contradiction"] <= 1


def test_judges_are_listed_and_told(rwk: Callable[..., Any]) -> None:
    """`rwk list judges` has every name, `rwk info` their terms, and what a margin is made of."""
    listed = json.loads(rwk("list", "judges", "--json").out)
    assert [each["name"] for each in listed["judges"]] == JUDGES.names()
    assert list(listed) == ["judges"]
    shown = rwk("list", "judges").out
    assert "unifiedreward.pair_think" in shown
    told = json.loads(rwk("info", "unifiedreward.pair", "--json").out)
    assert (told["kind"], told["unit"], told["licence"]) == ("judge", "P(first is better)", "MIT")
    assert told["weights"][0]["source"] == "CodeGoat24/UnifiedReward-qwen-7b"
    told = json.loads(rwk("info", "margin@hpsv2.v21", "--json").out)
    assert told["weights"][0]["source"] == "xswu/HPSv2"
    assert (told["kind"], told["needs_prompt"]) == ("judge", True)
    assert json.loads(rwk("info", "margin@0.5*contrast+noise", "--json").out)["weights"] == []
    assert "are of rewards" in rwk("list", "judges", "--differentiable").err


def test_a_wrong_name_is_told(rwk: Callable[..., Any]) -> None:
    """A folder that is none, and a setting that cannot go with a judge, end a run before anything is drawn."""
    ended = rwk("optimize", "--algo", "grpo", "--reward", "pair.better@/nowhere/at-all")
    assert ended.code == 1
    assert "pair.better needs the vision-language model /nowhere/at-all" in ended.err
    ended = rwk("optimize", "--algo", "grpo", "--reward", "pair.better", "--gate", "0.25")
    assert ended.code == 2
    assert "pair.better is a pair judge, and a win rate has no temperature" in ended.err

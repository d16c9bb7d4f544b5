"""GOT-OCR: the rewards of Flow-GRPO and UniRL, what transformers itself reads, and prompts without a text."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.adapters.ocr import END, GotOcr, agreement, letters, levenshtein, quoted
from rwk.adapters.preprocess import Preprocess
from rwk.rewards.registry import load

CASE = runpy.run_path(str(Path(__file__).with_name("ocr_case.py")))
PICTURE = runpy.run_path(str(Path(__file__).with_name("clip_case.py")))["picture"]
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "ocr.json").read_text())
IMAGES = [PICTURE(f"{w}x{h}", w, h) for w, h in ((160, 120), (90, 200), (128, 128), (40, 33), (300, 260))]


@pytest.fixture(scope="module")
def tiny() -> GotOcr:
    return GotOcr.tiny()


@pytest.fixture
def saved(tiny: GotOcr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `save_pretrained` writes it; the class reads pictures of that network's size."""
    tiny.network.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(GotOcr, "preprocess", tiny.preprocess)
    return tmp_path


def test_rewards_are_those_of_flow_grpo_and_unirl(record_property: Any) -> None:
    """Of what was read and a prompt the score is that of both sources, to the last bit of float64."""
    for source, cases in (("flow_grpo", CASE["CASES"]), ("unirl", (*CASE["CASES"], *CASE["SINGLE"]))):
        found = [agreement(letters(read), letters(quoted(prompt))) for read, prompt in cases]
        official = torch.tensor(RECORDED[source], dtype=torch.float64)
        assert len(official.unique()) > 5
        AGREE(record_property, "ocr.got", RECORDED, torch.tensor(found, dtype=torch.float64), official, atol=1e-15)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign "Open" and a mug "Tea"', "Open"),
        ("a sign “Open” and a mug 'Tea'", "Open"),
        ("a mug 'Tea' and a sign \"Open\"", "Open"),
        ("a mug ‘Don’t panic’ here", "Don’t panic"),
        ("a dog's bowl and a cat's hat", ""),
        ("the dogs' bowl, the cats' hat", ""),
        ('a 6" pipe', ""),
        ('a sign "" and a mug "Tea"', ""),
        ('"two\nlines"', "two\nlines"),
        ("no quotes", ""),
        ("", ""),
    ],
)
def test_what_is_wanted(prompt: str, text: str) -> None:
    """The first pair of double quotes counts, then the first of single ones; apostrophes and inches are no pairs."""
    assert quoted(prompt) == text


def test_blanks_and_capitals_do_not_count() -> None:
    """Lines, tabs and hard spaces count as little as blanks, in small letters of any script."""
    assert letters(" A b\n\tC\u00a0É ") == "abcé"


def test_levenshtein_is_its_definition() -> None:
    """On random texts of few letters it is the recursive definition, and a distance."""

    @cache
    def defined(first: str, second: str) -> int:
        if not first or not second:
            return len(first) + len(second)
        changed = defined(first[1:], second[1:]) + (first[0] != second[0])
        return min(changed, defined(first[1:], second) + 1, defined(first, second[1:]) + 1)

    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(3, (60, 6), generator=generator).tolist()
    drawn = ["".join("abc"[code] for code in row[: i % 7]) for i, row in enumerate(codes)]
    for first, second in zip(drawn, drawn[1:], strict=False):
        assert levenshtein(first, second) == defined(first, second) == levenshtein(second, first)


def test_what_is_read_is_what_transformers_reads(saved: Path) -> None:
    """From one folder the adapter reads what transformers does with its own processor, told as UniRL's service does."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer, GotOcr2ImageProcessorPil, GotOcr2Processor

    reward = load(f"ocr.got@{saved}", longest=6)
    assert isinstance(reward, GotOcr)
    words = AutoTokenizer.from_pretrained(saved)
    processor = GotOcr2Processor(GotOcr2ImageProcessorPil(size={"height": 128, "width": 128}), words)
    model = AutoModelForImageTextToText.from_pretrained(saved).eval()
    told = {"do_sample": False, "tokenizer": words, "stop_strings": END, "max_new_tokens": 6, "pad_token_id": 0}
    expected = []
    for image in IMAGES:
        inputs = processor(image, num_image_tokens=4, return_tensors="pt")
        torch.testing.assert_close(reward.preprocess.exact([image]), inputs["pixel_values"], rtol=0, atol=2e-6)
        assert torch.equal(reward.ids, inputs["input_ids"])
        written = model.generate(**inputs, **told)[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.decode(written, skip_special_tokens=True).strip())
    assert len(set(expected)) > 1  # pictures tell
    assert [reward.read(image) for image in IMAGES] == expected


def test_it_stops_where_the_network_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the message ends the reading; without it `longest` tokens are written."""
    reward, lengths = GotOcr.tiny(), []
    generate = reward.network.generate

    def counted(**given: Any) -> Any:
        written = generate(**given)
        lengths.append(written.shape[1] - reward.ids.shape[1])
        return written

    monkeypatch.setattr(reward.network, "generate", counted)
    assert len(reward.read(IMAGES[0])) == 6
    row = reward.network.lm_head.weight[reward.tokenizer.convert_tokens_to_ids(["a", "b", "c"])].abs().sum(0)
    reward.network.lm_head.weight[reward.tokenizer.convert_tokens_to_ids(END)] = row
    hidden = reward.network.model.language_model.norm
    monkeypatch.setattr(hidden, "forward", positive(hidden.forward))
    assert reward.read(IMAGES[0]) == ""
    assert lengths == [6, 1]


def positive(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda states: forward(states).abs()


def test_a_prompt_without_a_text_is_no_score(tiny: GotOcr, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in quotes, or quotes around nothing, is NaN with a note and is not read; the neighbours are scored."""
    read = []
    monkeypatch.setattr(tiny, "read", lambda image: read.append(image) or "Abba")
    values, notes = tiny.score(IMAGES[:4], ["a dog", '"abba"', '" "', "“ABC”"])
    assert values.isnan().tolist() == [True, False, True, False]
    assert notes[0] == notes[2] == "the prompt has no text in quotes, so there is nothing to look for"
    assert values[[1, 3]].tolist() == pytest.approx([1, 1 / 3])
    assert notes[1::2] == ["read 'Abba'"] * 2
    assert len(read) == 2


def test_a_score_does_not_depend_on_neighbours(tiny: GotOcr) -> None:
    """What is read in a picture is the same alone, among others and in another order, to the letter."""
    prompts = ['"caaaac"', '"cab"', "“ab cc”", "'bb'", '"aaaa aaaa"']
    together = tiny.score(IMAGES, prompts)
    alone = [tiny.score([image], [prompt]) for image, prompt in zip(IMAGES, prompts, strict=True)]
    assert torch.equal(together.values, torch.cat([one.values for one in alone]))
    assert together.notes == [one.notes[0] for one in alone]
    turned = tiny.score(IMAGES[::-1], prompts[::-1], batch_size=2)
    assert torch.equal(turned.values.flip(0), together.values)


def test_a_file_in_the_published_layout(saved: Path, tiny: GotOcr) -> None:
    """Keys as transformers 4 wrote them are read, and a file that lacks a layer is refused."""
    from safetensors.torch import load_file, save_file

    path = saved / "model.safetensors"
    older = {}
    for key, value in load_file(path).items():
        key = key.replace("model.language_model.", "language_model.model.").removeprefix("model.")
        older["language_model.lm_head.weight" if key == "lm_head.weight" else key] = value
    save_file(older, path, {"format": "pt"})
    reward = GotOcr(weights=saved, longest=6)
    assert [reward.read(image) for image in IMAGES] == [tiny.read(image) for image in IMAGES]
    config = (saved / "config.json").read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    (saved / "config.json").write_text(config)
    del older["language_model.lm_head.weight"]  # the published file has one table for both ends
    save_file(older, path, {"format": "pt"})
    network = GotOcr(weights=saved).network
    assert torch.equal(network.lm_head.weight, older["language_model.model.embed_tokens.weight"])
    del older["multi_modal_projector.conv_upsampler1.weight"]
    save_file(older, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"ocr.got needs a checkpoint .* 1 keys .*conv_upsampler1"):
        GotOcr(weights=saved)


def test_the_published_size(tiny: GotOcr) -> None:
    """At its published size the network weighs, in bfloat16, what the file does, and a picture is 256 tokens."""
    from transformers import GotOcr2Config, GotOcr2ForConditionalGeneration

    with torch.device("meta"):
        network: Any = GotOcr2ForConditionalGeneration(GotOcr2Config())
    numbers = sum(value.numel() for value in network.parameters())  # the table of words counts once
    assert GotOcr.origin.megabytes == pytest.approx(2 * numbers / 1e6, abs=1)
    reward = GotOcr.of(tiny.network, tiny.tokenizer, longest=1, preprocess=Preprocess(1024, fit="squash"))
    assert (reward.ids == tiny.tokenizer.convert_tokens_to_ids("<imgpad>")).sum() == 256


def test_weights_without_their_configuration(saved: Path) -> None:
    """A file that was copied alone is answered with the name of the one that lacks."""
    (saved / "config.json").unlink()
    for given in (saved, saved / "model.safetensors"):
        with pytest.raises(
            ValueError, match=r"ocr.got needs the file config.json of stepfun-ai/GOT-OCR-2.0-hf, got no"
        ):
            GotOcr(weights=given)

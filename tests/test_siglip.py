"""SigLIP and SigLIP 2: transformers' own logits, what they read of a prompt, and their gradient."""

from __future__ import annotations

import runpy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.siglip import TINY, Siglip, Siglip2, Siglip2Large, SiglipLarge, network, small_tokenizer
from rwk.rewards.errors import RunFailed

CASE = runpy.run_path(str(Path(__file__).with_name("clip_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
PROMPTS = ["a red cat", "", "the blue cat on a wooden table", "a red cat " * 30]
SIZE = 64
TOLERANCE = 1e-5
"""Of scores that differ by 1 from picture to picture."""


def published(kind: type[Siglip]) -> torch.nn.Module:
    """A small network with random weights of a size that lets pictures and prompts tell."""
    made = network(TINY, SIZE, 8, len(small_tokenizer(PROMPTS, kind.pad)))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        spread = 1 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.3
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    made.logit_scale.data.fill_(3.0)
    made.logit_bias.data.fill_(-5.0)
    return made.eval().requires_grad_(False)


@pytest.fixture(params=[Siglip, Siglip2])
def loaded(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Siglip:
    """The adapter with small weights from a file in the layout of transformers, and a small vocabulary in a folder."""
    from safetensors.torch import save_file

    kind = request.param
    tensors = {key: value.clone() for key, value in published(kind).state_dict().items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    tokenizer = small_tokenizer(PROMPTS, kind.pad)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(kind, "build", classmethod(lambda cls: network(TINY, SIZE, 8, len(tokenizer))))
    monkeypatch.setattr(kind, "preprocess", replace(kind.preprocess, size=SIZE))
    return kind(weights=tmp_path, tokenizer=tmp_path)


def ids_of(kind: type[Siglip], prompt: str) -> Tensor:
    """[1, 64] ids written out: words, end of text, padding."""
    words = small_tokenizer(PROMPTS, kind.pad).get_vocab()
    read = [words[word] for word in prompt.split()][:63] + [1]
    return torch.tensor([read + [words[kind.pad]] * (64 - len(read))])


def expected(kind: type[Siglip], images: list[Image.Image]) -> Tensor:
    """[prompts, pictures] `logits_per_image` of transformers, on its own image processor's pixels."""
    from transformers import SiglipImageProcessorPil

    filters = {Siglip: Image.Resampling.BICUBIC, Siglip2: Image.Resampling.BILINEAR}
    processor = SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}, resample=filters[kind])
    pixels = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
    made: Any = published(kind)
    rows = [made(input_ids=ids_of(kind, prompt), pixel_values=pixels).logits_per_image[:, 0] for prompt in PROMPTS]
    return torch.stack(rows)


def scores(reward: Siglip, images: list[Image.Image]) -> Tensor:
    return torch.stack([reward.score(images, [prompt] * len(images)).values for prompt in PROMPTS])


@pytest.mark.filterwarnings("ignore:siglip:UserWarning")  # one prompt is too long
def test_scores_are_transformers_logits(loaded: Siglip, record_property: Any) -> None:
    """On one file of weights the adapter gives `logits_per_image` of transformers' model and image processor.

    That is the release's own implementation, run here, with ids that are written out by hand: the vocabularies are on
    the hub alone. SigLIP resizes bicubic, SigLIP 2 bilinear, both to a square.
    """
    images = CASE["pictures"]()
    logits = expected(type(loaded), images)
    assert logits.std(1).min() > 0.1  # pictures tell
    assert logits.std(0).min() > 0.1  # so do prompts
    recorded = {"package": "transformers", "versions": {"transformers": version("transformers")}}
    AGREE(record_property, loaded.spec.name, recorded, scores(loaded, images), logits, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:siglip:UserWarning")
@pytest.mark.parametrize("change", ["crop", "other filter", "no padding", "left padding", "no end of text", "no bias"])
def test_other_variants_do_not_pass(loaded: Siglip, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ports get wrong shifts some score by 100 times the tolerance of the comparison, or more."""
    images = CASE["pictures"]()
    logits = expected(type(loaded), images)
    read = loaded.ids
    pad = loaded.tokenizer.pad_token_id
    if change == "crop":
        loaded.preprocess = replace(loaded.preprocess, fit="crop")
    elif change == "other filter":
        other = {"bicubic": "bilinear", "bilinear": "bicubic"}[loaded.preprocess.interpolation]
        loaded.preprocess = replace(loaded.preprocess, interpolation=other)
    elif change == "no padding":
        monkeypatch.setattr(loaded, "ids", lambda prompts: read(prompts)[:, : len(prompts[0].split()) + 1])
    elif change == "left padding":
        monkeypatch.setattr(loaded, "ids", lambda prompts: read(prompts).flip(1))
    elif change == "no end of text":
        monkeypatch.setattr(loaded, "ids", lambda prompts: read(prompts).masked_fill(read(prompts) == 1, pad + 2))
    else:
        loaded.network.get_parameter("logit_bias").zero_()
    assert (scores(loaded, images) - logits).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [(Siglip, 203_155_970), (SiglipLarge, 877_960_498), (Siglip2, 375_187_970), (Siglip2Large, 1_136_008_498)],
)
def test_full_size_is_what_is_published(kind: type[Siglip], numbers: int) -> None:
    """Each network at its full size has the number of weights of its model card, which weigh what the file does."""
    with torch.device("meta"):
        made = kind.build()
    assert sum(value.numel() for value in made.state_dict().values()) == numbers
    assert kind.origin.megabytes == pytest.approx(4 * numbers / 1e6, abs=1)


def test_letters_and_punctuation() -> None:
    """Neither reads capitals; SigLIP reads no punctuation, SigLIP 2 does."""
    assert Siglip.canonical("  A red,  CAT!_") == "a red cat"
    assert Siglip2.canonical("A red, CAT!") == "a red, cat!"
    image = CASE["pictures"]()[0]
    for kind in (Siglip, Siglip2):
        first, second = kind.tiny().score([image] * 2, ["A Dog", "a dog"]).values
        assert first == second


@pytest.mark.parametrize("kind", [Siglip, Siglip2])
def test_a_prompt_that_is_cut_is_named_once(kind: type[Siglip]) -> None:
    """63 pieces and the end of text are read, 64 with a warning; what follows changes nothing, and the end stays."""
    reward, image = kind.tiny(), CASE["pictures"]()[0]
    whole, longer = " ".join(["a"] * 63), " ".join(["a"] * 63 + ["dog"])
    expected = reward.score([image], [whole]).values
    with pytest.warns(UserWarning, match=f"{kind.spec.name} reads 64 tokens of a prompt, got 65 in"):
        assert torch.equal(reward.score([image], [longer]).values, expected)
    assert reward.ids([longer])[0, -1] == 1


def test_no_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    """Where the vocabulary is not at hand, the error says what to install, unset or copy."""
    tiny = Siglip.tiny()
    reward = Siglip.of(tiny.network, preprocess=tiny.preprocess, vocabulary=(tmp_path / "none", None))
    told = r"siglip.b16_224 needs the tokenizer of .*none.* beside the weights .* siglip.b16_224@PATH"
    with pytest.raises(RunFailed, match=told):
        reward.score(CASE["pictures"]()[:1], ["a dog"])


@pytest.mark.parametrize("kind", [Siglip, Siglip2])
def test_gradient_is_that_of_finite_differences(kind: type[Siglip]) -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = kind.tiny()
    reward.network.double()
    generator = torch.Generator().manual_seed(1)
    pixels, step = torch.rand(2, 2, 3, 45, 40, dtype=torch.float64, generator=generator)
    prompts = ["a dog", "a red cube on a green ball"]
    leaf = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward.score_pixels(leaf, prompts).sum(), leaf)
    ahead, behind = (reward.score_pixels(pixels + sign * 1e-5 * step, prompts).sum() for sign in (1, -1))
    expected = ((ahead - behind) / 2e-5).item()
    assert abs(expected) > 1e-6
    assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-4)

"""CLIP-FlanT5: the scores of the authors' code on the published layout with random weights, and what changes them."""

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

from rwk.adapters import vqascore
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.vqascore import FlanT5, FlanT5Xl, tiny_tokenizer
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load

AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).parent / "parity" / "vqascore.json").read_text())
PROMPTS = [
    "a red cube on a green ball",
    "",
    'a "na\u00efve" cat, {prompt} & {} \u2014 \u732b',
    "two birds, " * 220,
    "a dog",
]
SIZE = 28


def pictures() -> list[Image.Image]:
    """Stripes and noise: wide, high, square, and with odd borders."""
    draw = np.random.RandomState(7)
    made = []
    for height, width in ((60, 101), (90, 47), (28, 28), (33, 200), (64, 64)):
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / 3.1) * 90 + 128, np.sin(y / 5.3 + x / 50) * 90 + 128, (x + 2 * y) % 256]
        made.append(np.clip(np.stack(waves, 2) + draw.randint(-30, 31, (height, width, 3)), 0, 255).astype(np.uint8))
    return [Image.fromarray(image) for image in made]


def configs() -> tuple[Any, Any]:
    """Small T5 and CLIP; the head has 28 rows more than the tokenizer has words, as the published one."""
    from transformers import CLIPVisionConfig, T5Config

    heads = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    t5 = T5Config(
        vocab_size=len(tiny_tokenizer()) + 28, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **heads
    )
    return t5, CLIPVisionConfig(image_size=SIZE, patch_size=14, **sizes)


@cache
def published() -> dict[str, Tensor]:
    """Random tensors in bfloat16 under the keys of the published files."""
    from transformers import CLIPVisionModel, T5ForConditionalGeneration

    t5, vision = configs()
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in T5ForConditionalGeneration(t5).state_dict().items()}
        for key, value in CLIPVisionModel(vision).state_dict().items():
            shapes["vision_tower.vision_tower.vision_model." + key] = value.shape
    for layer, inner in ((0, 24), (2, 32)):
        shapes |= {
            f"mm_projector.{layer}.weight": torch.Size([32, inner]),
            f"mm_projector.{layer}.bias": torch.Size([32]),
        }
    draw = np.random.RandomState(13)
    tensors = {}
    for key, shape in sorted(shapes.items()):
        scale = 0.1 if len(shape) == 1 else 1.2 / math.sqrt(math.prod(shape[1:]))
        offset = 1.0 if "norm" in key and key.endswith("weight") else 0.0
        tensors[key] = torch.from_numpy(offset + scale * draw.standard_normal(shape)).bfloat16()
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "embed_tokens.weight"):
        tensors[copy] = tensors["shared.weight"]
    return tensors


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as one would copy it: two torch files, the list of them, and the tokenizer."""
    names = sorted(published())
    places = {key: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, key in enumerate(names)}
    for file in set(places.values()):
        torch.save({key: published()[key] for key in names if places[key] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    tiny_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(FlanT5, "configs", staticmethod(configs))
    monkeypatch.setattr(FlanT5, "preprocess", Preprocess(SIZE, "squash"))
    return tmp_path


def scores(reward: FlanT5) -> Tensor:
    """Of all images but that with the long prompt."""
    return reward.score([*pictures()[:3], pictures()[4]], [*PROMPTS[:3], PROMPTS[4]]).values


def expected() -> Tensor:
    return torch.tensor(RECORDED["scores"])[[0, 1, 2, 4]]


def test_scores_are_those_of_the_authors_code(folder: Path, record_property: Any) -> None:
    """In a batch scores are those of t2v_metrics before version 3.1, and so is that of a prompt which is cut off."""
    assert expected().std() > 0.02 * expected().mean()
    reward = load(f"vqascore.flant5@{folder}", dtype="float32")
    AGREE(record_property, reward.spec.name, RECORDED, scores(reward), expected(), rtol=2e-5)
    with pytest.warns(UserWarning, match="vqascore.flant5 reads 2048 tokens of a prompt, got 2598 in 'two birds,"):
        cut = reward.score(pictures()[3:], PROMPTS[3:]).values
    AGREE(record_property, reward.spec.name, RECORDED, cut, torch.tensor(RECORDED["scores"])[3:], rtol=1e-4)


def tied_head(reward: FlanT5, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head shares the embeddings, as transformers 5 has it by default."""
    reward.network.t5.lm_head.weight = reward.network.t5.shared.weight


def class_token(reward: FlanT5, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's class token stands before the patches."""
    vision = reward.network.vision

    class Shifted(torch.nn.Module):
        def forward(self, pixels: Tensor, output_hidden_states: bool) -> Any:
            made = vision(pixels, output_hidden_states=output_hidden_states)
            made.hidden_states = [torch.cat([state[:, :1], state], 1) for state in made.hidden_states]
            return made

    reward.network.vision = Shifted()


def first_token_alone(reward: FlanT5, monkeypatch: pytest.MonkeyPatch) -> None:
    """P("Yes") without the end."""
    ids = reward._ids
    monkeypatch.setattr(reward, "_ids", lambda text: ids(text)[: 1 if text == vqascore.ANSWER else None])


def every_row(reward: FlanT5, monkeypatch: pytest.MonkeyPatch) -> None:
    """The softmax takes the rows of the head that no word has."""
    known = reward.tokenizer

    class Longer:
        def __len__(self) -> int:
            return len(known) + 28

        def __call__(self, text: str) -> Any:
            return known(text)

    reward.tokenizer = Longer()


def one_text(reward: FlanT5, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text before the image does not end in </s>."""
    ids = reward._ids
    monkeypatch.setattr(reward, "_ids", lambda text: ids(text)[: -1 if text == vqascore.BEFORE else None])


def black_border(reward: FlanT5, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "border", (0, 0, 0))


def last_layer(reward: FlanT5, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's last layer instead of the one before."""
    layers = reward.network.vision.encoder.layers
    layers[1], layers[2] = layers[2], layers[1]


@pytest.mark.parametrize(
    "variant", [tied_head, class_token, first_token_alone, every_row, one_text, black_border, last_layer]
)
def test_a_wrong_variant_shows(folder: Path, monkeypatch: pytest.MonkeyPatch, variant: Callable[..., None]) -> None:
    """Each trap moves a score by 100 times the tolerance or more."""
    reward = FlanT5(weights=folder, dtype="float32")
    variant(reward, monkeypatch)
    assert ((scores(reward) - expected()).abs() / expected()).max() > 2e-3


def test_bfloat16_is_near(folder: Path) -> None:
    """The published type gives the same scores but for its rounding."""
    torch.testing.assert_close(scores(FlanT5(weights=folder)), expected(), rtol=0.05, atol=0)


def test_pixels_of_an_oblong_image(folder: Path) -> None:
    """`score_pixels` adds the same border as `score`, for high and wide images."""
    reward = FlanT5(weights=folder, dtype="float32")
    for image in pictures()[:2]:
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
        exact = reward.score([image], ["a dog"]).values
        torch.testing.assert_close(reward.score_pixels(pixels, ["a dog"]), exact, rtol=0.02, atol=0)


def test_the_gradient_is_that_of_the_score() -> None:
    """A small step along the gradient changes the score by the gradient's length times the step's."""
    reward = FlanT5.tiny()
    reward.network.double()
    noise = torch.rand(1, 3, 30, 43, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pixels = (0.3 + 0.4 * noise).requires_grad_()

    def score() -> Tensor:
        return reward.score_pixels(pixels, ["a dog"]).sum()

    (slope,) = torch.autograd.grad(score(), pixels)
    step = 1e-1 * slope / slope.norm()
    with torch.no_grad():
        ends = []
        for sign in (1, -2):
            pixels += sign * step
            ends.append(score().item())
    assert slope.norm() > 0
    assert (ends[0] - ends[1]) / 2e-1 == pytest.approx(slope.norm().item(), rel=1e-2)


def test_an_image_too_long(folder: Path) -> None:
    """An image 100 times as long as wide, which would be made a huge square, gets NaN; its neighbour does not."""
    reward = FlanT5(weights=folder, dtype="float32")
    values, notes = reward.score([Image.new("RGB", (2, 200)), pictures()[0]], ["a dog", PROMPTS[0]])
    assert math.isnan(values[0])
    assert notes[0] == "is made a square, so it may be at most 64 times as long as wide, got 2x200"
    assert values[1] == pytest.approx(RECORDED["scores"][0], rel=2e-5)


def test_files_that_do_not_fit(folder: Path) -> None:
    """A missing shard, key, head, or tokenizer, and a damaged list of files, are one sentence each."""
    shard = folder / "pytorch_model-00002-of-00002.bin"
    tensors = torch.load(shard, weights_only=True)
    for key, told in (
        ("shared.weight", r"4 keys .*\(decoder.embed_tokens.weight"),
        ("decoder.final_layer_norm.weight", "1 keys .*decoder.final_layer_norm.weight"),
        ("lm_head.weight", r"1 missing \(weight\)"),
        ("mm_projector.0.weight", r"1 missing \(0.weight\)"),
    ):
        for file in folder.glob("*.bin"):
            whole = torch.load(file, weights_only=True)
            if key in whole:
                torch.save({k: v for k, v in whole.items() if k != key}, file)
                with pytest.raises(ValueError, match=f"vqascore.flant5 .*{told}"):
                    FlanT5(weights=folder)
                torch.save(whole, file)
    shard.unlink()
    with pytest.raises(
        ValueError, match=r"needs the file pytorch_model-00002-of-00002.bin of zhiqiulin/clip-flant5-xxl"
    ):
        FlanT5(weights=folder)
    torch.save(tensors, shard)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(RunFailed, match="vqascore.flant5 needs the tokenizer of google/flan-t5-xxl"):
        FlanT5(weights=folder)
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(ValueError, match="must list files under weight_map"):
        FlanT5(weights=folder)


def test_the_published_sizes() -> None:
    """T5's XXL and XL, which have 11.14 and 2.85 billion weights, head and embeddings counted apart."""
    for kind, count in ((FlanT5, 11_135_332_352), (FlanT5Xl, 2_849_757_184)):
        with torch.device("meta"):
            network = kind.build()
        assert sum(weight.numel() for weight in network.t5.parameters()) == count
        assert network.vision.embeddings.position_embedding.weight.shape == (577, 1024)

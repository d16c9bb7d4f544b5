"""HPSv3: the scores of the official package on the published layout with random weights, and what would change them."""

from __future__ import annotations

import json
import math
import re
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from rwk.adapters.hpsv3 import REWARD, HpsV3, HpsV3Network
from rwk.adapters.questions import HPSV3
from rwk.adapters.vlm import tiny_processor
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load

AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).parent / "parity" / "hpsv3.json").read_text())
PROMPTS = ["a red cube on a green ball", "", 'a "naïve" cat, {text_prompt} & co. — 猫', "two birds " * 40, "a dog"]


def pictures() -> list[Image.Image]:
    """Stripes and noise in five shapes: none a multiple of 28, larger and smaller than what the network reads."""
    draw = np.random.RandomState(5)
    made = []
    for height, width in ((300, 500), (129, 77), (448, 448), (61, 610), (900, 333)):
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / 3.1) * 90 + 128, np.sin(y / 5.3 + x / 50) * 90 + 128, (x + 2 * y) % 256]
        made.append(np.clip(np.stack(waves, 2) + draw.randint(-30, 31, (height, width, 3)), 0, 255).astype(np.uint8))
    return [Image.fromarray(image) for image in made]


@cache
def tokenizer() -> Any:
    """A tokenizer that does not know the reward token yet, as Qwen2-VL's."""
    return tiny_processor(re.findall(" ?[a-zA-Z]+", HPSV3)).tokenizer


def config(words: int) -> Any:
    """Qwen2-VL, small; head_dim 8."""
    from transformers import Qwen2VLConfig

    ids = tokenizer().convert_tokens_to_ids
    return Qwen2VLConfig(
        text_config={
            **{"vocab_size": words, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6},
            **{"bos_token_id": None, "eos_token_id": ids("<|im_end|>")},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )


@cache
def published() -> dict[str, Tensor]:
    """Random tensors in bfloat16 under the keys of `HPSv3.safetensors`; its vocabulary is one token the longer."""
    from transformers import Qwen2VLForConditionalGeneration

    with torch.device("meta"):
        network = Qwen2VLForConditionalGeneration(config(len(tokenizer()) + 1))
        head = HpsV3Network(torch.nn.Identity(), 32)
    shapes = {
        key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value.shape
        for part in (network, head)
        for key, value in part.state_dict().items()
    }
    draw = np.random.RandomState(11)
    tensors = {}
    for key, shape in sorted(shapes.items()):
        scale = 0.1 if len(shape) == 1 else 1.5 / math.sqrt(math.prod(shape[1:]))
        offset = 1.0 if "norm" in key and key.endswith("weight") or key.endswith("ln_q.weight") else 0.0
        tensors[key] = torch.from_numpy(offset + scale * draw.standard_normal(shape)).bfloat16()
    return tensors


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as one would copy it: the checkpoint, and beside it the tokenizer."""
    save_file(published(), tmp_path / "HPSv3.safetensors")
    tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(HpsV3, "config", staticmethod(config))
    return tmp_path


def scores(reward: HpsV3) -> Tensor:
    return reward.score(pictures(), PROMPTS).values


def test_scores_are_those_of_the_package(folder: Path, record_property: Any) -> None:
    """On five images and prompts mu is that of hpsv3 1.0.0 with transformers 4.45.2, one by one and in a batch."""
    expected = torch.tensor(RECORDED["scores"])
    assert expected.std() > 0.02
    reward = load(f"hpsv3.v3@{folder}", dtype="float32")
    for size in (1, 5):
        values = reward.score(pictures(), PROMPTS, batch_size=size).values
        AGREE(record_property, reward.spec.name, RECORDED, values, expected, atol=2e-6)


def native_positions(reward: HpsV3) -> None:
    """Image tokens numbered by row and column, as transformers does by itself."""
    backbone = reward.network.backbone
    forward = backbone.forward
    pad = tokenizer().convert_tokens_to_ids("<|image_pad|>")

    def native(*, position_ids: Tensor, input_ids: Tensor, **rest: Any) -> Any:
        return forward(input_ids=input_ids, mm_token_type_ids=(input_ids == pad).int(), **rest)

    reward.network.backbone.forward = native


def exact_frequencies(reward: HpsV3) -> None:
    """Rotary frequencies in float32, as transformers keeps them."""
    for module in reward.network.backbone.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq.copy_(module.original_inv_freq)


def other_area(reward: HpsV3) -> None:
    """As many pixels as Qwen2-VL would take by itself."""
    reward.area = 300 * 28 * 28


def sigma(reward: HpsV3) -> None:
    """The second output of the head."""
    last = reward.network.rm_head[5]
    last.weight.copy_(last.weight.flip(0))
    last.bias.copy_(last.bias.flip(0))


@pytest.mark.parametrize("variant", [native_positions, exact_frequencies, other_area, sigma])
def test_a_wrong_variant_shows(folder: Path, variant: Callable[[HpsV3], None]) -> None:
    """Each trap moves the scores by 100 times the tolerance or more."""
    reward = HpsV3(weights=folder, dtype="float32")
    with torch.no_grad():
        variant(reward)
    assert (scores(reward) - torch.tensor(RECORDED["scores"])).abs().max() > 2e-4


def test_a_stripped_question_shows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trailing spaces of the question have a say."""
    monkeypatch.setattr("rwk.adapters.hpsv3.HPSV3", HPSV3.replace(":**  \n", ":**\n"))
    values = scores(HpsV3(weights=folder, dtype="float32"))
    assert (values - torch.tensor(RECORDED["scores"])).abs().max() > 2e-4


def test_bfloat16_is_near(folder: Path) -> None:
    """The published type gives the same scores but for its rounding."""
    values = scores(HpsV3(weights=folder))
    torch.testing.assert_close(values, torch.tensor(RECORDED["scores"]), rtol=0, atol=0.05)


def test_the_resize_is_that_of_qwen() -> None:
    """Width and height are those that transformers' own code for Qwen2-VL gives, asked for that many pixels."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    reward = HpsV3.tiny()
    reward.area = HpsV3.area
    shapes = ((1, 1), (500, 300), (448, 448), (447, 449), (610, 61), (4000, 21), (7, 1400), (2048, 2048), (15, 14))
    for width, height in shapes:
        expected = smart_resize(height, width, min_pixels=reward.area, max_pixels=reward.area)[::-1]
        assert reward.fitted(width, height) == expected


def test_the_gradient_is_that_of_the_score() -> None:
    """A small step along the gradient changes the score by the gradient's length times the step's."""
    reward = HpsV3.tiny()
    reward.network.double()
    noise = torch.rand(1, 3, 40, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pixels = (0.3 + 0.4 * noise).requires_grad_()  # far from where the resize clips
    (slope,) = torch.autograd.grad(reward.score_pixels(pixels, ["a dog"]).sum(), pixels)
    assert slope.abs().max() > 0
    step = 1e-2 * slope / slope.norm()
    with torch.no_grad():
        ends = [reward.score_pixels(pixels + sign * step, ["a dog"]).item() for sign in (1, -1)]
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(slope.norm().item(), rel=2e-3)


def test_prompts_and_images_without_a_score(folder: Path) -> None:
    """A second reward token in the prompt, and an image 300 times as long as wide, get NaN with a note."""
    reward = HpsV3(weights=folder, dtype="float32")
    images = [*pictures()[:2], Image.new("RGB", (2, 600))]
    values, notes = reward.score(images, [f"a cat {REWARD}", PROMPTS[1], "a dog"])
    assert values.isnan().tolist() == [True, False, True]
    assert notes[0] == "the prompt holds <|Reward|>, which the model would take for a command"
    assert notes[2] == "may be at most 200 times as long as wide, got 2x600"
    assert values[1] == pytest.approx(RECORDED["scores"][1], abs=2e-6)


def test_a_file_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    """Missing keys of network or head, a strange tokenizer and no tokenizer are one sentence each."""
    tensors = published()
    for key, told in (
        ("model.norm.weight", "1 keys .*language_model.norm.weight"),
        ("rm_head.3.bias", r"1 missing \(3.bias"),
    ):
        save_file({k: v for k, v in tensors.items() if k != key}, folder / "HPSv3.safetensors")
        with pytest.raises(ValueError, match=f"hpsv3.v3 .*{told}"):
            HpsV3(weights=folder)
    short = {**tensors, "model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:-1]}
    save_file(short, folder / "HPSv3.safetensors")
    with pytest.raises(ValueError, match=rf"tokenizer of {len(tokenizer())} tokens, .* got {len(tokenizer()) + 1}"):
        HpsV3(weights=folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(RunFailed, match="hpsv3.v3 needs the tokenizer of Qwen/Qwen2-VL-7B-Instruct"):
        HpsV3(weights=folder)


def test_the_published_size() -> None:
    """The configuration has the shapes of Qwen2-VL-7B, whose checkpoint has 8.29 billion weights in all."""
    from transformers import Qwen2VLModel

    with torch.device("meta"):
        network = Qwen2VLModel(HpsV3.config(151658))
    weights = sum(weight.numel() for weight in network.parameters())
    assert weights == 8_291_375_616 - 2 * 152064 * 3584 + 151658 * 3584

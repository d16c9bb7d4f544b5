"""T2I-R1's outcome reward: the logits of LLaVA's own code on its own layout, and what would change them."""

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
from safetensors.torch import save_file
from torch import Tensor

from rwk.adapters.orm import Orm
from rwk.adapters.preprocess import CLIP_MEAN, CLIP_STD, HALF, Preprocess
from rwk.adapters.vlm import tiny_processor
from rwk.rewards.registry import load

AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).parent / "parity" / "orm.json").read_text())
PROMPTS = ["a red cube on a green ball", "", 'a "na\u00efve" cat, {prompt} & {} \u2014 \u732b', "two birds, " * 30]


def pictures() -> list[Image.Image]:
    """Stripes and noise: wide, high, square, with odd borders, smaller and larger than the tile."""
    draw = np.random.RandomState(9)
    made = []
    for height, width in ((300, 501), (190, 47), (384, 384), (733, 640)):
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / 3.1) * 90 + 128, np.sin(y / 5.3 + x / 50) * 90 + 128, (x + 2 * y) % 256]
        made.append(np.clip(np.stack(waves, 2) + draw.randint(-30, 31, (height, width, 3)), 0, 255).astype(np.uint8))
    return [Image.fromarray(image) for image in made]


@cache
def tokenizer() -> Any:
    return tiny_processor(["yes", "no"]).tokenizer


def configs() -> tuple[Any, Any]:
    """Small Qwen2 and SigLIP, which sees 384 pixels, as LLaVA's own code makes no other tiles."""
    from transformers import Qwen2Config, SiglipVisionConfig

    language = Qwen2Config(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=None,
        eos_token_id=tokenizer().eos_token_id,
    )
    vision = SiglipVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=384, patch_size=14
    )
    vision.vision_use_head = False
    return language, vision


@cache
def published() -> dict[str, Tensor]:
    """Random tensors in bfloat16 under the keys of LLaVA's own checkpoints."""
    from transformers import Qwen2ForCausalLM, SiglipVisionModel

    language, vision = configs()
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in Qwen2ForCausalLM(language).state_dict().items()}
        for key, value in SiglipVisionModel(vision).state_dict().items():
            shapes["model.vision_tower.vision_tower.vision_model." + key] = value.shape
    shapes["model.image_newline"] = torch.Size([32])
    for layer, inner in ((0, 24), (2, 32)):
        shapes[f"model.mm_projector.{layer}.weight"] = torch.Size([32, inner])
        shapes[f"model.mm_projector.{layer}.bias"] = torch.Size([32])
    draw = np.random.RandomState(17)
    tensors = {}
    for key, shape in sorted(shapes.items()):
        scale = 0.1 if len(shape) == 1 else 1.5 / math.sqrt(math.prod(shape[1:]))
        offset = 1.0 if "norm" in key and key.endswith("weight") else 0.0
        tensors[key] = torch.from_numpy(offset + scale * draw.standard_normal(shape)).bfloat16()
    return tensors


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as one would copy it: two files, the list of them, and the tokenizer."""
    names = sorted(published())
    places = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(names)}
    for file in set(places.values()):
        save_file({key: published()[key] for key in names if places[key] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(Orm, "configs", staticmethod(configs))
    return tmp_path


def test_the_tokenizer_is_of_the_same_revision(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one revision in the hub's cache all is read from it; the tokenizer is not looked for elsewhere."""
    publish = runpy.run_path(str(Path(__file__).with_name("hub_case.py")))["publish"]
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    publish(cache, Orm.origin.hub, folder, "v1")
    assert load("orm.t2i_r1#v1", dtype="float32").tokenizer.get_vocab() == tokenizer().get_vocab()  # type: ignore[attr-defined]


def test_margins_are_those_of_the_authors_code(folder: Path, record_property: Any) -> None:
    """l_yes - l_no is that of one forward pass of LLaVA's own code, in a batch and alone; the score is its sigmoid."""
    expected = torch.tensor(RECORDED["margins"])
    assert expected.std() > 1e-3
    reward = load(f"orm.t2i_r1@{folder}", dtype="float32")
    values = reward.score(pictures(), PROMPTS).values
    AGREE(record_property, reward.spec.name, RECORDED, values, (expected / 0.3).sigmoid(), rtol=1e-5)
    torch.testing.assert_close(reward.score(pictures(), PROMPTS, batch_size=1).values, values, rtol=1e-5, atol=0)


def no_newline(reward: Orm, monkeypatch: pytest.MonkeyPatch) -> None:
    reward.network.newline.zero_()


def after_the_norm(reward: Orm, monkeypatch: pytest.MonkeyPatch) -> None:
    """SigLIP's output after its last normalisation."""
    vision = reward.network.vision

    class Normed(torch.nn.Module):
        def forward(self, pixels: Tensor, output_hidden_states: bool) -> Any:
            made = vision(pixels, output_hidden_states=output_hidden_states)
            made.hidden_states = [made.last_hidden_state]
            return made

    reward.network.vision = Normed()


def clip_colours(reward: Orm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "preprocess", Preprocess(384, "squash", mean=CLIP_MEAN, std=CLIP_STD))


def no_border(reward: Orm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "_square", lambda image: image)


def black_border(reward: Orm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "border", (0, 0, 0))


def no_leading_space(reward: Orm, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = reward._ids
    monkeypatch.setattr(reward, "_ids", lambda text: ids(text.removeprefix(" ")))


@pytest.mark.parametrize(
    "variant", [no_newline, after_the_norm, clip_colours, no_border, black_border, no_leading_space]
)
def test_a_wrong_variant_shows(folder: Path, monkeypatch: pytest.MonkeyPatch, variant: Callable[..., None]) -> None:
    """Each moves a score by 100 times the tolerance or more; at a temperature that leaves them far from 1."""
    reward = Orm(weights=folder, dtype="float32")
    monkeypatch.setattr(reward, "temperature", 3.0)
    with torch.no_grad():
        variant(reward, monkeypatch)
    expected = (torch.tensor(RECORDED["margins"]) / 3).sigmoid()
    assert ((reward.score(pictures(), PROMPTS).values - expected).abs() / expected).max() > 1e-3


def test_the_gradient_is_that_of_the_score() -> None:
    """A small step along the gradient changes the score by the gradient's length times the step's."""
    reward = Orm.tiny()
    reward.network.double()
    noise = torch.rand(1, 3, 30, 43, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pixels = (0.3 + 0.4 * noise).requires_grad_()
    (slope,) = torch.autograd.grad(reward.score_pixels(pixels, ["a dog"]).sum(), pixels)
    step = 3e-2 * slope / slope.norm()
    with torch.no_grad():
        ends = [reward.score_pixels(pixels + sign * step, ["a dog"]).item() for sign in (1, -1)]
    assert slope.norm() > 0
    assert (ends[0] - ends[1]) / 6e-2 == pytest.approx(slope.norm().item(), rel=1e-2)


def test_files_that_do_not_fit(folder: Path) -> None:
    """A key that is missing from any part, or one too many, is one sentence."""
    for key, told in (
        ("model.norm.weight", r"1 keys .*\(model.norm.weight"),
        ("model.image_newline", r"1 missing \(newline\)"),
        ("model.vision_tower.vision_tower.vision_model.post_layernorm.bias", r"1 missing \(post_layernorm.bias\)"),
    ):
        for file in folder.glob("*.safetensors"):
            from safetensors.torch import load_file

            whole = load_file(file)
            if key in whole:
                save_file({k: v for k, v in whole.items() if k != key}, file)
                with pytest.raises(ValueError, match=f"orm.t2i_r1 .*{told}"):
                    Orm(weights=folder)
                save_file(whole | {"model.more": torch.zeros(1)}, file)
                with pytest.raises(ValueError, match=r"orm.t2i_r1 .*1 keys .*\(model.more\)"):
                    Orm(weights=folder)
                save_file(whole, file)


def test_the_published_size() -> None:
    """Qwen2-7B has 7.62 billion weights; SigLIP without its last layer sees 729 patches."""
    assert Orm.preprocess == Preprocess(384, "squash", mean=HALF, std=HALF)
    with torch.device("meta"):
        network = Orm.build()
    assert sum(weight.numel() for weight in network.language.parameters()) == 7_615_616_512
    assert network.vision.embeddings.position_embedding.weight.shape == (729, 1152)
    assert len(network.vision.encoder.layers) == 26

"""The dual encoder: its tokenizer, its score, and what it takes from and gives to open_clip."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rwk.adapters import dual_encoder
from rwk.adapters.dual_encoder import MAX_SCALE, DualEncoder, WordTokenizer, architecture
from rwk.rewards.bases import load_base
from rwk.rewards.errors import RunFailed
from rwk.rewards.layers import lora_targets
from rwk.rewards.registry import load
from rwk.rewards.trainable import Preprocessing

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""An architecture in open_clip's terms, with CLIP's own tokenizer."""


def noise(count: int, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, size[1], size[0], 3), generator=draw, dtype=torch.uint8)
    return [Image.fromarray(one.numpy()) for one in pixels]


def test_word_tokenizer() -> None:
    """Words of the list have ids of their own, others share one; long texts keep their end mark, the highest id."""
    tokenizer = WordTokenizer(["a", "red", "2"], context=6)
    ids = tokenizer(["A red, red-2!", "a blue", "a a a a a a a a", ""])
    assert ids.tolist() == [[5, 2, 3, 3, 4, 6], [5, 2, 1, 6, 0, 0], [5, 2, 2, 2, 2, 6], [5, 6, 0, 0, 0, 0]]
    assert ids.argmax(1).tolist() == [5, 3, 5, 1]


def test_score_is_scaled_cosine() -> None:
    """Before training the score is the cosine of open_clip's own embeddings times the scale, at most 100."""
    reward = DualEncoder.tiny()
    images, prompts = noise(3), ["a red circle", "a blue square", "two of a green circle"]
    clip = reward.module.get_submodule("clip")
    pixels = torch.stack([reward.preprocessing.image(image) for image in images]) / 255
    with torch.no_grad():
        image = clip.encode_image((pixels - 0.5) / 0.5, normalize=True)
        text = clip.encode_text(reward.tokenizer(prompts), normalize=True)
    cosine = (image * text).sum(1)
    torch.testing.assert_close(reward.score(images, prompts).values, cosine / 0.07)
    reward.module.get_parameter("head.log_scale").data.fill_(50.0)
    torch.testing.assert_close(reward.score(images, prompts).values, cosine * MAX_SCALE)


def test_a_prompt_that_is_cut_is_warned_of_once() -> None:
    """A prompt that just fits is silent; the first that does not is told, with its length and the limit, once."""
    reward = DualEncoder.tiny()  # which reads 24 tokens
    fits, cut = " ".join(["red"] * 22), " ".join(["red"] * 400)
    reward.score(noise(2), [fits, "a red circle"])  # warnings are errors here
    with pytest.warns(UserWarning, match="dual_encoder reads 24 tokens of a prompt, got 402 in 'red red ") as told:
        scores = reward.score(noise(3), [fits, cut, cut + " circle"], batch_size=1)
    reward.score(noise(1), [cut + " square"])
    assert len(told) == 1
    assert scores.notes == ["", "", ""]


@pytest.mark.parametrize("name", ["shapes.clip", "kept"])
def test_the_command_tells_of_a_cut_prompt(rwk: Callable[..., Any], rwk_home: Path, name: str) -> None:
    """With the world's encoder and a trained one `rwk score` says so in a line of its own."""
    noise(1)[0].save("x.png")
    if name == "kept":
        made = DualEncoder({**SMALL, "words": None}, Preprocessing(32), name="kept")
        made.save(rwk_home / "rewards" / "kept")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        ended = rwk("score", "x.png", "-r", name, "--prompt", "a red circle " * 133)
    limit = 16 if name == "kept" else 28
    assert f"\nrwk: {name} reads {limit} tokens of a prompt, got 401 in 'a red circle" in f"\n{ended.err}"
    assert "Warning" not in ended.err


def test_seed_decides_the_weights_and_nothing_else() -> None:
    """One seed gives one network, whatever torch's global generator stands at, and leaves that as it was."""
    made = architecture(["a"], patch=16, width=32, layers=1, context=8)
    state = torch.get_rng_state()
    one = DualEncoder(made, Preprocessing(32), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    again, other = DualEncoder(made, Preprocessing(32), seed=1), DualEncoder(made, Preprocessing(32), seed=2)
    images, prompts = noise(2), ["a", "a a"]
    assert torch.equal(one.score(images, prompts).values, again.score(images, prompts).values)
    assert not torch.equal(one.score(images, prompts).values, other.score(images, prompts).values)


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded(tmp_path: Path, half: bool) -> None:
    """A folder gives the same scores and spec back; half precision is computed with in float32."""
    reward = DualEncoder.tiny()
    if half:
        reward.module.half()
    reward.save(tmp_path / "kept")
    again = load(str(tmp_path / "kept"))
    if half:
        reward.module.float()
    images, prompts = noise(2, (40, 30)), ["a red circle", "a blue square"]
    assert torch.equal(again.score(images, prompts).values, reward.score(images, prompts).values)
    assert again.spec == reward.spec


def test_a_damaged_folder_is_one_sentence(tmp_path: Path) -> None:
    """Missing weights, missing keys and weights of another shape are named with the folder."""
    DualEncoder.tiny().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architecture"]["embed_dim"] = 16
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not hold a whole dual_encoder reward"):
        load(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="does not hold a whole dual_encoder reward"):
        load(str(tmp_path))


def test_a_kind_of_network_is_no_reward() -> None:
    """The registered name of the class, which has no weights, says what to name in its place."""
    with pytest.raises(
        ValueError, match="dual_encoder is a kind of network and has no weights of its own; name a folder"
    ):
        load("dual_encoder")


def test_open_clip_models_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_clip:NAME@FILE` scores as open_clip does with these weights, BPE tokenizer and preprocessing included."""
    import open_clip

    (tmp_path / "rwk-small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(tmp_path)
    with torch.random.fork_rng():
        model, _, transform = open_clip.create_model_and_transforms("rwk-small")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "weights.safetensors")
    reward = load_base(f"open_clip:rwk-small@{tmp_path / 'weights.safetensors'}")
    images, prompts = noise(2, (50, 40)), ["A photo of two dogs.", "naïve café"]
    pixels = torch.stack([transform(image) for image in images])
    with torch.no_grad():
        image = model.eval().encode_image(pixels, normalize=True)
        text = model.encode_text(open_clip.get_tokenizer("rwk-small")(prompts), normalize=True)
        expected = (image * text).sum(1) * model.logit_scale.exp()
    torch.testing.assert_close(reward.score(images, prompts).values, expected, rtol=0, atol=0.02)
    save_file({"visual.proj": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="the weights do not fit open_clip model rwk-small"):
        load_base(f"open_clip:rwk-small@{tmp_path / 'other.safetensors'}")


def test_a_tag_prepares_pictures_as_open_clip_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open_clip:NAME/TAG` squashes or crops, and filters, as the tag's settings ask."""
    import open_clip

    (tmp_path / "rwk-small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(tmp_path)
    tag = {"resize_mode": "squash", "interpolation": "bilinear", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.4, 0.5)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "rwk-small", {"mine": {"url": "", "hf_hub": "", **tag}})
    with torch.random.fork_rng():
        model = open_clip.create_model("rwk-small").eval()
    monkeypatch.setattr(dual_encoder, "_fetch", lambda *_: model.state_dict())
    reward = load_base("open_clip:rwk-small/mine")
    transform = open_clip.image_transform(SMALL["vision_cfg"]["image_size"], is_train=False, **tag)
    images = noise(2, (90, 40))
    with torch.no_grad():
        image = model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        text = model.encode_text(open_clip.get_tokenizer("rwk-small")(["a dog"] * 2), normalize=True)
        expected = (image * text).sum(1) * model.logit_scale.exp()
    torch.testing.assert_close(reward.score(images, ["a dog"] * 2).values, expected, rtol=0, atol=1e-4)


def test_open_clip_names_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unknown models and tags are a wrong call; weights that a hub does not give are one sentence that names a way."""
    import open_clip

    with pytest.raises(ValueError, match="must be a model of open_clip with CLIP's own tokenizer, got 'ViT-Z'"):
        load_base("open_clip:ViT-Z")
    with pytest.raises(ValueError, match="open_clip model RN50 has no weights 'none'; there are openai"):
        load_base("open_clip:RN50/none")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(open_clip, "create_model", unreachable)
    monkeypatch.setattr(DualEncoder, "build", classmethod(lambda cls, *_: torch.nn.Identity()))
    with pytest.raises(RunFailed, match=r"could not be had from .*\(no route to host\); .* name open_clip:RN50@FILE"):
        load_base("open_clip:RN50/openai")


def test_lora_leaves_attention_and_head_alone() -> None:
    """Low-rank changes go to the linear layers of both towers, not to the attention's projections nor the head."""
    targets = lora_targets(DualEncoder.tiny().module)
    assert {name.rsplit(".", 1)[1] for name in targets} == {"c_fc", "c_proj"}
    assert len(targets) == 4


def test_gradient_reaches_pixels_of_any_size() -> None:
    """`score_pixels` is differentiable through the resizing."""
    pixels = torch.rand(2, 3, 50, 40, requires_grad=True)
    DualEncoder.tiny().score_pixels(pixels, ["a red circle", "a"]).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().amax((1, 2, 3)).min() > 0

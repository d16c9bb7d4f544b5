"""MPS: the scores of the official scripts at both thresholds, what the mask does, and its gradient."""

from __future__ import annotations

import copy
import json
import runpy
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwk.adapters import pickscore
from rwk.adapters.mps import CONDITION, CrossModel, Mps, MpsLoose, MpsNetwork

CASE = runpy.run_path(str(Path(__file__).with_name("blip_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads(Path(__file__).with_name("parity").joinpath("mps.json").read_text())
TOLERANCE = 2e-5
"""Of scores that differ by 1 from picture to picture."""


def build() -> torch.nn.Module:
    """The network of the recording: the published one, only smaller."""
    shape = {"hidden_size": CASE["WIDTH"], "intermediate_size": 4 * CASE["WIDTH"]}
    shape |= {"num_hidden_layers": CASE["DEPTH"], "num_attention_heads": CASE["HEADS"]}
    towers = {"vision_config": shape | {"patch_size": 14}, "text_config": shape}
    clip = pickscore.network({"projection_dim": CASE["HIDDEN"], **towers})
    return MpsNetwork(clip, CrossModel(CASE["HIDDEN"], CASE["DEPTH"], CASE["HEADS"]))


@cache
def tensors() -> dict[str, Tensor]:
    """A module's state in the official layout, with a number of places that old versions of transformers keep."""
    found = {key: torch.tensor(value) for key, value in CASE["mps"]().items()}
    return found | {"model.text_model.embeddings.position_ids": torch.arange(77)[None]}


@cache
def load(variant: type[Mps]) -> Mps:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mps, "build", staticmethod(build))
        patch.setattr("rwk.adapters.published.read", lambda path: tensors())
        return variant(weights=__file__)


def official(variant: type[Mps]) -> Tensor:
    return torch.tensor(RECORDED["scores"][variant.spec.name.partition(".")[2]])  # [prompts, pictures]


def scores(reward: Mps) -> Tensor:
    images = CASE["pictures"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one prompt is too long
        return torch.stack([reward.score(images, [prompt] * len(images)).values for prompt in CASE["PROMPTS"]])


@pytest.mark.parametrize("variant", [Mps, MpsLoose])
def test_scores_are_those_of_the_official_script(variant: type[Mps], record_property: Any) -> None:
    """With one set of weights, the script's `infer_one_sample` and the adapter agree on every prompt and picture.

    The weights are small and random, in the official layout; the script ran in single precision, with its own
    threshold of 0.3 and with the 0.01 of the model's `forward`. The prompts are empty, cut, accented and quoted; the
    pictures are cropped by odd margins, enlarged, grey.
    """
    assert RECORDED["package"] == "mps"
    assert official(variant).std(1).min() > 0.5  # pictures tell
    assert (official(Mps) - official(MpsLoose)).abs().max() > 100 * TOLERANCE
    AGREE(record_property, variant.spec.name, RECORDED, scores(load(variant)), official(variant), atol=TOLERANCE)


@pytest.mark.parametrize("change", ["round", "no antialias", "last norm", "fill", "ftfy", "frequencies", "quick GELU"])
def test_other_variants_do_not_pass(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ports get wrong shifts some score by 100 times the tolerance of the comparison, or more."""
    reward = Mps.of(copy.deepcopy(load(Mps).network))
    model = reward.network.model
    if change == "round":
        reward.preprocess = replace(reward.preprocess, rounding="round")
    elif change == "no antialias":
        reward.preprocess = replace(reward.preprocess, backend="float", antialias=False)
    elif change == "last norm":
        project = model.visual_projection.forward
        monkeypatch.setattr(model.visual_projection, "forward", lambda x: project(model.vision_model.post_layernorm(x)))
    elif change == "fill":
        monkeypatch.setattr(reward, "tokens", lambda texts: filled_with_zero(Mps.tokens(reward, texts)))
    elif change == "ftfy":
        import open_clip

        monkeypatch.setattr(reward, "tokens", lambda texts: filled_with_end(open_clip.SimpleTokenizer()(list(texts))))
    elif change == "frequencies":
        for layer in reward.network.cross_model.layers:
            layer[1].inv_freq = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    else:
        from transformers.activations import QuickGELUActivation

        for layer in (*model.vision_model.encoder.layers, *model.text_model.encoder.layers):
            layer.mlp.activation_fn = QuickGELUActivation()
    assert (scores(reward) - official(Mps)).abs().max() > 100 * TOLERANCE


def filled_with_zero(ids: Tensor) -> Tensor:
    """The same ids with 0 after the end of text, where CLIP's tokenizer repeats it."""
    return ids.where((ids == 49407).cumsum(1) <= 1, 0)


def filled_with_end(ids: Tensor) -> Tensor:
    """open_clip's ids with the end of text in place of the 0 that it fills up with."""
    return ids.where(ids != 0, 49407)


def test_tokens_are_clips() -> None:
    """On plain text the ids are open_clip's, but for the filling; the condition is 47 tokens long."""
    import open_clip

    texts = [CONDITION, "a photo of two cats, isn't it?", "", "x " * 100]
    with pytest.warns(UserWarning, match="mps.overall reads 77 tokens of a prompt, got 102"):
        ids = Mps.tiny().tokens(texts)
    assert torch.equal(ids, filled_with_end(open_clip.SimpleTokenizer()(texts)))
    assert len(pickscore.tokenizer()(CONDITION)["input_ids"]) == 47


def test_a_score_does_not_depend_on_the_prompts_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The closest token is each prompt's own: one that comes ten times closer leaves its neighbours' tokens alone."""
    reward = Mps.of(load(Mps).network)
    texts, dog = reward.network.texts, pickscore.tokenizer()("dog")["input_ids"][1]

    def louder(ids: Tensor) -> tuple[Tensor, Tensor]:
        states, pooled = texts(ids)
        return states * (1 + 9 * (ids == dog).any(1).float())[:, None, None], pooled

    monkeypatch.setattr(reward.network, "texts", louder)
    image, prompts = CASE["pictures"]()[0], ["a cat", "a dog", "a red cat on a table"]
    together = reward.score([image] * len(prompts), prompts).values
    alone = torch.cat([reward.score([image], [prompt]).values for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_tokens_far_from_the_condition_are_not_read() -> None:
    """Each threshold reads other tokens, at 0.9999 the closest one alone, and every score is within the scale."""
    reward, image = load(Mps), CASE["pictures"]()[0]
    found = []
    for threshold in (0.01, 0.3, 0.9999):
        trial = Mps.of(reward.network, threshold=threshold)
        found.append(trial.score([image], [CASE["PROMPTS"][0]]).values.item())
    assert len(set(found)) == 3
    assert all(abs(value) <= 14 for value in found)  # the scale of these weights


@pytest.mark.parametrize("prefix", ["", "mps."])
def test_both_layouts_are_read(prefix: str) -> None:
    """The module's own state and the one that imscore wraps around it become the same tensors, none left over."""
    published = {f"{prefix}{key}": value for key, value in tensors().items()}
    assert Mps.converted(published).keys() == build().state_dict().keys()


def test_full_size_is_what_is_published() -> None:
    """The network at its full size is CLIP-H and four layers of 1024: 986 and 118 million numbers."""
    with torch.device("meta"):
        state = Mps.build().state_dict()
    clip = sum(value.numel() for key, value in state.items() if key.startswith("model."))
    assert clip == 986_109_441
    rest = sum(value.numel() for value in state.values()) - clip
    attention = 1024 * (2 * 1024 + 128) + 1024 * (2 * 1024 + 128)
    forward = 2 * (1024 * 8192 + 4096 * 1024)
    assert rest == 4 * (attention + forward + 2 * 2 * 1024 + 32)
    assert Mps.origin.megabytes == pytest.approx(4 * (clip + rest) / 1e6, rel=0.01)


def test_gradient_is_that_of_finite_differences() -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = Mps.tiny()
    reward.network.double()
    generator = torch.Generator().manual_seed(1)
    pixels, step = torch.rand(2, 2, 3, 41, 35, dtype=torch.float64, generator=generator)
    prompts = ["a dog", "a red cube on a green ball"]
    leaf = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward.score_pixels(leaf, prompts).sum(), leaf)
    ahead, behind = (reward.score_pixels(pixels + sign * 1e-5 * step, prompts).sum() for sign in (1, -1))
    expected = ((ahead - behind) / 2e-5).item()
    assert abs(expected) > 1e-3
    assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-6)

"""CLIPScore: the scores of its authors' code, with their prefix and without, and its gradient."""

from __future__ import annotations

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

from rwk.adapters.clip_towers import OPENAI, architecture, open_clip_network
from rwk.adapters.clipscore import (
    ClipCosine,
    ClipCosineHuge,
    ClipCosineLarge,
    ClipScore,
    ClipScoreLarge,
    ClipScoreLargeNoPrefix,
    ClipScoreNoPrefix,
)

CASE = runpy.run_path(str(Path(__file__).with_name("clip_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads(Path(__file__).with_name("parity").joinpath("clipscore.json").read_text())
TOLERANCE = 5e-6
"""Of scores that differ by 0.1 from picture to picture."""


def build(quick_gelu: bool = True) -> torch.nn.Module:
    """The network of the recording: the published one, only smaller."""
    vision = {"image_size": CASE["SIZE"], "layers": CASE["DEPTH"], "width": CASE["VISION"], "patch_size": CASE["PATCH"]}
    return open_clip_network(
        {
            "embed_dim": CASE["EMBED"],
            "vision_cfg": vision | {"head_width": CASE["HEAD"]},
            "text_cfg": {"width": CASE["TEXT"], "heads": 1, "layers": CASE["DEPTH"]},
            "quick_gelu": quick_gelu,
        }
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the recording as OpenAI's files hold them, three numbers among them."""
    path = tmp_path_factory.mktemp("published") / "ViT-B-32.pt"
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    tensors = {key: torch.tensor(value) for key, value in (CASE["towers"]() | numbers).items()}
    torch.save(tensors, path)
    return path


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipScore, "build", staticmethod(build))


@cache
def official(variant: str) -> Tensor:
    return torch.tensor(RECORDED[variant])  # [prompts, pictures]


def scores(reward: ClipScore) -> Tensor:
    images = CASE["pictures"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one prompt is too long
        return torch.stack([reward.score(images, [prompt] * len(images)).values for prompt in CASE["PROMPTS"]])


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        (ClipScore, "prefix"),
        (ClipScoreLarge, "prefix"),
        (ClipScoreNoPrefix, "noprefix"),
        (ClipScoreLargeNoPrefix, "noprefix"),
    ],
)
def test_scores_are_those_of_the_authors_code(
    file: Path, kind: type[ClipScore], variant: str, record_property: Any
) -> None:
    """With one file of weights, `get_clip_score` on OpenAI's package and the adapter agree.

    The weights are small and random, and the same for either size of network. The prompts are empty, cut, accented,
    quoted, escaped and Chinese; the pictures are cropped by odd margins, enlarged, grey. Some cosines are negative.
    """
    assert RECORDED["package"] == "clipscore"
    expected = official(variant)
    assert expected.std(1).min() > 0.005  # pictures tell
    assert expected.std(0).min() > 0.05  # so do prompts
    assert 0 < (expected == 0).sum() < expected.numel() / 2
    AGREE(record_property, kind.spec.name, RECORDED, scores(kind(weights=file)), expected, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [ClipCosine, ClipCosineLarge, ClipCosineHuge])
def test_cosine_is_the_score_before_it_is_cut_off(file: Path, kind: type[ClipScore], record_property: Any) -> None:
    """2.5 times the cosine, with 0 for negative ones, is the authors' score without prefix; it goes below 0."""
    cosine = scores(kind(weights=file))
    assert cosine.min() < -0.01
    found = 2.5 * cosine.clamp(min=0)
    AGREE(record_property, kind.spec.name, RECORDED, found, official("noprefix"), atol=TOLERANCE)


@pytest.mark.parametrize("change", ["floor", "no antialias", "squash", "gelu", "no prefix", "prefix without blank"])
def test_other_variants_do_not_pass(file: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ports get wrong shifts some score by 100 times the tolerance of the comparison, or more."""
    reward = ClipScore(weights=file)
    changes = {
        "floor": {"rounding": "floor"},
        "no antialias": {"backend": "float", "antialias": False},
        "squash": {"fit": "squash"},
    }
    if change in changes:
        reward.preprocess = replace(reward.preprocess, **changes[change])
    elif change == "gelu":
        monkeypatch.setattr(ClipScore, "build", staticmethod(lambda: build(quick_gelu=False)))
        reward = ClipScore(weights=file)
    else:
        monkeypatch.setattr(ClipScore, "prefix", {"no prefix": "", "prefix without blank": "A photo depicts"}[change])
    assert (scores(reward) - official("prefix")).abs().max() > 100 * TOLERANCE


LARGEST = ClipCosineHuge.architecture


@pytest.mark.parametrize("name", [*sorted(OPENAI), LARGEST])
def test_full_size_is_what_is_published(name: str) -> None:
    """Each of OpenAI's networks has the approximate GELU, LAION's the exact one, and weighs what its file does."""
    config = architecture(name)
    with torch.device("meta"):
        network = open_clip_network(config)
    numbers = sum(value.numel() for value in network.state_dict().values())
    origin = {**OPENAI, LARGEST: ClipCosineHuge.origin}[name]
    assert origin.megabytes == pytest.approx(4 * numbers / 1e6, abs=1)
    gelu = "GELU" if name == LARGEST else "QuickGELU"
    assert type(network.visual.transformer.resblocks[0].mlp.gelu).__name__ == gelu
    assert type(network.transformer.resblocks[0].mlp.gelu).__name__ == gelu


def test_the_prefix_counts_among_the_tokens() -> None:
    """With three words before it a prompt of 75 tokens is cut, and without them it is not."""
    image, prompt = CASE["pictures"]()[0], " ".join(["a"] * 73)
    ClipScoreNoPrefix.tiny().score([image], [prompt])
    with pytest.warns(UserWarning, match="clipscore.b32 reads 77 tokens of a prompt, got 78 in 'A photo depicts a a"):
        ClipScore.tiny().score([image], [prompt])


def test_gradient_is_that_of_finite_differences() -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = ClipScore.tiny()
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


def test_below_0_there_is_no_gradient_and_the_cosine_has_one(file: Path) -> None:
    """Where the cosine is negative CLIPScore is flat, and `clipscore.b32_cosine` is not."""
    worst = divmod(int(scores(ClipCosine(weights=file)).argmin()), len(CASE["pictures"]()))
    prompt = CASE["PROMPTS"][worst[0]]
    slopes = []
    for kind in (ClipScoreNoPrefix, ClipCosine):
        reward = kind(weights=file)
        pixels = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(2)).requires_grad_()
        values = reward.score_pixels(pixels, [prompt] * 4)
        (slope,) = torch.autograd.grad(values.sum(), pixels)
        slopes.append(slope.abs().amax((1, 2, 3)))
    negative = values.detach() < 0
    assert negative.any()
    assert (slopes[0][negative] == 0).all()
    assert (slopes[1] > 0).all()

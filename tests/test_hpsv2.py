"""HPSv2: the scores of the official package with today's torchvision and that of its time, and its gradient."""

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

from rwk.adapters import pickscore
from rwk.adapters.clip_towers import cosine, open_clip_network
from rwk.adapters.hpsv2 import Hpsv2, Hpsv2Legacy, Hpsv21, Hpsv21Legacy

CASE = runpy.run_path(str(Path(__file__).with_name("clip_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads(Path(__file__).with_name("parity").joinpath("hpsv2.json").read_text())
TOLERANCE = 2e-6
"""Of scores that differ by 0.03 from picture to picture."""
VARIANTS = (Hpsv2, Hpsv21, Hpsv2Legacy, Hpsv21Legacy)


def build(quick_gelu: bool = False) -> torch.nn.Module:
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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the recording in the layout and under the names of the published files."""
    path = tmp_path_factory.mktemp("published")
    tensors = {key: torch.tensor(value) for key, value in CASE["towers"]().items()}
    torch.save({"epoch": 1, "state_dict": tensors}, path / "HPS_v2_compressed.pt")
    (path / "HPS_v2.1_compressed.pt").symlink_to(path / "HPS_v2_compressed.pt")
    return path


@pytest.fixture
def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> type[Hpsv2]:
    """HPSv2, whose `build` makes the network of the recording."""
    monkeypatch.setattr(Hpsv2, "build", staticmethod(build))
    return Hpsv2


@cache
def official(variant: str) -> Tensor:
    return torch.tensor(RECORDED[variant])  # [prompts, pictures]


def scores(reward: Hpsv2) -> Tensor:
    images = CASE["pictures"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one prompt is too long
        return torch.stack([reward.score(images, [prompt] * len(images)).values for prompt in CASE["PROMPTS"]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_those_of_the_official_package(
    load: type[Hpsv2], folder: Path, variant: type[Hpsv2], record_property: Any
) -> None:
    """With one file of weights, `hpsv2.score` and the adapter agree on every prompt and picture.

    The file has the official layout and small random weights. The prompts are empty, cut, accented, quoted, escaped and
    Chinese; the pictures are long and wide, enlarged, square, grey. For the legacy variants the package ran with its
    resize told to leave antialias out, as torchvision below 0.17 did by default.
    """
    assert RECORDED["package"] == "hpsv2"
    expected = official("legacy" if variant in (Hpsv2Legacy, Hpsv21Legacy) else "antialias")
    assert expected.std(1).min() > 0.015  # pictures tell
    assert expected.std(0).min() > 0.015  # so do prompts
    found = scores(variant(weights=folder))
    AGREE(record_property, variant.spec.name, RECORDED, found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("change", ["legacy", "pillow", "crop", "squash", "HF's tokens", "scale", "quick gelu"])
def test_other_variants_do_not_pass(
    load: type[Hpsv2], folder: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ports get wrong shifts some score by 100 times the tolerance of the comparison, or more."""
    reward = load(weights=folder)
    changes = {
        "legacy": {"antialias": False},
        "pillow": {"backend": "pil"},
        "crop": {"fit": "crop"},
        "squash": {"fit": "squash"},
    }
    if change in changes:
        reward.preprocess = replace(reward.preprocess, **changes[change])
    elif change == "HF's tokens":
        monkeypatch.setattr(reward, "text_features", lambda prompts: not_mended(reward, prompts))
    elif change == "scale":
        monkeypatch.setattr(reward, "score_features", lambda *given: 100 * cosine(*given))
    else:
        monkeypatch.setattr(Hpsv2, "build", staticmethod(lambda: build(quick_gelu=True)))
        reward = load(weights=folder)
    assert (scores(reward) - official("antialias")).abs().max() > 100 * TOLERANCE


def not_mended(reward: Hpsv2, prompts: list[str]) -> Tensor:
    """Features of the tokens that transformers reads in the prompts."""
    read = pickscore.tokenizer()(prompts, truncation=True, padding="max_length", max_length=77, return_tensors="pt")
    features: Tensor = reward.network.encode_text(read["input_ids"])  # type: ignore[operator]
    return features


def test_versions_and_legacies_have_names_of_their_own() -> None:
    """Four names, two files, and antialias just where the name does not say legacy."""
    assert [variant.spec.name for variant in VARIANTS] == [
        "hpsv2.v20",
        "hpsv2.v21",
        "hpsv2.v20_legacy",
        "hpsv2.v21_legacy",
    ]
    assert [variant.origin.file for variant in VARIANTS] == ["HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt"] * 2
    assert [variant.preprocess.antialias for variant in VARIANTS] == [True, True, False, False]


def test_full_size_is_what_is_published() -> None:
    """The network at its full size is CLIP ViT-H/14 of 986 million numbers, which weigh what the file does."""
    with torch.device("meta"):
        network = Hpsv2.build()
    numbers = sum(value.numel() for value in network.state_dict().values())
    assert numbers == 986_109_441
    assert Hpsv2.origin.megabytes == pytest.approx(4 * numbers / 1e6, abs=1)


def test_a_picture_whose_longer_side_fits_is_scored(load: type[Hpsv2], folder: Path) -> None:
    """224 by 150 pixels, where the package fails, score as the same picture in the middle of a black square."""
    image = CASE["picture"]("fits", 224, 150)
    square = CASE["picture"]("square", 224, 224).point(lambda level: 0)
    square.paste(image, (0, 37))
    first, second = load(weights=folder).score([image, square], ["a dog"] * 2).values
    assert first == second


def test_a_prompt_that_is_cut_is_named_once() -> None:
    """77 tokens are read without a word, 78 with a warning that says so, and what follows changes nothing."""
    reward, image = Hpsv2.tiny(), CASE["pictures"]()[0]
    whole, longer = " ".join(["a"] * 75), " ".join(["a"] * 75 + ["dog"])
    expected = reward.score([image], [whole]).values
    with pytest.warns(UserWarning, match="hpsv2.v20 reads 77 tokens of a prompt, got 78 in"):
        assert torch.equal(reward.score([image], [longer]).values, expected)
    reward.score([image], [longer])


def test_gradient_is_that_of_finite_differences() -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = Hpsv2.tiny()
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

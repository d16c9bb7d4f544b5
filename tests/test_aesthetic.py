"""LAION's aesthetic predictors: the scores of their authors' notebook and script, and their gradient."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwk.adapters.aesthetic import AestheticV1, AestheticV1Base16, AestheticV1Base32, AestheticV2
from rwk.adapters.clip_towers import OPENAI, architecture
from rwk.rewards.errors import RunFailed

CASE = runpy.run_path(str(Path(__file__).with_name("clip_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
FIRST, SECOND = (
    json.loads(Path(__file__).with_name("parity").joinpath(f"aesthetic{n}.json").read_text()) for n in (1, 2)
)
TOLERANCE = 2e-5
"""Of scores that differ by 0.5 from picture to picture."""


def small(quick_gelu: bool = True) -> dict[str, object]:
    """The architecture of the recordings: the published one, only smaller; the head has its full size."""
    vision = {"image_size": CASE["SIZE"], "layers": CASE["DEPTH"], "width": CASE["VISION"], "patch_size": CASE["PATCH"]}
    return {
        "embed_dim": 768,
        "vision_cfg": vision | {"head_width": CASE["HEAD"]},
        "text_cfg": {"width": CASE["TEXT"], "heads": 1, "layers": CASE["DEPTH"]},
        "quick_gelu": quick_gelu,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the recordings in the layout and under the names of the published files."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("published")
    save_file({k: torch.tensor(x) for k, x in CASE["towers"](768).items()}, path / "open_clip_model.safetensors")
    second = CASE["head"](CASE["LAION_WIDTHS"], CASE["LAION_NAMES"])
    first = {key.removeprefix("v1."): value for key, value in CASE["linear"]("v1", 1, 768, gain=30.0).items()}
    for kind, tensors in ((AestheticV1, first), (AestheticV2, second)):
        torch.save({key: torch.tensor(value) for key, value in tensors.items()}, path / kind.origin.file)
    return path


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AestheticV2, "build", classmethod(lambda cls: cls.predictor(small())))


@cache
def official(kind: type[AestheticV2]) -> Tensor:
    return torch.tensor((FIRST if kind is AestheticV1 else SECOND)["scores"][0])  # [pictures]


@pytest.mark.parametrize("kind", [AestheticV1, AestheticV2])
def test_scores_are_those_of_the_authors_code(folder: Path, kind: type[AestheticV2], record_property: Any) -> None:
    """With one set of weights the adapter agrees with LAION's notebook and with the improved predictor's script.

    The notebook ran on open_clip with the approximate GELU, as it did in its time; the script ran on OpenAI's package.
    The weights are small and random, but for the heads, which have their full size. The pictures are cropped by odd
    margins, enlarged, grey.
    """
    assert official(kind).std() > 0.3  # pictures tell
    found = kind(weights=folder, tower=folder).score(CASE["pictures"]()).values
    recorded = FIRST if kind is AestheticV1 else SECOND
    AGREE(record_property, kind.spec.name, recorded, found, official(kind), atol=TOLERANCE)


@pytest.mark.parametrize("change", ["floor", "no antialias", "squash", "gelu", "not normalised"])
def test_other_variants_do_not_pass(folder: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ports get wrong shifts some score by 100 times the tolerance of the comparison, or more."""
    changes = {
        "floor": {"rounding": "floor"},
        "no antialias": {"backend": "float", "antialias": False},
        "squash": {"fit": "squash"},
    }
    if change == "gelu":
        monkeypatch.setattr(AestheticV2, "build", classmethod(lambda cls: cls.predictor(small(quick_gelu=False))))
    reward = AestheticV2(weights=folder, tower=folder)
    if change in changes:
        reward.preprocess = replace(reward.preprocess, **changes[change])
    if change == "not normalised":
        head = reward.network.get_submodule("head")
        monkeypatch.setattr(reward, "score_features", lambda image, text: head(image).squeeze(1))
    assert (reward.score(CASE["pictures"]()).values - official(AestheticV2)).abs().max() > 100 * TOLERANCE


def test_second_head_is_one_affine_map(folder: Path) -> None:
    """The head has no activation: of a mean of two embeddings it makes the mean of two scores."""
    head = AestheticV2(weights=folder, tower=folder).network.get_submodule("head")
    first, second = torch.randn(2, 5, 768, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head((first + second) / 2), (head(first) + head(second)) / 2, rtol=1e-4, atol=1e-4)


def test_each_head_fits_its_tower() -> None:
    """Name, file and tower belong together, and the head is as wide as what the tower embeds."""
    for kind, tower, width in (
        (AestheticV1, "l_14", 768),
        (AestheticV1Base32, "b_32", 512),
        (AestheticV1Base16, "b_16", 512),
    ):
        assert kind.spec.name == f"aesthetic.v1_{tower.replace('_', '')}"
        assert kind.origin.file == f"sa_0_4_vit_{tower}_linear.pth"
        assert kind.architecture == f"ViT-{tower.upper().replace('_', '-')}-quickgelu"
        assert kind.architecture in OPENAI
        assert architecture(kind.architecture)["embed_dim"] == width


def test_head_and_tower_are_both_loaded_strictly(folder: Path, tmp_path: Path) -> None:
    """A head of the first predictor in place of the second is refused, and so is a tower that lacks a tensor."""
    from safetensors.torch import load_file, save_file

    with pytest.raises(ValueError, match="the head of aesthetic.v2 cannot take .* 10 missing .* 2 not wanted"):
        AestheticV2(weights=folder / AestheticV1.origin.file, tower=folder)
    tensors = load_file(folder / "open_clip_model.safetensors")
    del tensors["visual.ln_post.bias"]
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"the tower of aesthetic.v2 cannot take .* 1 missing \(ln_post.bias\)"):
        AestheticV2(weights=folder, tower=tmp_path)


def test_without_a_network_the_head_is_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the head is not at hand and may not be downloaded, the error gives its address and what to do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    address = r"https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac\+logos\+ava1-l14"
    with pytest.raises(RunFailed, match=f"aesthetic.v2 needs {address}.*HF_HUB_OFFLINE.*aesthetic.v2@PATH"):
        AestheticV2(tower=folder)


@pytest.mark.parametrize("kind", [AestheticV1, AestheticV2])
def test_gradient_is_that_of_finite_differences(kind: type[AestheticV2]) -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = kind.tiny()
    reward.network.double()
    generator = torch.Generator().manual_seed(1)
    pixels, step = torch.rand(2, 2, 3, 45, 40, dtype=torch.float64, generator=generator)
    leaf = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward.score_pixels(leaf).sum(), leaf)
    ahead, behind = (reward.score_pixels(pixels + sign * 1e-5 * step).sum() for sign in (1, -1))
    expected = ((ahead - behind) / 2e-5).item()
    assert abs(expected) > 1e-6
    assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-4)

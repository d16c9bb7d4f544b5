"""DINOv2's likeness to references: transformers' own modules on the published layout, and how references are named."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from rwk.adapters.dino import DinoAuthors, DinoSimilarity, network
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load

TESTS = Path(__file__).parent
CASE = runpy.run_path(str(TESTS / "dino_case.py"))
AGREE = runpy.run_path(str(TESTS / "parity_case.py"))["agree"]
RECORDED = json.loads((TESTS / "parity" / "dino.json").read_text())
references = CASE["references"]
TOLERANCE = 2e-6
"""Of cosines that differ by 0.1 from picture to picture."""


def build(size: int = 518) -> torch.nn.Module:
    """The published network, only smaller; its positions too are for pictures of 518 pixels."""
    return network(size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)


def published() -> dict[str, Tensor]:
    """The case's weights under the keys of facebook/dinov2-base."""
    return {key: torch.from_numpy(value) for key, value in CASE["published"]().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published files and two references, one of them below it and grey."""
    from transformers import Dinov2Config

    made = tmp_path_factory.mktemp("dino")
    save_file(published(), made / "model.safetensors", {"format": "pt"})
    Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=518).save_pretrained(made)
    (made / "more").mkdir()
    for path, image in zip((made / "a.png", made / "more" / "b.png"), references(), strict=True):
        image.save(path)
    return made


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The network is built small, but in the test of its size."""
    if "full" not in request.node.name:
        monkeypatch.setattr(DinoSimilarity, "build", staticmethod(build))
        monkeypatch.setattr(DinoAuthors, "build", staticmethod(lambda: build(224)))


def written_out(folder: Path, images: list[Image.Image]) -> Tensor:
    """[B] mean cosines, by the processor and the network of transformers as the hub's configuration sets them."""
    from transformers import BitImageProcessorPil, Dinov2Model

    made = Dinov2Model.from_pretrained(folder)
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        resample=3,
    )

    def states(pictures: list[Image.Image]) -> Tensor:
        rgb = [picture.convert("RGB") for picture in pictures]
        inputs = [processor(picture, return_tensors="pt")["pixel_values"] for picture in rgb]
        with torch.no_grad():
            return torch.cat([made(pixel_values=pixels).last_hidden_state[:, 0] for pixels in inputs])

    there = states(references())
    return torch.stack([torch.cosine_similarity(state[None], there).mean() for state in states(images)])


def test_scores_are_those_of_the_formula(folder: Path) -> None:
    """The score is the mean cosine of [CLS] with the references', written out with transformers' plain modules.

    That is what users of the hub's file compute; the authors' code is `dino.similarity_authors`. A reference scores 1
    against itself.
    """
    images = CASE["pictures"]()
    expected = written_out(folder, images)
    assert expected.std() > 0.05  # pictures tell
    found = load(f"dino.similarity@{folder}").score(images).values
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    alone = DinoSimilarity(weights=folder, references=references()[:1])
    assert alone.score(references()).values[0].item() == pytest.approx(1, abs=1e-6)
    assert alone.score(references()).values[1] < 0.99


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' own file."""
    file = tmp_path_factory.mktemp("authors") / "dinov2_vitb14_pretrain.pth"
    torch.save({key: torch.from_numpy(value) for key, value in CASE["authors"]().items()}, file)
    return file


def test_states_are_those_of_the_authors(folder: Path, theirs: Path, record_property: Any) -> None:
    """The cosine with each reference is that of torch.hub's network on the authors' transform, from either file."""
    official = torch.tensor(RECORDED["cosines"]).T
    assert official.std(1).min() > 0.1
    for file in (folder / "model.safetensors", theirs):
        for reference, expected in zip(references(), official, strict=True):
            reward = load(f"dino.similarity_authors@{file}", references=[reference])
            values = reward.score(CASE["pictures"]()).values
            AGREE(record_property, reward.spec.name, RECORDED, values, expected, atol=TOLERANCE)


def test_the_two_ways_differ_as_told(folder: Path, theirs: Path) -> None:
    """Positions and margins as in transformers move some score by 100 times the tolerance or more, from either file."""
    official = torch.tensor(RECORDED["cosines"]).mean(1)
    found = [load(f"dino.similarity@{file}", references=references()) for file in (folder, theirs)]
    first, second = (reward.score(CASE["pictures"]()).values for reward in found)
    assert torch.equal(first, second)
    assert (first - official).abs().max() > 100 * TOLERANCE
    shifted = DinoAuthors(weights=theirs, references=references())
    shifted.preprocess = replace(shifted.preprocess, rounding="floor")
    values = shifted.compare_with(references()).score(CASE["pictures"]()).values
    assert (values - official).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("change", ["rounding", "short", "no antialias", "colours", "before norm", "raw"])
def test_other_variants_do_not_pass(folder: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ports get wrong shifts some score by 100 times the tolerance of the comparison, or more."""
    reward = DinoSimilarity(weights=folder)
    prepared: dict[str, dict[str, Any]] = {
        "rounding": {"rounding": "round"},
        "short": {"short": 224},
        "no antialias": {"backend": "float", "antialias": False},
        "colours": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    }
    if change in prepared:
        monkeypatch.setattr(reward, "preprocess", replace(reward.preprocess, **prepared[change]))
    elif change == "before norm":
        monkeypatch.setattr(reward.network, "layernorm", torch.nn.Identity())
    else:  # the mean of the states, each as long as it is
        made: Any = reward.network

        def unscaled(pixels: Tensor) -> Tensor:
            return made(pixel_values=pixels).pooler_output

        monkeypatch.setattr(reward, "states", unscaled)
    found = reward.compare_with(references()).score(CASE["pictures"]()).values
    assert (found - written_out(folder, CASE["pictures"]())).abs().max() > 100 * TOLERANCE


def test_ways_to_name_references(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the weights, a folder and a picture without them, `references=`, and images are all one."""
    images = CASE["pictures"]()[:3]
    expected = load(f"dino.similarity@{folder}").score(images).values
    file = folder / "model.safetensors"
    for given in (str(folder), str(folder / "**"), references()):
        assert load(f"dino.similarity@{file}", references=given).score(images).values.equal(expected)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda hub, name, **_: str(file))
    for number, image in enumerate(references()):
        image.save(tmp_path / f"{number}.png")
    assert load(f"dino.similarity@{tmp_path}").score(images).values.equal(expected)
    first = load("dino.similarity", references=references()[:1]).score(images).values
    assert load(f"dino.similarity@{tmp_path}/0.png").score(images).values.equal(first)
    assert not first.equal(expected)


def test_what_is_no_reference(folder: Path, tmp_path: Path) -> None:
    """No reference, one that is broken or too long, and weights that are not there are one sentence each."""
    file = folder / "model.safetensors"
    for options in ({}, {"weights": file}):
        with pytest.raises(ValueError, match=r"needs reference pictures, got none; name their folder as dino.simil"):
            DinoSimilarity(**options)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read the reference .*broken.png: not an image .*; take it out"):
        DinoSimilarity(weights=tmp_path)
    with pytest.raises(ValueError, match="needs one reference picture or more, got none"):
        DinoSimilarity(weights=file, references=[])
    with pytest.raises(ValueError, match="cannot take reference 1: it is cropped .*, got 700x10; crop it"):
        DinoSimilarity(weights=file, references=[*references()[:1], Image.new("RGB", (700, 10))])
    with pytest.raises(ValueError, match=r"needs weights at .*, got no model.safetensors; leave weights out"):
        DinoSimilarity(weights=tmp_path, references=references())
    with pytest.raises(RunFailed, match=r"needs model.safetensors of facebook/dinov2-base .*copy the file into"):
        DinoSimilarity(references=references())


def test_the_full_size_is_what_is_published() -> None:
    """At full size the network weighs what the file does."""
    with torch.device("meta"):
        full, seen = DinoSimilarity.build(), DinoAuthors.build()
    numbers = sum(parameter.numel() for parameter in full.parameters())
    assert numbers - sum(parameter.numel() for parameter in seen.parameters()) == 768 * (37 * 37 - 16 * 16)
    assert DinoSimilarity.origin.megabytes == pytest.approx(4 * numbers / 1e6, rel=0.003)


def test_gradient_is_that_of_finite_differences() -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = DinoSimilarity.tiny()
    reward.network.double()
    generator = torch.Generator().manual_seed(1)
    pixels, step = torch.rand(2, 2, 3, 45, 40, dtype=torch.float64, generator=generator)
    leaf = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward.score_pixels(leaf).sum(), leaf)
    ahead, behind = (reward.score_pixels(pixels + sign * 1e-5 * step).sum() for sign in (1, -1))
    expected = ((ahead - behind) / 2e-5).item()
    assert abs(expected) > 1e-5
    assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-4)


def test_lengths_of_states_have_no_say() -> None:
    """The mean is over cosines: a reference that is embedded long counts as much as one that is embedded short."""
    reward = DinoSimilarity.tiny()
    states = [normalize(torch.tensor([values]), dim=1) for values in ([3.0, 4.0], [0.0, 9.0])]
    reward.states = lambda pixels: states[int(pixels.mean() > 0)]  # type: ignore[method-assign]
    reward.compare_with([Image.new("RGB", (40, 40), colour) for colour in ("black", "white")])
    torch.testing.assert_close(reward.reference, torch.tensor([0.3, 0.9]))

"""PickScore: the scores of the authors' own snippet, what it reads of a prompt, and its gradient."""

from __future__ import annotations

import json
import math
import runpy
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwk.adapters import clip_towers, pickscore
from rwk.adapters.clip_towers import cosine
from rwk.adapters.pickscore import PickScore

CASE = runpy.run_path(str(Path(__file__).with_name("clip_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads(Path(__file__).with_name("parity").joinpath("pickscore.json").read_text())
TOLERANCE = 1e-4
"""Of scores that differ by 5 from picture to picture."""


def build(**changed: str) -> torch.nn.Module:
    """The network of the recording: the published one, only smaller."""
    towers = {}
    for name, width in (("vision_config", CASE["VISION"]), ("text_config", CASE["TEXT"])):
        heads = {"num_attention_heads": width // CASE["HEAD"], "num_hidden_layers": CASE["DEPTH"]}
        towers[name] = {"hidden_size": width, "intermediate_size": 4 * width, **heads, **changed}
    towers["vision_config"] |= {"image_size": CASE["SIZE"], "patch_size": CASE["PATCH"]}
    return pickscore.network({"projection_dim": CASE["EMBED"], **towers})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the recording in the layout of the published file."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("published") / "model.safetensors"
    save_file({key: torch.tensor(value) for key, value in CASE["hugging_towers"]().items()}, path)
    return path


@pytest.fixture
def loaded(file: Path, monkeypatch: pytest.MonkeyPatch) -> PickScore:
    """The adapter with the weights of the recording, from that file."""
    monkeypatch.setattr(PickScore, "build", staticmethod(build))
    return PickScore(weights=file)


@cache
def official() -> Tensor:
    return torch.tensor(RECORDED["scores"])  # [prompts, pictures]


def scores(reward: PickScore) -> Tensor:
    images = CASE["pictures"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one prompt is too long
        return torch.stack([reward.score(images, [prompt] * len(images)).values for prompt in CASE["PROMPTS"]])


def test_scores_are_those_of_the_authors_snippet(loaded: PickScore, record_property: Any) -> None:
    """With one file of weights, the code of PickScore's README under transformers 4.36 and the adapter agree.

    The file has the official layout, position numbers and all, and small random weights. The prompts are empty, cut,
    accented, quoted, escaped and Chinese; the pictures are cropped by odd margins, enlarged, grey.
    """
    assert RECORDED["package"] == "pickscore"
    assert RECORDED["versions"]["transformers"] == "4.36.2"
    assert official().std(1).min() > 2  # pictures tell
    assert official().std(0).min() > 2  # so do prompts
    AGREE(record_property, loaded.spec.name, RECORDED, scores(loaded), official(), atol=TOLERANCE)


@pytest.mark.parametrize("change", ["round", "no antialias", "squash", "open_clip's tokens", "no scale", "quick gelu"])
def test_other_variants_do_not_pass(
    loaded: PickScore, file: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ports get wrong shifts some score by 100 times the tolerance of the comparison, or more."""
    if change == "round":
        loaded.preprocess = replace(loaded.preprocess, rounding="round")
    elif change == "no antialias":
        loaded.preprocess = replace(loaded.preprocess, backend="float", antialias=False)
    elif change == "squash":
        loaded.preprocess = replace(loaded.preprocess, fit="squash")
    elif change == "open_clip's tokens":
        monkeypatch.setattr(loaded, "text_features", lambda prompts: mended(loaded, prompts))
    elif change == "no scale":
        monkeypatch.setattr(loaded, "score_features", cosine)
    else:
        monkeypatch.setattr(PickScore, "build", staticmethod(lambda: build(hidden_act="quick_gelu")))
        loaded = PickScore(weights=file)
    assert (scores(loaded) - official()).abs().max() > 100 * TOLERANCE


def mended(reward: PickScore, prompts: list[str]) -> Tensor:
    """Features of the tokens that open_clip reads in the prompts."""
    ids = clip_towers.tokenizer()(prompts)
    features: Tensor = reward.network.get_text_features(ids).pooler_output  # type: ignore[operator]
    return features


def test_tokens_are_not_mended() -> None:
    """Of plain text the tokens are open_clip's, of curly quotes, ligatures and `&amp;` they are not."""
    for prompt, same in (("a photo of two cafés, it's 3 o'clock!", True), ("“the” ﬁre &amp; a cat’s", False)):
        ids = pickscore.tokenizer()([prompt])["input_ids"][0]
        read = clip_towers.tokenizer()([prompt])[0]
        assert (ids == read[read != 0].tolist()) == same


def test_full_size_is_what_is_published() -> None:
    """The network at its full size is CLIP ViT-H/14 of 986 million numbers, which weigh what the file does."""
    with torch.device("meta"):
        network = PickScore.build()
    numbers = sum(value.numel() for value in network.state_dict().values())
    assert numbers == 986_109_441
    assert PickScore.origin.megabytes == pytest.approx(4 * numbers / 1e6, abs=1)


def test_a_prompt_that_is_cut_is_named_once() -> None:
    """77 tokens are read without a word, 78 with a warning that says so, and what follows changes nothing."""
    reward, image = PickScore.tiny(), CASE["pictures"]()[0]
    whole, longer = " ".join(["a"] * 75), " ".join(["a"] * 75 + ["dog"])
    expected = reward.score([image], [whole]).values
    with pytest.warns(UserWarning, match="pickscore.v1 reads 77 tokens of a prompt, got 78 in"):
        assert torch.equal(reward.score([image], [longer]).values, expected)
    reward.score([image], [longer])


def test_a_long_neighbour_changes_nothing() -> None:
    """Padding to the longest prompt of the batch leaves a score where it is."""
    reward, image = PickScore.tiny(), CASE["pictures"]()[0]
    alone = reward.score([image], ["a dog"]).values
    beside = reward.score([image, image], ["a dog", " ".join(["a"] * 70)]).values
    torch.testing.assert_close(beside[:1], alone, rtol=0, atol=1e-5)
    assert beside[1] != beside[0]


def test_a_file_of_another_network_is_refused(loaded: PickScore, tmp_path: Path) -> None:
    """Nothing is left at random: a missing tensor is counted and named."""
    tensors = {key: torch.tensor(value) for key, value in CASE["hugging_towers"]().items()}
    del tensors["visual_projection.weight"]
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"pickscore.v1 cannot take .* 1 missing \(visual_projection.weight\)"):
        PickScore(weights=tmp_path / "model.pt")


def test_gradient_is_that_of_finite_differences() -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = PickScore.tiny()
    reward.network.double()
    generator = torch.Generator().manual_seed(1)
    pixels, step = torch.rand(2, 2, 3, 45, 40, dtype=torch.float64, generator=generator)
    prompts = ["a dog", "a red cube on a green ball"]
    leaf = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward.score_pixels(leaf, prompts).sum(), leaf)
    ahead, behind = (reward.score_pixels(pixels + sign * 1e-5 * step, prompts).sum() for sign in (1, -1))
    expected = ((ahead - behind) / 2e-5).item()
    assert abs(expected) > 1e-4
    assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-6)


def test_scale_is_part_of_the_weights() -> None:
    """A larger learned scale multiplies every score."""
    reward, image = PickScore.tiny(), CASE["pictures"]()[0]
    before = reward.score([image], ["a dog"]).values
    reward.network.get_parameter("logit_scale").add_(math.log(3))
    torch.testing.assert_close(reward.score([image], ["a dog"]).values, 3 * before)

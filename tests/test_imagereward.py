"""ImageReward: the scores of the official package, what it reads of a prompt, and its gradient."""

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

from rwk.adapters import blip_towers
from rwk.adapters.blip_towers import BlipScorer, text_tower, vision_tower
from rwk.adapters.blip_vqa import BlipVqa
from rwk.adapters.cyclereward import CycleCombo
from rwk.adapters.imagereward import MEAN, STD, ImageReward
from rwk.adapters.mps import Mps
from rwk.adapters.published import PublishedReward
from rwk.rewards.errors import RunFailed

CASE = runpy.run_path(str(Path(__file__).with_name("blip_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads(Path(__file__).with_name("parity").joinpath("imagereward.json").read_text())
TOLERANCE = 1e-4
"""Of scores that differ by 3 from picture to picture."""


def build() -> torch.nn.Module:
    """The network of the recording: the published one, only smaller."""
    shape = {"num_hidden_layers": CASE["DEPTH"], "num_attention_heads": CASE["HEADS"]}
    vision = vision_tower(224, hidden_size=CASE["WIDTH"], intermediate_size=4 * CASE["WIDTH"], **shape)
    words = {"vocab_size": len(CASE["VOCABULARY"]) + 2, "bos_token_id": None, "sep_token_id": 3}
    hidden = {"hidden_size": CASE["HIDDEN"], "intermediate_size": 4 * CASE["HIDDEN"]}
    return BlipScorer(vision, text_tower(CASE["WIDTH"], **shape, **hidden, **words), ImageReward.head(CASE["HIDDEN"]))


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageReward:
    """The adapter with the weights of the recording, from a file in the official layout."""
    tensors = {key: torch.tensor(value) for key, value in CASE["scorer"]((0, 2, 4, 6, 7)).items()}
    torch.save(tensors, tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(CASE["VOCABULARY"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    monkeypatch.setattr(ImageReward, "build", staticmethod(build))
    return ImageReward(weights=tmp_path, tokenizer=tmp_path)


@cache
def official() -> Tensor:
    return torch.tensor(RECORDED["scores"])  # [prompts, pictures]


def scores(reward: ImageReward) -> Tensor:
    images = CASE["pictures"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one prompt is too long
        return torch.stack([reward.score(images, [prompt] * len(images)).values for prompt in CASE["PROMPTS"]])


def test_scores_are_those_of_the_official_package(loaded: ImageReward, record_property: Any) -> None:
    """With one file of weights, image-reward's `score` and the adapter agree on every prompt and picture.

    The file has the official layout and small random weights. The prompts are empty, cut, accented and quoted; the
    pictures are cropped by odd margins, enlarged, grey.
    """
    assert RECORDED["package"] == "imagereward"
    assert official().std(1).min() > 1  # pictures tell
    AGREE(record_property, loaded.spec.name, RECORDED, scores(loaded), official(), atol=TOLERANCE)


@pytest.mark.parametrize("change", ["floor", "no antialias", "squash", "tokens", "head", "encoder token"])
def test_other_variants_do_not_pass(loaded: ImageReward, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ports get wrong shifts some score by 100 times the tolerance of the comparison, or more."""
    if change == "floor":
        loaded.preprocess = replace(loaded.preprocess, rounding="floor")
    elif change == "no antialias":
        loaded.preprocess = replace(loaded.preprocess, backend="float", antialias=False)
    elif change == "squash":
        loaded.preprocess = replace(loaded.preprocess, fit="squash")
    elif change == "tokens":
        loaded.context = 77
    elif change == "head":
        monkeypatch.setattr(loaded.network.mlp, "forward", lambda x: loaded.network.mlp.layers(x.relu()))
    else:
        read = loaded.tokens
        monkeypatch.setattr(loaded, "tokens", lambda prompts: with_first(read(prompts), len(loaded.tokenizer) - 1))
    assert (scores(loaded) - official()).abs().max() > 100 * TOLERANCE


def with_first(tokens: tuple[Tensor, Tensor], token: int) -> tuple[Tensor, Tensor]:
    ids = tokens[0].clone()
    ids[:, 0] = token
    return ids, tokens[1]


def test_score_is_affine_in_the_text_state() -> None:
    """The head has no activation: of a mean of two states it makes the mean of two scores."""
    head = ImageReward.tiny().network.mlp
    first, second = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head((first + second) / 2), (head(first) + head(second)) / 2)


@pytest.mark.parametrize("reward", [ImageReward, CycleCombo, Mps, BlipVqa])
def test_tiny_depends_on_no_global_seed(reward: type[PublishedReward]) -> None:
    """The weights of `tiny()` are the same in every process, and torch's generator is left as it was."""
    states = []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            states.append(reward.tiny().network.state_dict())
            assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_unit_is_the_spread_over_the_authors_test_set() -> None:
    """A head that puts out the authors' mean scores 0, and one standard deviation more scores 1."""
    reward = ImageReward.tiny()
    last = reward.network.mlp.layers[-1]
    last.weight.zero_()
    image = CASE["pictures"]()[0]
    for out, expected in ((MEAN, 0.0), (MEAN + STD, 1.0)):
        last.bias.fill_(out)
        assert reward.score([image], ["a dog"]).values.item() == pytest.approx(expected, abs=1e-6)


def test_full_size_is_what_is_published() -> None:
    """The network at its full size weighs what the published file does, its two unused projections among it."""
    with torch.device("meta"):
        network = ImageReward.build()
    numbers = sum(value.numel() for value in network.state_dict().values()) + 257 * 256 + 256 * 1024 + 256 * 512
    assert ImageReward.origin.megabytes == pytest.approx(4 * numbers / 1e6, rel=0.003)


def test_a_prompt_that_is_cut_is_named_once() -> None:
    """35 word pieces are read without a word, 36 with a warning that says so, and what follows changes nothing."""
    reward, image = ImageReward.tiny(), CASE["pictures"]()[0]
    whole, longer = " ".join(["a"] * 33), " ".join(["a"] * 33 + ["dog"])
    expected = reward.score([image], [whole]).values
    with pytest.warns(UserWarning, match="imagereward.v1 reads 35 tokens of a prompt, got 36 in"):
        assert torch.equal(reward.score([image], [longer]).values, expected)
    reward.score([image], [longer])


def test_letters_and_accents(loaded: ImageReward) -> None:
    """BERT's pieces are of small letters without accents, so these do not change a score."""
    image = CASE["pictures"]()[0]
    first, second = loaded.score([image, image], ["The CAFÉ", "the cafe"]).values.tolist()
    assert first == pytest.approx(second, abs=TOLERANCE)


def test_no_vocabulary_is_one_sentence(tmp_path: Path) -> None:
    """Where BERT's vocabulary is neither in the cache nor at hand, the error says what to do."""
    reward = ImageReward.of(ImageReward.tiny().network, vocabulary=tmp_path)
    with pytest.raises(
        RunFailed, match="imagereward.v1 needs the vocabulary of .* beside the weights .* imagereward.v1@PATH"
    ):
        reward.score(CASE["pictures"]()[:1], ["a dog"])


def test_a_file_that_lacks_a_layer_is_refused(loaded: ImageReward, tmp_path: Path) -> None:
    """Nothing is left at random: a missing tensor is counted and named."""
    tensors = torch.load(tmp_path / "ImageReward.pt")
    del tensors["mlp.layers.7.weight"]
    torch.save(tensors, tmp_path / "ImageReward.pt")
    with pytest.raises(ValueError, match=r"1 missing \(mlp.layers.7.weight\)"):
        ImageReward(weights=tmp_path)


def test_gradient_is_that_of_finite_differences() -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = ImageReward.tiny()
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


def test_the_projections_and_position_numbers_are_left_out() -> None:
    """Of an official file only what a score uses is kept, each tensor once."""
    tensors = {key: torch.tensor(value) for key, value in CASE["scorer"]((0, 2, 4, 6, 7)).items()}
    kept = blip_towers.tower_keys(tensors, "blip.")
    assert len(kept) == len(tensors) - 5
    assert not [key for key in kept if "_proj." in key or "position_ids" in key]
    assert math.isclose(float(kept["mlp.layers.0.weight"].sum()), float(tensors["mlp.layers.0.weight"].sum()))

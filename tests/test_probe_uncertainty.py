"""Uncertainty and structure: each probe catches a reward that is broken in its way and lets a sound one pass."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.calibration.covariates import COVARIATES, covariates
from rwk.calibration.embedding import Embedding, embedded, mahalanobis, neighbour_distance
from rwk.calibration.pairs import PairTable
from rwk.calibration.probe import Domain, Result, Subject
from rwk.calibration.probe_agreement import agreement, rank_agreement
from rwk.calibration.probe_structure import structure
from rwk.calibration.probe_uncertainty import uncertainty
from rwk.rewards.base import PixelReward
from rwk.rewards.registry import REWARDS, load

CASE: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("probe_case.py")))
Fits, domain, subject = CASE["Fits"], CASE["domain"], CASE["subject"]


def probed(family: Any, of: Subject) -> dict[str, Result]:
    return {result.probe.name: result for result in family(of)}


def odd(*, repeat: int = 1) -> Domain:
    """Another domain whose prompts say that they are odd."""
    other: Domain = domain("other", seed=1, repeat=repeat)
    return replace(other, prompts=[f"odd {prompt}" for prompt in other.prompts])


def where(texts: Sequence[str], word: str) -> Tensor:
    return torch.tensor([float(word in text) for text in texts])


def stain(pixels: Tensor) -> Tensor:
    """[B] numbers that look random and are the same whenever the image is."""
    return torch.sin(1e4 * pixels.mean((1, 2, 3)))


class Noise(Fits):
    """The sound score's order is right in seven pairs of ten, whatever the margin: it is noise and a small taste."""

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        return stain(pixels)


class Seeing(Fits):
    """A reward with features, that are far from the others where white is, and is wrong just there."""

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([torch.from_numpy(np.asarray(image).copy()).float() / 255 for image in images])
        flat = pixels.flatten(1, 2)  # [B, H W, 3]
        return torch.cat([flat.mean(1), flat.std(1)], 1)


def test_a_reward_that_is_wrong_at_random_is_found() -> None:
    """Where neither margin nor repetition tells, the probe fails; the sound reward is wrong at small margins alone."""
    sound = probed(uncertainty, subject(None, domain(), odd()))["uncertainty.error"]
    broken = probed(uncertainty, subject(Noise(), domain(), odd()))["uncertainty.error"]
    assert (sound.status, broken.status) == ("pass", "fail")
    level = next(level for level in sound.levels if level.name == "a small margin")
    risks = [level.measures[f"error at {part}%"].mean for part in (50, 80, 90, 100)]
    assert risks == sorted(risks)
    assert risks[0] < risks[-1] / 2


def test_features_that_lie_far_tell_where_a_reward_is_wrong() -> None:
    """A domain that looks different and is judged wrongly has far features: both distances see it, margins do not."""

    def upside_down(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return -2 * where(texts, "odd") * Fits().score_pixels(pixels, texts)

    other = odd()
    darker = [image.point(lambda value: value // 4) for image in other.images]
    result = probed(uncertainty, subject(Seeing(upside_down), domain(), replace(other, images=darker)))
    levels = {level.name: level.value for level in result["uncertainty.error"].levels}
    assert levels["Mahalanobis distance"].low > 0.55
    assert levels["distance to neighbours"].low > 0.55
    assert levels["a small margin"].mean < levels["Mahalanobis distance"].low
    assert result["uncertainty.error"].status == "pass"


def test_other_rewards_are_an_ensemble() -> None:
    """Rewards that are right where this one is noise disagree with it most where it is wrong."""
    of = subject(Noise(), domain(), odd())
    of.others = {"sound": Fits(), "too": Fits(lambda pixels, _: 0.1 * stain(pixels))}
    found = probed(uncertainty, of)["uncertainty.error"]
    levels = {level.name: level.value for level in found.levels}
    assert levels["rewards that disagree"].low > 0.7
    assert found.status == "pass"


def test_sets_that_miss_out_of_domain_are_found() -> None:
    """Sets made in domain hold for the sound reward elsewhere, and miss for one that is turned round there."""

    def upside_down(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return -2 * where(texts, "odd") * Fits().score_pixels(pixels, texts)

    for reward, status in ((Fits(), "pass"), (Fits(upside_down), "fail")):
        found = probed(uncertainty, subject(reward, domain(), odd()))["uncertainty.conformal"]
        assert found.status == status, found.reason
    assert found.value is not None
    assert found.value.mean < 0.6


def test_a_score_that_does_not_repeat_is_found() -> None:
    """The order of a reward that hangs on the last digit changes under dither; the sound one keeps its own."""
    found = {name: probed(agreement, subject(reward)) for name, reward in (("sound", Fits()), ("broken", Noise()))}
    assert found["sound"]["structure.test_retest"].status == "pass"
    assert found["broken"]["structure.test_retest"].status == "fail"
    assert found["sound"]["structure.agreement"].status == "pass"
    assert found["broken"]["structure.agreement"].status == "fail"


def test_agreement_is_told_of_every_two() -> None:
    """Reward, another reward and gold make three levels; the same reward agrees wholly, its opposite not at all."""
    of = subject()
    of.others = {"again": Fits(), "opposite": Fits(weight=-1)}
    levels = {level.name: level.value for level in probed(agreement, of)["structure.agreement"].levels}
    assert len(levels) == 6
    assert levels["fits and again"].mean == pytest.approx(1)
    assert levels["fits and opposite"].mean == pytest.approx(-1)
    assert levels["fits and gold"].mean == pytest.approx(-levels["opposite and gold"].mean)
    assert levels["fits and again"].clusters == 18


def test_rank_agreement_is_kendalls() -> None:
    """One swap of neighbours among four costs a third; prompts without two ranks, or two scores, do not count."""
    first = np.array([1.0, 2, 3, 4, 5, 5, 1, np.nan])
    second = np.array([1.0, 3, 2, 4, 1, 2, 1, 2])
    tau, prompts = rank_agreement(first, second, np.array([0, 0, 0, 0, 1, 1, 2, 2]))
    assert tau.tolist() == pytest.approx([2 / 3])
    assert prompts.tolist() == [0]


def test_a_style_that_is_liked_too_much_is_found() -> None:
    """A taste for light, in which white stains beat black ones, is found by name and by the sign of its weight."""

    def light(pixels: Tensor, _: Sequence[str]) -> Tensor:
        return 10 * pixels.mean((1, 2, 3))

    sound, broken = (
        probed(structure, subject(reward, domain(repeat=3)))["structure.style"] for reward in (Fits(), Fits(light))
    )
    assert sound.status == "pass"
    assert broken.status == "fail"
    assert "likes brightness" in broken.reason
    levels = {level.name: level.value for level in broken.levels}
    assert set(levels) == {"saturation", "brightness", "contrast", "sharpness"}  # the images have one size
    assert levels["brightness"].high < -0.25


def test_a_domain_that_the_others_do_not_prepare_for_is_found() -> None:
    """Turned round there, a domain loses more than saying nothing would; four times as loud, it loses a little."""

    def upside_down(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return -2 * where(texts, "odd") * Fits().score_pixels(pixels, texts)

    def louder(pixels: Tensor, texts: Sequence[str]) -> Tensor:
        return 4 * where(texts, "odd") * Fits().score_pixels(pixels, texts)

    for term, status in ((None, "pass"), (louder, "warn"), (upside_down, "fail")):
        of = subject(Fits(term), domain(repeat=2), odd(repeat=2))
        found = probed(structure, of)["structure.left_out"]
        assert found.status == status, found.reason
        assert {level.name for level in found.levels} == {"in domain", "other"}
        if status == "warn":
            ratio = {level.name: level.measures["log temperature ratio"].mean for level in found.levels}
            assert ratio["other"] == pytest.approx(np.log(5), abs=0.3)


def test_votes_for_a_tie_do_not_count_for_sets() -> None:
    """A domain of judged pairs, some of them ties in part, is covered over the pairs that are none."""
    other = odd()
    assert other.gold is not None
    places = np.array([(6 * group + a, 6 * group + b) for group in range(18) for a, b in ((0, 1), (2, 3), (4, 5))])
    label = (other.gold[places[:, 0]] > other.gold[places[:, 1]]).astype(np.float64)
    tie, texts = np.arange(len(places)) % 3 * 0.4, [other.prompts[row] for row in places[:, 0]]

    def pairs(scores: Any) -> PairTable:
        return PairTable(scores[places[:, 0]] - scores[places[:, 1]], label, tie=tie, prompt=texts)

    told = replace(other, gold=None, preferences=pairs, places=places)
    found = probed(uncertainty, subject(Seeing(), domain(), told))
    assert found["uncertainty.conformal"].status == "pass"
    assert found["uncertainty.conformal"].levels[0].value.clusters == 18
    assert {level.name for level in found["uncertainty.error"].levels} >= {"Mahalanobis distance", "test and retest"}


def test_what_cannot_be_measured_is_skipped() -> None:
    """One domain, no truth, or too few pairs: every probe says what it needs."""
    alone = replace(domain(), gold=None, fits=None)
    for family, name, said in (
        (uncertainty, "uncertainty.error", "needs 40 pairs"),
        (uncertainty, "uncertainty.conformal", "needs pairs of 18 prompts"),
        (agreement, "structure.agreement", "gold is not known"),
        (structure, "structure.style", "needs pairs of 10 prompts"),
        (structure, "structure.left_out", "needs two domains"),
    ):
        found = probed(family, subject(None, alone))[name]
        assert found.status == "skip"
        assert said in found.reason
    assert probed(agreement, subject(None, alone))["structure.test_retest"].status == "pass"


def test_covariates_are_what_they_are_called() -> None:
    """Each rises for the image that has more of it, and a flat grey image has none but brightness and size."""
    grey, red = Image.new("RGB", (16, 16), (100, 100, 100)), Image.new("RGB", (16, 16), (255, 0, 0))
    checks = Image.fromarray((np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8))
    found = covariates([grey, red, checks, Image.new("L", (32, 32), 200)])
    assert list(found) == list(COVARIATES)
    assert found["saturation"].tolist() == [0, 1, 0, 0]
    assert found["contrast"] == pytest.approx([0, 0, 0.5, 0])
    assert found["sharpness"][2] > 10 * found["sharpness"][0] == 0
    assert found["brightness"] == pytest.approx([100 / 255, 0.299, 0.5, 200 / 255])
    assert found["size"] == pytest.approx(np.log([256, 256, 256, 1024]))


def test_distances_grow_with_distance() -> None:
    """A point outside the cloud is far by either measure; Mahalanobis counts in the cloud's own spread."""
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(400, 2)) * [10.0, 1.0] + [50.0, 50.0]
    wide, narrow = mahalanobis(cloud, np.array([[60.0, 50], [50, 60]]))
    assert wide == pytest.approx(1, abs=0.2)
    assert narrow > 5
    near, far = neighbour_distance(cloud, np.array([[50.0, 50], [50, -50]]))
    assert near < 0.1 < 1.2 < far


@pytest.mark.parametrize("name", ["shapes.clip", "timm_head", "dual_encoder", "pickscore.v1", "hpsv2.v21"])
def test_rewards_with_a_network_give_features(name: str) -> None:
    """[N, D] features that depend on the image, whatever batch it is in."""
    reward = REWARDS.target(name).tiny()
    assert isinstance(reward, Embedding)
    images = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "white")]
    features = embedded(reward, images, batch_size=2)
    assert features.shape[0] == 3
    assert not np.allclose(features[0], features[1])
    assert features[2] == pytest.approx(embedded(reward, images[2:], batch_size=1)[0], abs=1e-4)
    assert not isinstance(load("colorfulness"), Embedding)
    assert isinstance(reward, PixelReward)

"""Calibrators of pairs find a known truth again: temperatures, lapses, steps, slices and style."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest

from rwk.calibration.lapse_power import LapsePower
from rwk.calibration.pairs import PairTable
from rwk.calibration.sliced_temperature import SlicedTemperature
from rwk.calibration.style_controlled import StyleControlled
from rwk.calibration.symmetric_isotonic import SymmetricIsotonic
from rwk.calibration.temperature import Temperature

CASE = runpy.run_path(str(Path(__file__).with_name("calibrator_case.py")))
GRID = CASE["GRID"]
sigmoid, pairs = CASE["sigmoid"], CASE["pairs"]


@pytest.mark.parametrize("true", [0.02, 0.5, 1.0, 7.0])
def test_a_known_temperature_is_found_again(true: float) -> None:
    """Over 200 samples of 2,000 pairs log T is off by its standard error: mean 0, deviation 1, never by more than 4."""
    fitted = [Temperature().fit(pairs(2000, seed, true=true)) for seed in range(200)]
    off = np.array([math.log(of.temperature_ / true) / of.fit_["se_log_temperature"] for of in fitted])
    assert abs(off.mean()) < 0.25
    assert 0.85 <= off.std(ddof=1) <= 1.15
    assert np.abs(off).max() < 4
    assert abs(math.log(fitted[0].temperature_ / true)) < 0.2


def test_the_error_of_the_temperature_knows_prompts() -> None:
    """Copies of every pair under its prompt leave the standard error as it was; without prompts it shrinks."""
    once = pairs(400, 0)
    rows = np.repeat(np.arange(400), 4)
    copies = once.take(rows)
    alone = PairTable(copies.margin, copies.label)
    error, copied, shrunk = (Temperature().fit(table).fit_["se_log_temperature"] for table in (once, copies, alone))
    assert copied == pytest.approx(error, rel=0.01)  # not to the last bit: the fit draws labels in by 2 votes in N
    assert shrunk == pytest.approx(error / 2, rel=0.02)


def test_few_prompts_are_said_to_be_few() -> None:
    """Below 30 prompts the fit says so, and its error is at least that of independent pairs."""
    table = pairs(120, 0, per_prompt=6)
    fitted = Temperature().fit(table)
    assert fitted.fit_["notes"] == ["20 prompts are few: below 30 standard errors lean to the small side"]
    z = table.margin / fitted.temperature_
    alone = 1 / math.sqrt(float((z * z * sigmoid(z) * sigmoid(-z)).sum()))
    assert fitted.fit_["se_log_temperature"] >= alone - 1e-12


def test_three_odd_maps_nest() -> None:
    """On their own pairs the isotonic fit is no worse than the lapse-power fit, and that no worse than temperature."""
    table = pairs(4000, 5)
    losses = []
    for calibrator in (Temperature(), LapsePower(), SymmetricIsotonic(clip=0)):
        q = calibrator.fit(table).of(table).clip(1e-12, 1 - 1e-12)
        losses.append(-np.mean(table.label * np.log(q) + (1 - table.label) * np.log1p(-q)))
    assert losses[2] < losses[1] <= losses[0] + 1e-9
    without = LapsePower(fit_lapse=False, fit_power=False).fit(table)
    assert (without.lapse_, without.power_) == (0, 1)
    np.testing.assert_allclose(without.of(table), Temperature().fit(table).of(table), atol=1e-3)


def test_a_known_lapse_is_found_again() -> None:
    """Of 20,000 pairs with one vote in five cast blindly and tails of power 1.5, lapse and power come back."""
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 4, 20000)
    chance = 0.1 + 0.8 * sigmoid(np.sign(margin) * np.abs(margin / 2) ** 1.5)
    fitted = LapsePower().fit(PairTable(margin, rng.random(20000) < chance))
    assert fitted.lapse_ == pytest.approx(0.2, abs=0.03)
    assert fitted.power_ == pytest.approx(1.5, rel=0.15)
    assert fitted.temperature_ == pytest.approx(2, rel=0.1)
    np.testing.assert_allclose(
        fitted.probability(GRID), 0.1 + 0.8 * sigmoid(np.sign(GRID) * np.abs(GRID / 2) ** 1.5), atol=0.02
    )


def test_isotonic_knows_any_odd_curve() -> None:
    """A step from 0.6 to 0.9 is found, certainty is clipped, and few pairs are said to be few."""
    rng = np.random.default_rng(0)
    margin = rng.uniform(-2, 2, 20000)
    chance = 0.5 + np.sign(margin) * np.where(np.abs(margin) < 1, 0.1, 0.4)
    fitted = SymmetricIsotonic().fit(PairTable(margin, rng.random(20000) < chance))
    assert fitted.fit_["notes"] == []
    np.testing.assert_allclose(fitted.probability([-1.5, -0.5, 0.5, 1.5]), [0.1, 0.4, 0.6, 0.9], atol=0.03)
    few = SymmetricIsotonic(clip=0.01).fit(PairTable([1.0, 2.0, 3.0, -1.0], [0, 1, 1, 0]))
    assert few.probability([9.0, -9.0]) == pytest.approx([0.99, 0.01])
    assert "4 pairs of 4 prompts are few for an isotonic fit" in few.fit_["notes"][0]


def test_shrunk_slices_err_less() -> None:
    """Of 10 slices with 100 pairs each, shrunk temperatures are nearer the truth than their own and the common one."""
    rng = np.random.default_rng(0)
    wrong: dict[str, list[float]] = {"raw": [], "pooled": [], "shrunk": []}
    for _ in range(30):
        true = np.exp(rng.normal(0, 0.3, 10))
        z = rng.normal(0, 2, (10, 100))
        label = rng.random((10, 100)) < sigmoid(z)
        names = np.repeat([f"s{i}" for i in range(10)], 100)
        table = PairTable((z * true[:, None]).ravel(), label.ravel(), slices={"kind": names})
        for name, shrink in (("raw", False), ("shrunk", True)):
            fitted = SlicedTemperature(by="kind", shrink=shrink).fit(table)
            wrong[name] += [math.log(fitted.temperatures_[f"s{i}"] / true[i]) ** 2 for i in range(10)]
        wrong["pooled"] += [math.log(fitted.temperature_ / of) ** 2 for of in true]
    raw, pooled, shrunk = (math.sqrt(np.mean(of)) for of in wrong.values())
    assert shrunk < min(raw, pooled) - 0.01
    assert (raw, pooled, shrunk) == pytest.approx((0.205, 0.305, 0.185), abs=0.04)


def test_a_slice_that_says_nothing_has_the_common_temperature() -> None:
    """Margins that are wrong within one slice do not make it certain of anything, and the fit says so."""
    table = pairs(400, 6)
    bad = PairTable([1.0, 2.0], [0, 0], slices={"kind": ["odd", "odd"]})
    both = PairTable(
        np.r_[table.margin, bad.margin],
        np.r_[table.label, bad.label],
        slices={"kind": np.r_[table.slices["kind"], bad.slices["kind"]]},
    )
    fitted = SlicedTemperature(by="kind").fit(both)
    assert set(fitted.temperatures_) == {"color", "count"}
    unseen, odd = fitted.probability([1.0, 1.0], slices=["never seen", "odd"])
    assert unseen == odd == sigmoid(np.array(1 / fitted.temperature_))
    assert fitted.fit_["notes"] == ["slices that say nothing alone have the common temperature: odd"]


def test_style_that_the_reward_likes_too_much_is_found() -> None:
    """Of score = quality + 0.8 saturation, judged by quality, beta T is -0.8 and `corrected` is the quality again."""
    rng = np.random.default_rng(0)
    quality, saturation = rng.normal(0, 1.5, (2, 4000)), rng.normal(0, 1, (2, 4000))
    score = quality + 0.8 * saturation
    label = rng.random(4000) < sigmoid(quality[0] - quality[1])
    table = PairTable(score[0] - score[1], label, covariates={"saturation": saturation[0] - saturation[1]})
    fitted = StyleControlled(covariates=["saturation"]).fit(table)
    assert fitted.beta_["saturation"] * fitted.temperature_ == pytest.approx(-0.8, abs=0.08)
    assert fitted.beta_["saturation"] < -4 * fitted.errors_["saturation"]
    np.testing.assert_allclose(
        fitted.corrected(score[0], {"saturation": saturation[0]}), quality[0], atol=0.1 * np.abs(saturation[0]).max()
    )


def test_the_errors_of_style_know_prompts() -> None:
    """Copies of every pair under its prompt leave the error of beta as it was; without prompts it halves."""
    once = pairs(500, 0)
    copies = once.take(np.repeat(np.arange(500), 4))
    alone = PairTable(copies.margin, copies.label, covariates=copies.covariates)
    error, copied, halved = (
        StyleControlled(covariates=["saturation"]).fit(table).errors_["saturation"] for table in (once, copies, alone)
    )
    assert copied == pytest.approx(error, rel=0.01)
    assert halved == pytest.approx(error / 2, rel=0.02)


def test_style_that_people_like_too_is_not_flagged() -> None:
    """Where the reward is the quality itself, beta is within 3 standard errors of 0 in 40 samples, within 2 in most."""
    found = []
    for seed in range(40):
        fitted = StyleControlled(covariates=["saturation"]).fit(pairs(500, seed, per_prompt=5))
        found.append(fitted.beta_["saturation"] / fitted.errors_["saturation"])
    assert np.abs(found).max() < 3.5
    assert (np.abs(found) > 1.96).sum() <= 6
    assert 0.7 < np.std(found) < 1.3

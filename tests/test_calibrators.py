"""Calibrators: what each finds again of a known truth, what swapping pairs may not change, and their files."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rwk.calibration.absolute import AbsoluteCalibrator
from rwk.calibration.calibrator import Calibrator, PairCalibrator
from rwk.calibration.conformal import ConformalPairs
from rwk.calibration.lapse_power import LapsePower
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.sliced_temperature import SlicedTemperature
from rwk.calibration.storage import KINDS, Binding, load, save
from rwk.calibration.style_controlled import StyleControlled
from rwk.calibration.symmetric_isotonic import SymmetricIsotonic
from rwk.calibration.temperature import Temperature
from rwk.calibration.ties import TieCalibrator
from rwk.rewards.registry import load as load_reward

PAIRWISE: dict[str, Callable[[], PairCalibrator]] = {
    "temperature": Temperature,
    "lapse_power": LapsePower,
    "symmetric_isotonic": SymmetricIsotonic,
    "sliced_temperature": lambda: SlicedTemperature(by="kind"),
    "style_controlled": lambda: StyleControlled(covariates=["saturation"]),
}
TIED = {"davidson": lambda: TieCalibrator(), "rao_kupper": lambda: TieCalibrator(model="rao_kupper")}
GRID = np.array([-30.0, -7.5, -2.0, -1e-3, 0.0, 1e-3, 0.4, 2.0, 7.5, 30.0])
BINDING = Binding("mine", "module:Mine", "aa", {"size": 224, "mean": [0.5, 0.5]})
DATA = {"name": "toy", "sha256": "00", "protocol": "one vote a pair"}


def sigmoid(x: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-x))
    return found


def pairs(n: int, seed: int, *, true: float = 2.0, per_prompt: int = 1, soft: bool = False) -> PairTable:
    """Margins of log-odds with deviation 2 and a known temperature; two kinds of prompt, one covariate."""
    rng = np.random.default_rng(seed)
    margin = true * rng.normal(0, 2, n)
    chance = sigmoid(margin / true)
    return PairTable(
        margin,
        rng.binomial(5, chance) / 5 if soft else rng.random(n) < chance,
        prompt=[f"p{i // per_prompt}" for i in range(n)],
        slices={"kind": np.where(rng.random(n) < 0.5, "color", "count")},
        covariates={"saturation": rng.normal(size=n)},
    )


def tied_pairs(model: str, n: int, seed: int, *, true: float = 2.0, parameter: float) -> PairTable:
    """Outcomes of a known model of ties; margins of log-odds with deviation 1."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    if model == "davidson":
        odds = np.stack([np.exp(z / 2), np.full(n, parameter), np.exp(-z / 2)])
        first, tie, _ = odds / odds.sum(0)
    else:
        first, second = sigmoid(z - parameter), sigmoid(-z - parameter)
        tie = (math.exp(2 * parameter) - 1) * first * second
    u = rng.random(n)
    return PairTable(true * z, np.where(u < first, 1.0, np.where(u < first + tie, 0.5, 0.0)))


def like(calibrator: PairCalibrator, margin: Floats) -> dict[str, Any]:
    """Columns for margins that an orientation turns round with them."""
    columns = {
        "slices": np.array(["color", "count"])[np.arange(len(margin)) % 2][np.argsort(np.argsort(np.abs(margin)))],
        "covariates": {"saturation": np.sign(margin) * 0.7},
    }
    return {name: columns[name] for name in calibrator.needs}


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


@pytest.mark.parametrize("kind", [*PAIRWISE, *TIED])
def test_the_unit_of_the_reward_means_nothing(kind: str) -> None:
    """Margins times 1,000 give the same probabilities, from temperatures times 1,000."""
    table: Any = pairs(1500, 1)
    made: Callable[[], Any] = PAIRWISE.get(kind) or TIED[kind]
    if kind in TIED:
        table = tied_pairs(kind, 1500, 1, parameter=0.8)
    large = PairTable(table.margin * 1000, table.label, slices=table.slices, covariates=table.covariates)
    small, scaled = made().fit(table), made().fit(large)
    np.testing.assert_allclose(scaled.of(large), small.of(table), atol=1e-6)
    if kind == "temperature":
        assert scaled.temperature_ == pytest.approx(1000 * small.temperature_, rel=1e-6)


@pytest.mark.parametrize("kind", PAIRWISE)
def test_swapped_pairs_have_swapped_probabilities(kind: str) -> None:
    """q(m) + q(-m) is 1 to 1e-12, q(0) is 0.5, also far outside the margins of the fit; log-odds turn their sign."""
    fitted = PAIRWISE[kind]().fit(pairs(3000, 2))
    q, turned = (fitted.probability(m, **like(fitted, m)) for m in (GRID, -GRID))
    assert np.abs(q + turned - 1).max() < 1e-12
    assert q[GRID == 0] == 0.5
    proba = fitted.predict_proba(GRID, **like(fitted, GRID))
    assert proba.shape == (len(GRID), 2)
    np.testing.assert_array_equal(proba[:, list(fitted.classes_).index("first")], q)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-12)
    odds, against = (fitted.log_odds(m, **like(fitted, m)) for m in (GRID, -GRID))
    np.testing.assert_allclose(odds, -against, atol=1e-12)
    np.testing.assert_allclose(sigmoid(odds), q, atol=1e-9)


@pytest.mark.parametrize("kind", TIED)
def test_swapped_pairs_have_outcomes_in_reverse(kind: str) -> None:
    """The three probabilities sum to 1 within 1e-10 and come in reverse order for the swapped pair."""
    fitted = TIED[kind]().fit(tied_pairs(kind, 2000, 0, parameter=0.8))
    p = fitted.predict_proba(GRID)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-10)
    np.testing.assert_allclose(p, fitted.predict_proba(-GRID)[:, ::-1], atol=1e-10)
    assert fitted.classes_ == ("first", "tie", "second")


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", [*PAIRWISE, *TIED])
def test_which_image_is_first_means_nothing_to_a_fit(kind: str, soft: bool) -> None:
    """Random flips, and storing the preferred image first, give the same curve."""
    table = pairs(800, 3, per_prompt=4, soft=soft)
    if kind in TIED:
        table = tied_pairs(kind, 800, 3, parameter=0.8)
    made: Callable[[], Any] = PAIRWISE.get(kind) or TIED[kind]
    fitted = made().fit(table)
    for mask in (np.random.default_rng(0).random(800) < 0.5, table.label < 0.5):
        turned = made().fit(table.flip(mask))
        np.testing.assert_allclose(turned.of(table), fitted.of(table), atol=1e-6)
        assert turned.status_ == fitted.status_ == "ok"


@pytest.mark.parametrize("kind", PAIRWISE)
def test_a_larger_margin_is_no_less_likely(kind: str) -> None:
    """Probabilities rise with the margin, stay in 0..1, and keep the ranking of pairs."""
    fitted = PAIRWISE[kind]().fit(pairs(3000, 4))
    grid = np.linspace(-40, 40, 2001)
    columns: dict[str, Any] = {"slices": ["color"] * 2001, "covariates": {"saturation": np.zeros(2001)}}
    q = fitted.probability(grid, **{name: columns[name] for name in fitted.needs})
    assert np.diff(q).min() >= -1e-12
    assert q.min() >= 0
    assert q.max() <= 1
    assert np.diff(q[np.abs(grid) < 2]).max() > 0


@pytest.mark.parametrize("kind", [*PAIRWISE, *TIED])
def test_calibration_keeps_the_ranking_of_pairs(kind: str) -> None:
    """Probabilities never fall with the margin, nor confidences with its size; of the other image they never rise."""
    table: Any = tied_pairs(kind, 1000, 5, parameter=0.8) if kind in TIED else pairs(1000, 5)
    made: Callable[[], Any] = PAIRWISE.get(kind) or TIED[kind]
    alike = PairTable(
        table.margin, table.label, slices={"kind": ["color"] * 1000}, covariates={"saturation": np.zeros(1000)}
    )
    fitted = made().fit(table)
    order = np.argsort(table.margin)
    if kind in TIED:
        first, _, second = fitted.of(alike)[order].T
        assert np.diff(first).min() >= -1e-12
        assert np.diff(second).max() <= 1e-12
        return
    q = fitted.of(alike)[order]
    assert np.diff(q).min() >= -1e-12
    confidence = np.maximum(q, 1 - q)[np.argsort(np.abs(table.margin[order]))]
    assert np.diff(confidence).min() >= -1e-12


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


@pytest.mark.parametrize(("model", "parameter", "name"), [("davidson", 0.8, "nu"), ("rao_kupper", 0.5, "theta")])
def test_models_of_ties_are_found_again(model: Any, parameter: float, name: str) -> None:
    """Over 20 samples of 3,000 pairs the temperature is right within 4 % and the parameter of ties within 6 %."""
    fitted = [TieCalibrator(model=model).fit(tied_pairs(model, 3000, seed, parameter=parameter)) for seed in range(20)]
    assert np.mean([of.temperature_ for of in fitted]) == pytest.approx(2, rel=0.04)
    assert np.mean([of.state()[name] for of in fitted]) == pytest.approx(parameter, rel=0.06)


def test_temperature_does_not_depend_on_ties() -> None:
    """Under Davidson's model the fit without ties has the true temperature; ties as half votes would give 2.9."""
    table = tied_pairs("davidson", 40000, 0, parameter=0.8)
    assert Temperature().fit(table).temperature_ == pytest.approx(2, rel=0.04)
    halves = PairTable(table.margin, table.label, tie=np.zeros(40000))
    assert Temperature().fit(halves).temperature_ == pytest.approx(2.885, rel=0.05)


@pytest.mark.parametrize(("model", "parameter"), [("davidson", 1.8), ("rao_kupper", 1.2)])
def test_indifference_is_where_a_tie_is_likeliest(model: Any, parameter: float) -> None:
    """Just inside the band a tie has the largest probability, just outside it has not; with few ties there is none."""
    fitted = TieCalibrator(model=model).fit(tied_pairs(model, 3000, 0, parameter=parameter))
    edge = fitted.indifference()
    assert edge > 0
    assert fitted.predict_proba([0.99 * edge, -0.99 * edge, 1.01 * edge]).argmax(1).tolist() == [1, 1, 0]
    assert TieCalibrator(model=model).fit(tied_pairs(model, 3000, 0, parameter=0.3)).indifference() == 0


def test_a_known_theta_is_kept() -> None:
    """With theta given, as for a reward trained with it, the temperature alone is fitted."""
    fitted = TieCalibrator(model="rao_kupper", theta=math.log(5)).fit(
        tied_pairs("rao_kupper", 5000, 0, parameter=math.log(5))
    )
    assert fitted.state()["theta"] == pytest.approx(math.log(5))
    assert fitted.temperature_ == pytest.approx(2, rel=0.1)
    with pytest.raises(ValueError, match="needs some ties and some preferences, got none among 4 pairs"):
        TieCalibrator().fit(PairTable([1.0, 2.0, -1.0, 1.0], [1, 1, 0, 0]))
    for settings in ({"theta": 1.0}, {"model": "rao_kupper", "theta": 0.0}, {"model": "luce"}):
        with pytest.raises(ValueError, match="davidson, which has no theta, and rao_kupper with a theta above 0, got"):
            TieCalibrator(**settings).fit(tied_pairs("davidson", 50, 0, parameter=1))


def test_absolute_scores_find_their_line() -> None:
    """P(pass) = sigmoid(1.5 score - 3) comes back, and slices with a line of their own are told apart."""
    rng = np.random.default_rng(0)
    score, kind = rng.normal(2, 1, 6000), np.where(np.arange(6000) % 2, "a", "b")
    passed = rng.random(6000) < sigmoid(1.5 * score - 3)
    fitted = AbsoluteCalibrator().fit(score, passed)
    assert (fitted.slope_, fitted.intercept_) == pytest.approx((1.5, -3), rel=0.08)
    assert fitted.fit_["se_log_slope"] == pytest.approx(0.03, abs=0.01)
    proba = fitted.predict_proba([-30.0, 2.0, 30.0])
    assert proba[:, 0] == pytest.approx([0, 0.5, 1], abs=0.05)
    easy = rng.random(6000) < sigmoid(1.5 * score - 3 + 2 * (kind == "a"))
    sliced = AbsoluteCalibrator(by_slice=True).fit(score, easy, slices=kind, prompt=np.arange(6000) // 3)
    easier, harder, unseen = sliced.probability([2.0, 2.0, 2.0], ["a", "b", "never seen"])
    assert (easier, harder) == pytest.approx((sigmoid(np.array(2.0)), 0.5), abs=0.04)
    assert harder < unseen < easier


def test_slices_that_do_not_differ_are_held_to_the_common_line() -> None:
    """With 20 slices of 30 images and one true line, the folds choose a penalty that keeps them together."""
    rng = np.random.default_rng(1)
    score, kind = rng.normal(0, 1, 600), np.arange(600) % 20
    passed = rng.random(600) < sigmoid(score)
    fitted = AbsoluteCalibrator(by_slice=True).fit(score, passed, slices=kind.astype(str))
    assert fitted.fit_["penalty"] >= 10
    q = np.array([fitted.probability([0.0], [str(i)])[0] for i in range(20)])
    assert q.std() < 0.06


@pytest.mark.parametrize("ties", [False, True])
def test_sets_cover_as_often_as_promised(ties: bool) -> None:
    """Over 100 samples of 150 prompts with 9 alike pairs each, sets at 10 % hold a new prompt's outcome 88 to 93 %."""
    rng, hits, single = np.random.default_rng(0), [], []
    base: Any = TieCalibrator().fit(tied_pairs("davidson", 4000, 0, parameter=0.8)) if ties else Temperature()
    base = base if ties else base.fit(pairs(4000, 0))
    for seed in range(100):
        made = tied_pairs("davidson", 300, seed, parameter=0.8) if ties else pairs(300, seed)
        whole = made.take(np.repeat(np.arange(300), 9))
        part, rest = whole.split(held_out=0.5, seed=int(rng.integers(1000)))
        hit, alone = ConformalPairs(base=base, alpha=0.1, seed=seed).fit(part).coverage(rest)
        hits.append(hit.mean())
        single.append(alone.mean())
    assert 0.88 <= np.mean(hits) <= 0.93
    assert 0.02 < np.mean(single) < 0.98


def test_a_prompt_counts_once_however_many_pairs_it_has() -> None:
    """One prompt with 2,000 easy pairs beside 60 with one pair each does not make sets too small for the others."""
    easy = PairTable(np.full(2000, 20.0), np.ones(2000), prompt=["easy"] * 2000)
    others = pairs(60, 3)
    both = PairTable(
        np.r_[easy.margin, others.margin], np.r_[easy.label, others.label], prompt=np.r_[easy.prompt, others.prompt]
    )
    fitted = ConformalPairs(base=Temperature().fit(pairs(4000, 0))).fit(both)
    assert fitted.fit_["prompts"] == 61
    assert fitted.coverage(pairs(2000, 4))[0].mean() > 0.85


def test_too_few_prompts_leave_no_outcome_out() -> None:
    """At 10 % it takes 9 prompts to leave any outcome out; with fewer every set is full, and the fit says so."""
    base = Temperature().fit(pairs(500, 0))
    few = ConformalPairs(base=base).fit(pairs(8, 1))
    assert few.predict_set(pairs(20, 2)).all()
    assert few.status_ == "uninformative"
    assert "8 prompts are too few" in few.fit_["notes"][0]
    assert ConformalPairs(base=base).fit(pairs(9, 1)).status_ == "ok"


@pytest.mark.parametrize("kind", [*PAIRWISE])
def test_margins_that_say_nothing_are_uninformative(kind: str) -> None:
    """Margins that disagree with the votes give 0.5 everywhere and say so, and are not saved unless forced."""
    table = pairs(300, 7)
    against = PairTable(-table.margin, table.label, slices=table.slices, covariates=table.covariates)
    fitted = PAIRWISE[kind]().fit(against)
    assert fitted.status_ == "uninformative"
    assert (fitted.of(against) == 0.5).all()
    assert not fitted.log_odds(GRID, **like(fitted, GRID)).any()


@pytest.mark.parametrize("calibrator", [Temperature(), LapsePower(), SymmetricIsotonic()])
def test_a_constant_reward_is_uninformative_and_a_perfect_one_separable(
    calibrator: PairCalibrator, tmp_path: Path
) -> None:
    """Both are told by the status, both give finite probabilities, and neither is saved unless forced."""
    label = np.arange(40) % 2
    constant = calibrator.fit(PairTable(np.zeros(40), label))
    assert constant.status_ == "uninformative"
    path = tmp_path / "calibration.json"
    with pytest.raises(ValueError, match="calibrator whose fit is ok, got uninformative"):
        save(path, constant, BINDING, data=DATA)
    assert not path.exists()
    save(path, constant, BINDING, data=DATA, force=True)
    assert load(path, BINDING).status_ == "uninformative"
    perfect = calibrator.fit(PairTable(np.where(label, 1.0, -1.0) * (1 + np.arange(40)), label))
    assert perfect.status_ == "separable"
    assert 0.9 < perfect.probability([40.0])[0] <= 1
    with pytest.raises(ValueError, match="got separable"):
        save(path, perfect, BINDING, data=DATA)


def fitted_of_each_kind() -> list[Calibrator]:
    table, rng = pairs(600, 8, per_prompt=3), np.random.default_rng(0)
    ties = TieCalibrator().fit(tied_pairs("davidson", 600, 0, parameter=0.8))
    passed = rng.random(600) < sigmoid(table.margin)
    return [
        *(made().fit(table) for made in PAIRWISE.values()),
        ties,
        TieCalibrator(model="rao_kupper").fit(tied_pairs("rao_kupper", 600, 0, parameter=0.8)),
        AbsoluteCalibrator(by_slice=True).fit(table.margin, passed, slices=table.slices["kind"]),
        ConformalPairs(base=Temperature().fit(table), alpha=0.2).fit(pairs(300, 9)),
        ConformalPairs(base=ties).fit(tied_pairs("davidson", 300, 1, parameter=0.8)),
    ]


def test_a_file_predicts_what_was_saved(tmp_path: Path) -> None:
    """Every kind comes back from its JSON file with the same settings, status and predictions, bit for bit."""
    table = pairs(50, 10)
    every = fitted_of_each_kind()
    assert {of.kind for of in every} == set(KINDS)
    for number, one in enumerate(every):
        path = tmp_path / f"{number}.json"
        save(path, one, BINDING, data=DATA)
        again: Any = load(path, BINDING)
        assert repr(again) == repr(one)
        assert (again.status_, again.state()) == (one.status_, one.state())
        if isinstance(one, AbsoluteCalibrator):
            before, after = (of.predict_proba(table.margin, table.slices["kind"]) for of in (one, again))
        elif isinstance(one, ConformalPairs):
            before, after = one.predict_set(table), again.predict_set(table)
        else:
            before, after = one.of(table), again.of(table)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(after, before)
        held = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert held["data"] == DATA
        assert held["binds"]["weights_sha256"] == "aa"
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"weights_sha256": "bb"}, "the weights' SHA-256 aa there and bb here"),
        ({"preprocessing": {"size": 256, "mean": [0.5, 0.5]}}, "preprocessing size 224 there and 256 here"),
        ({"preprocessing": {"size": 224}}, r"preprocessing mean \[0.5, 0.5\] there and None here"),
        ({"code": "module:Other"}, "the code module:Mine there and module:Other here"),
    ],
)
def test_a_changed_reward_refuses_its_old_calibration(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    """Other weights, another resize or other code is named, with what to do; another name alone is no matter."""
    path = tmp_path / "calibration.json"
    save(path, Temperature().fit(pairs(200, 0)), BINDING, data=DATA)
    with pytest.raises(ValueError, match=expected + ".*run `rwk calibrate` again"):
        load(path, replace(BINDING, **change))
    assert load(path, replace(BINDING, reward="renamed")).status_ == "ok"
    assert load(path, None).status_ == "ok"


def test_a_binding_sees_weights_and_preprocessing() -> None:
    """One changed weight, or another resize, is another binding; loading the same reward twice is not."""
    reward: Any = load_reward("shapes.clip")
    before = Binding.of(reward)
    assert Binding.of(load_reward("shapes.clip")) == before
    assert before.preprocessing["size"] == 48
    reward.preprocessing = replace(reward.preprocessing, size=64)
    (said,) = Binding.of(reward).differences(json.loads(json.dumps(before.__dict__)))
    assert said == "preprocessing size 48 there and 64 here"
    reward.preprocessing = replace(reward.preprocessing, size=48)
    with torch.no_grad():
        next(reward.module.parameters()).view(-1)[0] += 1e-3
    assert Binding.of(reward).weights_sha256 != before.weights_sha256
    one, two = (Binding.of(load_reward(name)) for name in ("0.5*contrast+shapes.clip", "0.25*contrast+shapes.clip"))
    assert one.weights_sha256 == two.weights_sha256 != Binding.of(load_reward("contrast")).weights_sha256
    assert one.code != two.code
    assert one.preprocessing["shapes.clip"]["size"] == 48


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema": "rwk-calibration/0"}, "must have the schema rwk-calibration/1, got rwk-calibration/0"),
        ({"kind": "os:system"}, "of a known kind, got 'os:system'"),
        ({"state": {"temperature": float("nan")}}, "NaN is no number"),
        ({"state": {"temperature": -1.0}}, "temperature must be above 0 and at most inf, got -1"),
        ({"state": {"temperature": "2"}}, "temperature must be a finite number, got '2'"),
        ({"state": {}}, "needs what its fit found"),
        ({"status": "fine"}, "must state how its fit went, got 'fine'"),
        ({"settings": {"bias": 1}}, "must hold settings, state and fit of a temperature"),
        ({"kind": "symmetric_isotonic", "state": {"knots": [0, 2, 1], "values": [0.5, 0.6, 0.7]}}, "ascending knots"),
        ({"kind": "symmetric_isotonic", "state": {"knots": [0, 1], "values": [0.6, 0.5]}}, "values that do not fall"),
        ({"kind": "symmetric_isotonic", "state": {"knots": [0, 1], "values": [0.5, 1.2]}}, r"values must be in 0.5..1"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    """Another schema, an unknown kind, NaN, unsorted knots and other nonsense are one sentence with the file's name."""
    path = tmp_path / "calibration.json"
    save(path, Temperature().fit(pairs(200, 0)), BINDING, data=DATA)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"calibration\.json.*" + expected):
        load(path, BINDING)
    path.write_text('{"kind": "temperature", "temperature": 1.0}')
    with pytest.raises(ValueError, match="got None; run `rwk calibrate` again"):
        load(path, BINDING)


def test_a_file_imports_nothing(tmp_path: Path) -> None:
    """A kind that names a module is refused without importing it, and no byte of a file is a pickle's."""
    path = tmp_path / "calibration.json"
    save(path, Temperature().fit(pairs(200, 0)), BINDING, data=DATA)
    assert path.read_bytes().isascii()
    assert path.read_bytes()[:1] == b"{"  # where a pickle has its protocol, 0x80
    assert "this" not in sys.modules
    for kind in ("this", "this:s", "rwk.calibration.temperature:Temperature"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": kind}))
        with pytest.raises(ValueError, match="of a known kind, got"):
            load(path, BINDING)
    assert "this" not in sys.modules


def test_the_manners_of_scikit_learn() -> None:
    """`clone` makes an unfitted copy with the same settings; settings can be changed, and unknown ones are refused."""
    from sklearn.base import clone

    fitted = LapsePower(fit_power=False).fit(pairs(200, 0))
    copy = clone(fitted)
    assert copy.get_params() == {"fit_lapse": True, "fit_power": False}
    assert copy.status_ == "unfitted"
    assert copy.set_params(fit_power=True).fit_power
    with pytest.raises(ValueError, match="has no setting 'bias'; there are fit_lapse, fit_power"):
        copy.set_params(bias=1)
    with pytest.raises(ValueError, match="lapse_power must be fitted before it is used"):
        copy.probability([1.0])


def test_what_cannot_be_fitted_or_used_is_refused() -> None:
    """No preference at all, a missing column, and columns that were not fitted with are a sentence each."""
    with pytest.raises(ValueError, match="temperature needs pairs with a preference, got none among 2"):
        Temperature().fit(PairTable([1.0, 2.0], [0.5, 0.5]))
    with pytest.raises(ValueError, match="needs pairs with the slice 'kind', got none"):
        SlicedTemperature(by="kind").fit(PairTable([1.0], [1]))
    style = StyleControlled(covariates=["saturation"])
    with pytest.raises(ValueError, match="needs pairs with saturation, got none"):
        style.fit(PairTable([1.0], [1]))
    assert style.status_ == "unfitted"
    fitted = Temperature().fit(pairs(100, 0))
    with pytest.raises(ValueError, match="temperature needs nothing beside the margins, got slices"):
        fitted.probability([1.0], slices=["a"])
    with pytest.raises(ValueError, match="absolute needs images that pass and images that fail, got one kind among 2"):
        AbsoluteCalibrator().fit([1.0, 2.0], [1, 1])


def test_few_prompts_are_said_to_be_few() -> None:
    """Below 30 prompts the fit says so, and its error is at least that of independent pairs."""
    table = pairs(120, 0, per_prompt=6)
    fitted = Temperature().fit(table)
    assert fitted.fit_["notes"] == ["20 prompts are few: below 30 standard errors lean to the small side"]
    z = table.margin / fitted.temperature_
    alone = 1 / math.sqrt(float((z * z * sigmoid(z) * sigmoid(-z)).sum()))
    assert fitted.fit_["se_log_temperature"] >= alone - 1e-12

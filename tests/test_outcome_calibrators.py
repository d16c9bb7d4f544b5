"""Calibrators of other outcomes than one image or the other: ties, passing alone, and sets."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwk.calibration.absolute import AbsoluteCalibrator
from rwk.calibration.conformal import ConformalPairs
from rwk.calibration.pairs import PairTable
from rwk.calibration.temperature import Temperature
from rwk.calibration.ties import TieCalibrator

CASE = runpy.run_path(str(Path(__file__).with_name("calibrator_case.py")))
sigmoid, pairs, tied_pairs = CASE["sigmoid"], CASE["pairs"], CASE["tied_pairs"]


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

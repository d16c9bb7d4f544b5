"""What holds for every calibrator: units, swaps, order, and what it says of margins that say nothing."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwk.calibration.absolute import AbsoluteCalibrator
from rwk.calibration.calibrator import PairCalibrator
from rwk.calibration.lapse_power import LapsePower
from rwk.calibration.pairs import PairTable
from rwk.calibration.sliced_temperature import SlicedTemperature
from rwk.calibration.storage import load, save
from rwk.calibration.style_controlled import StyleControlled
from rwk.calibration.symmetric_isotonic import SymmetricIsotonic
from rwk.calibration.temperature import Temperature

CASE = runpy.run_path(str(Path(__file__).with_name("calibrator_case.py")))
PAIRWISE, TIED, GRID, BINDING, DATA = CASE["PAIRWISE"], CASE["TIED"], CASE["GRID"], CASE["BINDING"], CASE["DATA"]
sigmoid, pairs, tied_pairs, like = CASE["sigmoid"], CASE["pairs"], CASE["tied_pairs"], CASE["like"]


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

"""Measures of probabilities: known values, other packages' values, and behaviour under a truth that is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rwk.calibration import metrics
from rwk.calibration.evaluate import BIASED, cross_fitted, evaluate
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.symmetric_isotonic import SymmetricIsotonic
from rwk.calibration.temperature import Temperature

EVERY: dict[str, Callable[..., float]] = {
    "nll": metrics.nll,
    "accuracy": metrics.accuracy,
    "brier": lambda *of: metrics.brier(*of).brier,
    "miscalibration": lambda *of: metrics.brier(*of).miscalibration,
    "discrimination": lambda *of: metrics.brier(*of).discrimination,
    "ece": metrics.ece,
    "ece of equal width": lambda *of: metrics.ece(*of, width=True),
    "debiased_l2": metrics.debiased_l2,
    "smooth_ece": metrics.smooth_ece,
    "auroc": metrics.auroc,
    "aurc": metrics.aurc,
    "selective_accuracy": lambda *of: metrics.selective_accuracy(*of, coverage=0.7),
}
ELSEWHERE = [
    # pairs, T, smooth ECE by relplot 1.0.3, and CORP by model-diagnostics 1.5.0
    # (miscalibration, discrimination, uncertainty, score), all on the mirrored pairs
    (300, 1.0, 0.03578714833, (0.009211545941085, 0.136174672725306, 0.25, 0.123036873215780)),
    (1000, 2.0, 0.12719436971, (0.021321752620066, 0.052940085577226, 0.25, 0.218381667042840)),
    (3000, 0.5, 0.08181586178, (0.008994431965264, 0.192617153104366, 0.25, 0.066377278860898)),
]


def sigmoid(x: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-x))
    return found


def drawn(n: int, seed: int, *, true: float = 1.0) -> tuple[Floats, Floats]:
    """Probabilities of margins with deviation 2, and labels that follow the margins at a temperature."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 2, n)
    return sigmoid(margin), (rng.random(n) < sigmoid(margin / true)).astype(np.float64)


def fixed(n: int, true: float) -> tuple[Floats, Floats]:
    """The same from formulas alone, so that other packages can be given it."""
    margin = np.array([3 * math.sin(12.9898 * (i + 1)) for i in range(n)])
    chance = np.array([0.6180339887498949 * (i + 1) % 1 for i in range(n)])
    return sigmoid(margin), (chance < sigmoid(margin / true)).astype(np.float64)


@pytest.mark.parametrize(("n", "true", "smooth", "corp"), ELSEWHERE)
def test_other_packages_agree(n: int, true: float, smooth: float, corp: tuple[float, ...]) -> None:
    """The smooth error is relplot's within 3e-3 (its grid is another), CORP's parts are model-diagnostics' to 1e-9."""
    q, y = fixed(n, true)
    assert metrics.smooth_ece(q, y) == pytest.approx(smooth, abs=3e-3)
    found = metrics.brier(q, y)
    ours = found.miscalibration, found.discrimination, found.uncertainty, found.brier
    assert ours == pytest.approx(corp, abs=1e-9)
    assert found.brier == pytest.approx(found.miscalibration - found.discrimination + found.uncertainty)


@pytest.mark.parametrize("name", EVERY)
def test_which_image_is_first_means_nothing(name: str) -> None:
    """Random flips, and storing the preferred image first, leave every measure as it was, soft labels and ties too."""
    rng = np.random.default_rng(1)
    q, y = drawn(400, 0, true=2.0)
    y = np.where(rng.random(400) < 0.3, rng.choice([0.2, 0.5, 0.75], 400), y)
    q[:10] = 0.5
    w = rng.integers(0, 3, 400).astype(np.float64)
    value = EVERY[name](q, y, w)
    for flip in (rng.random(400) < 0.5, y < 0.5):
        turned = EVERY[name](np.where(flip, 1 - q, q), np.where(flip, 1 - y, y), w)
        assert turned == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "debiased_l2"])
def test_a_weight_is_a_number_of_copies(name: str) -> None:
    """Weights 0, 1 and 3 are pairs left out, kept, and repeated."""
    q, y = drawn(300, 2, true=2.0)
    w = np.random.default_rng(0).choice([0.0, 1.0, 3.0], 300)
    times = w.astype(int)
    repeated = EVERY[name](np.repeat(q, times), np.repeat(y, times))
    assert EVERY[name](q, y, w) == pytest.approx(repeated, abs=1e-9)


def test_what_chance_alone_gives() -> None:
    """For perfect probabilities of 1,000 pairs the debiased error has mean 0; the plain one, over 0.02, has not."""
    measured = [metrics.debiased_l2, metrics.ece, metrics.smooth_ece]
    found = np.array([[of(*drawn(1000, seed)) for of in measured] for seed in range(200)])
    debiased, plain, smooth = found.T
    assert abs(debiased.mean()) < 3 * debiased.std(ddof=1) / math.sqrt(200) + 5e-5
    assert plain.mean() == pytest.approx(0.037, abs=0.003)
    assert smooth.mean() == pytest.approx(0.023, abs=0.003)
    assert (smooth < plain).mean() > 0.95


@pytest.mark.parametrize("n", [200, 1000])
def test_a_known_miscalibration_is_measured(n: int) -> None:
    """Probabilities that are too sure by T = 2 are off by 0.0126 squared, at few pairs as at many, without a bias."""
    q, _ = drawn(400000, 0)
    truth = float(np.mean((q - sigmoid(np.log(q / (1 - q)) / 2)) ** 2))
    assert truth == pytest.approx(0.0126, abs=1e-4)
    found = np.mean([metrics.debiased_l2(*drawn(n, seed, true=2.0)) for seed in range(200)])
    assert found == pytest.approx(truth, abs=0.0015)


def test_debiasing_knows_clusters() -> None:
    """Copies of a pair tell the debiased error nothing, if it is told that they are copies."""
    q, y = drawn(300, 0)
    once = metrics.debiased_l2(q, y)
    copies = np.repeat(q, 4), np.repeat(y, 4)
    assert metrics.debiased_l2(*copies, clusters=np.repeat(np.arange(300), 4)) == pytest.approx(once, abs=1e-12)
    assert metrics.debiased_l2(*copies) > once + 0.002


def test_saying_nothing_scores_a_quarter() -> None:
    """A q of 0.5 is off by 0.25 whatever the vote, and so is the uncertainty; only a vote of 0.5 is met."""
    found = metrics.brier([0.5, 0.5, 0.5], [1, 0, 1])
    assert (found.brier, found.uncertainty) == (0.25, 0.25)
    assert (found.miscalibration, found.discrimination) == (0, 0)
    mixed = metrics.brier([0.5, 0.9, 0.5], [1, 1, 0.5])
    assert mixed.brier == pytest.approx((0.25 + 0.01 + 0) / 3)
    assert mixed.uncertainty == pytest.approx((0.25 + 0.25 + 0) / 3)


def test_a_probability_of_1_is_in_the_last_bin() -> None:
    """Certainty falls into no bin of its own: [0.95, 1.0] with labels [1, 0] has an error of 0.475."""
    assert metrics.ece([0.95, 1.0], [1, 0], bins=5, width=True) == pytest.approx(0.475)


def test_accuracy_under_each_policy() -> None:
    """A probability of 0.5 is half a hit, a miss or nothing; pairs without a majority count in none of them."""
    q, y = [0.9, 0.5, 0.2, 0.7, 0.6], [1, 1, 0, 0.4, 0.5]
    assert metrics.accuracy(q, y) == pytest.approx(2.5 / 4)
    assert metrics.accuracy(q, y, ties="wrong") == pytest.approx(2 / 4)
    assert metrics.accuracy(q, y, ties="excluded") == pytest.approx(2 / 3)
    assert math.isnan(metrics.accuracy([0.5], [1], ties="excluded"))


def test_auroc_is_not_accuracy() -> None:
    """On mirrored pairs the area is the chance that a preferred order beats another pair's dispreferred one."""
    q, y = drawn(200, 3)
    q = q.round(1)  # so that some are equal
    up, down = (np.r_[q[y == which], 1 - q[y != which]].round(9) for which in (1, 0))
    by_hand = np.mean((up[:, None] > down).astype(float) + 0.5 * (up[:, None] == down))
    assert metrics.auroc(q, y) == pytest.approx(by_hand)
    assert metrics.auroc(q, y) > metrics.accuracy(q, y) + 0.05
    assert metrics.auroc(q, np.ones(200)) == pytest.approx(metrics.auroc(1 - q, np.zeros(200)))


def test_risk_and_coverage() -> None:
    """Risks are those of the most confident pairs, and pairs of one confidence share theirs."""
    q, y = [0.9, 0.8, 0.3, 0.6], [1, 0, 0, 0]
    coverage, risk = metrics.risk_coverage(q, y)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])
    fine = [metrics.selective_accuracy(q, y, coverage=(i + 0.5) / 4000) for i in range(4000)]
    assert metrics.aurc(q, y) == pytest.approx(1 - np.mean(fine), abs=1e-6)
    assert metrics.selective_accuracy(q, y, coverage=0.75) == pytest.approx(2 / 3)
    assert metrics.risk_coverage([0.8, 0.2], [1, 1])[1].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="coverage must be above 0 and at most 1, got 0"):
        metrics.selective_accuracy(q, y, coverage=0)


def test_the_null_draws_are_those_of_perfect_probabilities() -> None:
    """The null of the plain error has the known mean and 95 % quantile, and a smaller one where labels are shares."""
    q, _ = drawn(1000, 0)
    null = metrics.null_values(metrics.ece, q, draws=200)
    assert null.mean() == pytest.approx(0.037, abs=0.004)
    assert np.quantile(null, 0.95) == pytest.approx(0.051, abs=0.006)
    assert metrics.null_values(metrics.ece, q, votes=10, draws=50).mean() < 0.6 * null.mean()


def test_impossible_is_infinite() -> None:
    """A vote for what had the probability 0 costs infinitely much, and no vote for it nothing."""
    assert metrics.nll([0.0, 1.0], [0, 1]) == 0
    assert metrics.nll([0.0, 0.5], [0.1, 1]) == math.inf


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (([1.2], [1]), r"q must be in 0\.\.1, got 1.2 in row 0"),
        (([0.5, 0.5], [1]), r"y must have the shape \[2\], got \[1\]"),
        (([0.5], [1], [0.0]), "weights sum to more than 0, got 1 pairs"),
        (([], []), "weights sum to more than 0, got 0 pairs"),
    ],
)
def test_what_cannot_be_measured_is_refused(given: tuple[Any, ...], expected: str) -> None:
    """Other shapes, values outside their range, and nothing at all are a sentence each."""
    with pytest.raises(ValueError, match=expected):
        metrics.ece(*given)


def test_every_number_has_its_interval() -> None:
    """All measures come with an interval around them and the number of prompts, and the biased ones with their null."""
    q, y = drawn(600, 5, true=3.0)
    table = PairTable(np.log(q / (1 - q)), y, prompt=[f"p{i // 3}" for i in range(600)], unscored=4)
    found = evaluate(table, q, draws=100, null_draws=50)
    document = found.document()
    assert (document["pairs"], document["prompts"], document["ties"], document["unscored"]) == (600, 200, 0, 4)
    assert set(BIASED) < set(document["measures"])
    for name, one in document["measures"].items():
        assert one["low"] <= one["value"] <= one["high"], name
        assert one["clusters"] == 200
        assert ("null95" in one) == (name in BIASED)
    for name in BIASED:  # too sure by a factor of 3
        assert found.measures[name].interval.mean > (found.measures[name].null95 or math.inf), name
        assert found.measures[name].null_p == pytest.approx(1 / 51)
    assert found.measures["nll"].interval.mean == pytest.approx(metrics.nll(q, y))
    assert found.measures["smooth_ece"].interval.mean == pytest.approx(metrics.smooth_ece(q, y))


def test_ties_take_no_part() -> None:
    """Pairs that nobody has a preference in change no measure and are counted."""
    q, y = drawn(200, 6)
    margin = np.log(q / (1 - q))
    plain = evaluate(PairTable(margin, y), q, draws=20, null_draws=5)
    tied = PairTable(np.r_[margin, 9, 9], np.r_[y, 0.5, 0.5])
    with_ties = evaluate(tied, np.r_[q, 0.99, 0.99], draws=20, null_draws=5)
    assert with_ties.ties == 2
    assert with_ties.measures["nll"] == plain.measures["nll"]
    assert with_ties.measures["ece"].interval.mean == plain.measures["ece"].interval.mean
    with pytest.raises(ValueError, match="pairs with a preference, got none among 1"):
        evaluate(PairTable([1.0], [0.5]), [0.6])


def test_one_prompt_has_no_interval() -> None:
    """Pairs of a single prompt give values with null for their bounds."""
    q, y = drawn(50, 7)
    found = evaluate(PairTable(q - 0.5, y, prompt=["a"] * 50), q, null_draws=5).document()["measures"]
    assert all(one["low"] is None and one["clusters"] == 1 for name, one in found.items() if name == "nll")
    assert found["auroc"]["high"] is None


def test_cross_fitting_sees_no_prompt_twice() -> None:
    """A flexible fit of 300 pairs flatters itself on the prompts that it was fitted on, and not on others."""
    q, y = drawn(300, 8, true=4.0)
    table = PairTable(np.log(q / (1 - q)), y, prompt=[f"p{i // 3}" for i in range(300)])
    own = metrics.nll(SymmetricIsotonic().fit(table).of(table), y)
    assert own < metrics.nll(sigmoid(table.margin / 4), y) < metrics.nll(cross_fitted(SymmetricIsotonic(), table), y)
    with pytest.raises(ValueError, match="at least 2 prompts, got 1"):
        cross_fitted(Temperature(), PairTable([1.0, 2.0], [1, 0], prompt=["a", "a"]))

"""Intervals and tests: coverage and error rates by simulation, exact values by hand and from other packages."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rwk.calibration import metrics
from rwk.calibration.best_of_n import best_of_n, best_of_n_kl
from rwk.calibration.pairs import Floats
from rwk.calibration.statistics import (
    bootstrap_draws,
    bootstrap_interval,
    cluster_interval,
    cluster_se,
    false_discovery,
    holm,
    max_t,
    mcnemar,
    mean_interval,
    paired_test,
    percentile_interval,
    wilson,
)


def alike(prompts: int, pairs: int, rng: np.random.Generator) -> tuple[Floats, NDArray[Any]]:
    """Hits of a reward that is better at some prompts than at others, 0.7 on the whole."""
    chance = np.repeat(rng.beta(2.1, 0.9, prompts), pairs)
    return (rng.random(prompts * pairs) < chance).astype(np.float64), np.repeat(np.arange(prompts), pairs)


def test_copies_within_a_prompt_add_nothing() -> None:
    """Nine copies of each prompt's pair leave the standard error as it was to 1e-12, and weights are copies."""
    rng = np.random.default_rng(0)
    x, prompt = rng.random(50), np.arange(50)
    error = cluster_se(x, prompt)
    assert error == pytest.approx(x.std(ddof=1) / math.sqrt(50), abs=1e-12)
    assert cluster_se(np.repeat(x, 9), np.repeat(prompt, 9)) == pytest.approx(error, abs=1e-12)
    assert cluster_se(x, prompt, np.full(50, 9)) == pytest.approx(error, abs=1e-12)
    times = rng.integers(1, 4, 50)
    weighted = cluster_se(np.repeat(x, times), np.repeat(prompt, times))
    assert cluster_se(x, prompt, times) == pytest.approx(weighted, abs=1e-12)
    assert math.isnan(cluster_se(x, ["one"] * 50))


def test_the_weighted_interval_is_that_of_copies() -> None:
    """A weighted mean has the interval of as many copies, and rows of weight 0 have no say, not in the count either."""
    rng = np.random.default_rng(1)
    x, prompt, times = rng.random(60), np.arange(60) // 3, rng.integers(0, 3, 60)
    copies = cluster_interval(np.repeat(x, times).tolist(), np.repeat(prompt, times).tolist())
    found = mean_interval(x, prompt, times)
    assert found == pytest.approx(copies, abs=1e-12)
    reach = cluster_se(x, prompt, np.ones(60)) * 2.0930240544  # t of 19 degrees of freedom
    assert mean_interval(x, prompt).high - x.mean() == pytest.approx(reach, rel=1e-9)
    assert mean_interval(x, prompt, np.zeros(60)).clusters == 0


@pytest.mark.parametrize("which", ["t", "bootstrap"])
def test_intervals_cover(which: str) -> None:
    """Of 100 prompts with 9 pairs each, the 95 % interval covers at least 90 % of times; with no prompts, below 85."""
    rng, covered, naive = np.random.default_rng(2), 0, 0
    for seed in range(200):
        x, prompt = alike(100, 9, rng)
        if which == "t":
            found = mean_interval(x, prompt)
        else:
            found = bootstrap_interval(lambda w, x=x: np.average(x, weights=w), prompt, draws=200, seed=seed)
        covered += found.low <= 0.7 <= found.high
        alone = mean_interval(x, np.arange(900))
        naive += alone.low <= 0.7 <= alone.high
    assert 0.90 <= covered / 200 <= 0.99
    assert naive / 200 < 0.85


def test_intervals_of_a_calibration_error_cover() -> None:
    """The bootstrap interval of the smooth error covers it though resampling adds to the error once more."""
    rng, covered = np.random.default_rng(3), 0

    def draw(prompts: int) -> tuple[Floats, Floats, NDArray[Any]]:
        z, true = rng.normal(0, 2, (prompts, 9)), np.exp(rng.normal(math.log(2), 0.5, (prompts, 1)))
        y = rng.random((prompts, 9)) < 1 / (1 + np.exp(-z / true))
        q = (1 / (1 + np.exp(-z))).ravel()
        order = np.argsort(np.maximum(q, 1 - q))
        return q[order], y.ravel()[order].astype(np.float64), np.repeat(np.arange(prompts), 9)[order]

    q, y, _ = draw(30000)
    truth = metrics.smooth_ece(q, y)
    for seed in range(40):
        q, y, prompt = draw(100)
        found = bootstrap_interval(lambda w, q=q, y=y: metrics.smooth_ece(q, y, w), prompt, draws=60, seed=seed)
        covered += found.low <= truth <= found.high
        assert found.low <= found.mean <= found.high
    assert covered / 40 >= 0.85


def test_the_interval_of_a_calibration_error_holds_its_value() -> None:
    """For perfect probabilities 9 in 10 bootstrap draws of the plain error lie above it; moved, they lie around it."""
    rng = np.random.default_rng(12)
    q = np.sort(rng.uniform(0.5, 1, 600))
    y = (rng.random(600) < q).astype(np.float64)
    draws = bootstrap_draws(lambda w: metrics.ece(q, y, w), np.arange(600), draws=200)[:, 0]
    value = metrics.ece(q, y)
    assert np.quantile(draws, 0.1) > value
    found = percentile_interval(value, draws, 600)
    assert found.low < value < found.high
    assert found.high - found.low == pytest.approx(np.diff(np.quantile(draws, [0.025, 0.975]))[0])


def test_the_bootstrap_resamples_whole_prompts() -> None:
    """Rows of a prompt are drawn as often as each other, as many prompts as there are; a seed gives the same draws."""
    prompt = np.array(["a", "b", "b", "c", "c", "c"])
    seen: list[Floats] = []

    def watch(weight: Floats) -> list[float]:
        seen.append(weight)
        return [weight[0], weight.sum()]

    draws = bootstrap_draws(watch, prompt, draws=300, seed=0)
    assert draws.shape == (300, 2)
    for weight in seen:
        assert weight[1] == weight[2]
        assert weight[3] == weight[4] == weight[5]
        assert weight[0] + weight[1] + weight[3] == 3
    assert draws[:, 0].mean() == pytest.approx(1, abs=0.15)
    np.testing.assert_array_equal(bootstrap_draws(watch, prompt, draws=300, seed=0), draws)
    assert not np.array_equal(bootstrap_draws(watch, prompt, draws=300, seed=1), draws)
    assert math.isnan(bootstrap_interval(np.sum, ["a", "a"]).low)


def test_two_equal_rewards_seldom_differ() -> None:
    """With 40 prompts of 6 pairs and no difference, the paired test is below 0.05 in fewer than 10 % of 200 samples."""
    rng, low, alone = np.random.default_rng(4), 0, 0
    for seed in range(200):
        better = np.repeat(rng.normal(0, 0.3, 40), 6)  # of the first reward at the prompt, as much as of the second
        x = np.sign(better + rng.normal(0, 0.3, 240)) * (rng.random(240) < 0.4)
        prompt = np.repeat(np.arange(40), 6)
        low += paired_test(x, prompt, draws=400, seed=seed).p < 0.05
        alone += paired_test(x, np.arange(240), draws=400, seed=seed).p < 0.05
    assert low / 200 < 0.10
    assert alone / 200 > 0.10  # as if every pair stood alone


def test_a_difference_is_found_as_often_as_said() -> None:
    """A true difference of the size called detectable gives p below 0.05 about 4 times in 5."""
    rng, found = np.random.default_rng(5), 0
    sizes = []
    for seed in range(150):
        x = rng.normal(0.28, 1, 100)  # 2.8 standard errors of 0.1
        test = paired_test(x, np.arange(100), draws=400, seed=seed)
        found += test.p < 0.05
        sizes.append(test.detectable)
    assert np.mean(sizes) == pytest.approx(0.28, rel=0.05)
    assert 0.70 <= found / 150 <= 0.90


def test_the_paired_test_of_single_pairs_is_mcnemars() -> None:
    """With few discordant pairs all signs are enumerated, which is McNemar's exact test; drawn signs agree with it."""
    for first, second in ((9, 3), (1, 8), (5, 5), (0, 4)):
        x = np.r_[np.ones(first), -np.ones(second), np.zeros(20)]
        found = paired_test(x, np.arange(len(x)))
        assert found.p == pytest.approx(mcnemar(first, second), abs=1e-12)
        assert found.discordant == first + second
    x = np.r_[np.ones(20), -np.ones(41), np.zeros(39)]
    assert paired_test(x, np.arange(100), draws=20000).p == pytest.approx(mcnemar(20, 41), abs=0.003)
    assert paired_test(np.zeros(5), np.arange(5)).p == 1


def test_weights_and_prompts_in_the_paired_test() -> None:
    """Copies of a pair under its prompt, or as a weight, leave p and the interval as they were."""
    rng = np.random.default_rng(6)
    x, prompt = rng.normal(0.3, 1, 12), np.arange(12)
    once = paired_test(x, prompt)
    for again in (paired_test(np.repeat(x, 3), np.repeat(prompt, 3)), paired_test(x, prompt, np.full(12, 3.0))):
        assert again.p == once.p
        assert again.difference == pytest.approx(once.difference, abs=1e-12)
        assert again.detectable == pytest.approx(once.detectable, abs=1e-12)


def test_statsmodels_agrees() -> None:
    """Wilson's interval, McNemar's exact p, and both adjustments are those of statsmodels 0.15."""
    for hits, count, low, high in (
        (17, 40, 0.28509392559950375, 0.5780493145800893),
        (0, 12, 0.0, 0.24249400665524096),
        (199, 200, 0.9722262956021069, 0.9991168312843989),
    ):
        assert wilson(hits, count)[1:3] == pytest.approx((low, high), abs=1e-12)
    for one, two, p in ((5, 14, 0.063568115234375), (0, 0, 1.0), (3, 3, 1.0), (20, 41, 0.009853448195259268)):
        assert mcnemar(one, two) == pytest.approx(p, abs=1e-12)
    given = [0.001, 0.2, 0.03, 0.04, 0.9, 0.012]
    assert holm(given).tolist() == pytest.approx([0.006, 0.4, 0.12, 0.12, 0.9, 0.06])
    assert false_discovery(given).tolist() == pytest.approx([0.006, 0.24, 0.06, 0.06, 0.9, 0.036])
    with pytest.raises(ValueError, match="hits in 0..count and a count of at least 1, got 5 of 4"):
        wilson(5, 4)


def test_false_findings_are_as_rare_as_promised() -> None:
    """Of 20 tests with 5 true effects, Holm errs at all in at most 5 % of samples, and of Benjamini and Hochberg's
    findings at most 5 % are false; unadjusted, most samples hold a false one."""
    rng = np.random.default_rng(7)
    from scipy.stats import norm

    any_holm, shares, any_raw = 0, [], 0
    for _ in range(400):
        p = 2 * norm.sf(np.abs(rng.normal(np.r_[np.full(5, 3.5), np.zeros(15)], 1)))
        any_raw += (p[5:] < 0.05).any()
        any_holm += (holm(p)[5:] < 0.05).any()
        found = false_discovery(p) < 0.05
        shares.append(found[5:].sum() / max(1, found.sum()))
    assert any_holm / 400 <= 0.07
    assert np.mean(shares) <= 0.05
    assert any_raw / 400 > 0.4


def test_simultaneous_intervals_cover_all_at_once() -> None:
    """Of 8 slices' means the max-T intervals hold all truths in over 90 % of samples, single ones in fewer than 70."""
    rng, together, single, errors = np.random.default_rng(8), 0, 0, 0
    for seed in range(250):
        x = rng.normal(0, 1, (120, 8)) + rng.normal(0, 0.5, (120, 1))

        def means(weight: Floats, x: Floats = x) -> Floats:
            return weight @ x / weight.sum()

        draws = bootstrap_draws(means, np.arange(120), draws=200, seed=seed)
        found = max_t(x.mean(0), draws)
        together += bool(((found.low <= 0) & (found.high >= 0)).all())
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        single += bool(((low <= 0) & (high >= 0)).all())
        errors += found.p.min() < 0.05
    assert together / 250 > 0.90
    assert single / 250 < 0.70
    assert errors / 250 < 0.10


def test_one_slice_that_differs_is_named() -> None:
    """Of 5 slices the one that is off has a small adjusted p, and the others have not."""
    rng = np.random.default_rng(9)
    x = rng.normal([0.6, 0, 0, 0, 0], 1, (200, 5))
    draws = bootstrap_draws(lambda weight: weight @ x / weight.sum(), np.arange(200), draws=500)
    found = max_t(x.mean(0), draws)
    assert found.p[0] < 0.01
    assert found.p[1:].min() > 0.05
    assert (max_t(x.mean(0), draws, null=x.mean(0)).p == 1).all()
    with pytest.raises(ValueError, match=r"draws of shape \[B, 5\], got \[500, 4\]"):
        max_t(x.mean(0), draws[:, :4])
    with pytest.raises(ValueError, match="vary over the draws"):
        max_t([1.0, 1.0], np.ones((10, 2)))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_is_the_mean_over_all_subsets(n: int) -> None:
    """The closed form is the enumeration of every subset to 1e-10, with ties of the proxy broken evenly."""
    rng = np.random.default_rng(10)
    proxy, gold = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    proxy[2] = [1, 1, 2, 2, 2, 0]
    proxy[3] = 5
    for row in range(4):
        best = []
        for subset in itertools.combinations(range(6), n):
            top = [i for i in subset if proxy[row, i] == max(proxy[row, list(subset)])]
            best.append(np.mean(gold[row, top]))
        assert best_of_n(proxy, gold, n)[row] == pytest.approx(np.mean(best), abs=1e-10)


def test_best_of_n_ends() -> None:
    """Best of 1 is the mean, best of all the proxy's favourite, and by gold itself it only rises."""
    rng = np.random.default_rng(11)
    proxy, gold = rng.normal(size=(5, 64)), rng.normal(size=(5, 64))
    np.testing.assert_allclose(best_of_n(proxy, gold, 1), gold.mean(1))
    np.testing.assert_allclose(best_of_n(proxy, gold, 64), gold[np.arange(5), proxy.argmax(1)])
    oracle = np.stack([best_of_n(gold, gold, n) for n in (1, 2, 4, 8, 16)])
    assert (np.diff(oracle, axis=0) > 0).all()
    assert [round(best_of_n_kl(n), 3) for n in (1, 2, 4, 8, 16, 64)] == [0, 0.193, 0.636, 1.204, 1.835, 3.175]
    with pytest.raises(ValueError, match=r"n in 1..N, got \[5, 64\], \[5, 64\] and n = 65"):
        best_of_n(proxy, gold, 65)
    with pytest.raises(ValueError, match="finite scores, got NaN"):
        best_of_n([[1.0, math.nan]], [[1.0, 2.0]], 1)


def test_rows_and_clusters_fit() -> None:
    """Another number of clusters than of values is refused with both."""
    with pytest.raises(ValueError, match=r"clusters must be one a row, got shape \[1\] for 2 rows"):
        cluster_se([1.0, 2.0], ["a"])

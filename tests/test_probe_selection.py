"""Probes of selection, of the curve of best of n, and of generators: exact values, and how often they err."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rwk.calibration.best_of_n import best_of_n_kl
from rwk.calibration.pairs import PairTable
from rwk.calibration.probe import Domain, Result, Sizes, Subject
from rwk.calibration.probe_curve import curve, fitted
from rwk.calibration.probe_generators import BOTH, generators
from rwk.calibration.probe_optimisation import gold_groups
from rwk.calibration.probe_selection import chances, selection
from rwk.rewards.base import Reward, RewardSpec

SIZES = Sizes(draws=200)


class Given(Reward):
    """Scores that were written down, read from the first pixel of an image."""

    spec = RewardSpec("given", "", -math.inf, math.inf, "n/a", "")

    def __init__(self, *scores: np.ndarray) -> None:
        super().__init__()
        self.scores = torch.from_numpy(np.concatenate([of.reshape(-1) for of in scores])).float()

    @classmethod
    def tiny(cls) -> Given:
        return cls(np.zeros(1))

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        return self.scores[[red * 256 + green for red, green, _ in (image.getpixel((0, 0)) for image in images)]]


def drawn(gold: np.ndarray, *, start: int = 0, name: str = "in domain", **more: Any) -> Domain:
    """A domain of [P, n] images for `Given`, the first of which is number `start`."""
    numbers = range(start, start + gold.size)
    images = [Image.new("RGB", (2, 2), (i // 256, i % 256, 0)) for i in numbers]
    texts = [f"{name} {row // gold.shape[1]}" for row in range(gold.size)]
    return Domain(name, images, texts, gold.reshape(-1), **more)


def only(results: Any) -> Result:
    (found,) = results
    assert isinstance(found, Result)
    return found


def test_the_share_of_sets_is_that_of_all_sets() -> None:
    """Over every set of three others, with k equal highest scores sharing one credit."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        score, others = float(rng.integers(0, 4)), rng.integers(0, 4, 7).astype(float)
        credit = [
            0.0 if max(three) > score else 1 / (1 + sum(other == score for other in three))
            for three in itertools.combinations(others.tolist(), 3)
        ]
        found, sets = chances(score, others)
        assert (found, sets) == (pytest.approx(sum(credit)), 35)


def test_selection_of_the_best_of_four() -> None:
    """1 by gold itself, a quarter by a constant, which fails, and little by a reward with 60 % of the pairs right."""
    rng = np.random.default_rng(1)
    gold = rng.normal(0, 1, (400, 8))
    weak = gold / math.tan(0.4 * math.pi) + rng.normal(0, 1, gold.shape)  # correlated by sin(0.1 pi)
    for scores, value, status in ((gold, 1, "pass"), (np.zeros_like(gold), 0.25, "fail"), (weak, 0.37, None)):
        found = only(selection(Subject(Given(scores), [drawn(gold)], SIZES)))
        assert found.value is not None
        assert found.value.mean == pytest.approx(value, abs=0.03 if status is None else 1e-12)
        assert found.value.clusters == 400
        assert status in (found.status, None)


def test_the_worst_domain_is_told_and_others_beside_it() -> None:
    """A reward that chooses by chance elsewhere fails there; another reward's share stands in each level."""
    rng = np.random.default_rng(2)
    gold, elsewhere = rng.normal(0, 1, (2, 60, 6))
    domains = [drawn(gold), drawn(elsewhere, start=gold.size, name="other")]
    subject = Subject(Given(gold, rng.normal(0, 1, gold.shape)), domains, SIZES)
    subject.others = {"truth": Given(gold, elsewhere)}
    found = only(selection(subject))
    assert found.status == "fail"
    assert found.reason.startswith("other: ")
    assert [level.measures["truth"].mean for level in found.levels] == [1, 1]


def test_sets_come_from_preferences_too() -> None:
    """One image beats three others; where more votes say otherwise, in either order of the two, it makes no set."""
    rows = [(0, 1, 1.0), (2, 0, 0.0), (3, 0, 0.25), (0, 3, 0.5), (1, 2, 1.0)]
    against = [*rows, (0, 3, 1.0), (3, 0, 1.0), (3, 0, 1.0), (3, 0, 1.0)]
    votes = [("p", 0, rows), ("q", 4, rows), ("r", 8, against)]
    at = np.array([(first + start, second + start) for _, start, of in votes for first, second, _ in of])
    share = [row[2] for _, _, of in votes for row in of]
    prompt = [name for name, _, of in votes for _ in of]

    def pairs(scores: np.ndarray) -> PairTable:
        return PairTable.from_scores(scores[at[:, 0]], scores[at[:, 1]], share, prompt=prompt)

    domain = drawn(np.full((3, 4), np.nan), preferences=pairs, places=at)
    scores = np.array([[3.0, 2.0, 1.0, 3.0], [0.0, 2.0, 1.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
    found = only(selection(Subject(Given(scores), [domain], SIZES)))
    assert found.value is not None
    assert (found.value.mean, found.value.clusters) == (0.25, 2)  # half of one, none of the other


def test_the_curve_is_fitted_by_least_squares() -> None:
    """alpha and beta are those of the mean curve, and the peak is alpha / (2 beta)."""
    rng = np.random.default_rng(3)
    gold = rng.normal(0, 1, (80, 16))
    scores = gold + rng.normal(0, 0.5, gold.shape)
    gold = np.where(scores > 1.2, gold - 2, gold)
    domain, reward = drawn(gold), Given(scores)
    subject = Subject(reward, [domain], SIZES)
    fit = fitted(gold_groups(domain, subject.scores[0]))
    assert fit is not None
    d = np.sqrt([best_of_n_kl(n) for n in (1, 2, 4, 8, 16)])
    np.testing.assert_allclose(fit.places, d)
    gain = (fit.gold - fit.gold[:, :1]).mean(0)
    alpha, minus = np.linalg.lstsq(np.stack([d, d**2], 1), gain, rcond=None)[0]
    assert (fit.alpha.mean(), fit.beta.mean()) == pytest.approx((alpha, -minus))
    found = only(curve(subject))
    assert found.status == "warn"
    assert "and it falls beyond" in found.reason
    measures = found.levels[0].measures
    assert measures["root of the KL at the peak"].mean == pytest.approx(alpha / (2 * -minus))
    assert measures["gain at the peak"].mean == pytest.approx(alpha**2 / (4 * -minus))
    assert measures["root of the KL at the peak"].low < alpha / (2 * -minus) < d[-1]


def test_gold_that_levels_off_is_no_turn() -> None:
    """Where most images are right, choosing the right ones bends the curve and shows a peak, yet none of 40 warns."""
    rng, bent, warned = np.random.default_rng(4), 0, 0
    for _ in range(40):
        gold = (rng.random((40, 8)) < 0.8).astype(float)
        scores = gold + rng.normal(0, 0.3, gold.shape)
        found = only(curve(Subject(Given(scores), [drawn(gold)], Sizes(draws=20))))
        bent += "levels off" in found.reason
        warned += found.status == "warn"
    assert bent > 30
    assert warned == 0
    assert only(curve(Subject(Given(gold), [drawn(gold[:, :4])], SIZES))).status == "skip"


def votes(bias: float, *, seed: int = 0, names: str = "abc", prompts: int = 60) -> Subject:
    """Images of generators of unlike quality, all pairs of a prompt judged; one of the reward's likings is `bias`."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(0, 1, (prompts, len(names))) + np.linspace(0, 0.8, len(names))
    scores = quality + bias * np.array([name == "a" for name in names])
    first, second = np.array(list(itertools.combinations(range(len(names)), 2))).T
    at = (np.arange(prompts)[:, None, None] * len(names) + np.stack([first, second], 1)).reshape(-1, 2)
    at = np.where(rng.random((len(at), 1)) < 0.5, at, at[:, ::-1])
    truth = quality.reshape(-1)
    label = (rng.random(len(at)) < 1 / (1 + np.exp(truth[at[:, 1]] - truth[at[:, 0]]))).astype(float)
    drawn_by = [[names[row % len(names)] for row in at[:, side].tolist()] for side in (0, 1)]

    def pairs(of: np.ndarray) -> PairTable:
        return PairTable.from_scores(
            of[at[:, 0]],
            of[at[:, 1]],
            label,
            prompt=[str(row // len(names)) for row in at[:, 0].tolist()],
            generator_first=drawn_by[0],
            generator_second=drawn_by[1],
        )

    return Subject(Given(scores), [drawn(np.full(scores.shape, np.nan), preferences=pairs, places=at)], SIZES)


def test_a_generator_that_is_liked_too_much_is_named() -> None:
    """One whose images get 2 more than they are worth fails by name, with an interval by both clusterings beside it."""
    found = only(generators(votes(2.0, names="abcd")))
    assert found.status == "fail", found.reason
    assert found.reason.startswith("a: ")
    assert "more than those who judged" in found.reason
    assert found.value is not None
    assert found.value.clusters == 60
    for level in found.levels:
        assert level.measures[BOTH].clusters == 3
        assert level.measures[BOTH].mean == pytest.approx(level.value.mean)


def test_a_reward_that_knows_which_generator_is_better_is_not_blamed() -> None:
    """Over 40 sets of votes of a sound reward at most one in ten warns, and none fails."""
    found = [only(generators(votes(0.0, seed=seed))).status for seed in range(40)]
    assert found.count("warn") <= 4
    assert "fail" not in found


def test_generators_that_are_not_named_are_skipped() -> None:
    """Without names, and with one name for all."""
    gold = np.random.default_rng(0).normal(0, 1, (20, 4))
    assert "do not name" in only(generators(Subject(Given(gold), [drawn(gold)], SIZES))).reason
    assert "different generators" in only(generators(votes(0.0, names="aa"))).reason

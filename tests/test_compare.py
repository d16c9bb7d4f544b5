"""Comparing rewards: known differences, equal rewards, orientation, agreement, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kendalltau

from rwk.calibration import metrics
from rwk.calibration.compare import Comparison, compare
from rwk.calibration.evaluate import cross_fitted
from rwk.calibration.kendall import tau_b
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.statistics import bootstrap_interval, holm
from rwk.calibration.temperature import Temperature
from rwk.rewards.data import Preference, PreferenceDataset

Rwk = Callable[..., Any]
PLACES = [(prompt, i, j) for prompt in range(40) for i in range(4) for j in range(i + 1, 4)]


def judged(truth: Floats, rng: np.random.Generator) -> PreferenceDataset:
    """All pairs of 40 prompts with 4 images each, judged by sigmoid(2 margins) of the true scores [40, 4]."""
    rows = []
    for prompt, i, j in PLACES:
        p = 1 / (1 + np.exp(-2 * (truth[prompt, i] - truth[prompt, j])))
        pictures = (Path(f"/{prompt}-{i}"), Path(f"/{prompt}-{j}"))
        rows.append(Preference(f"p{prompt}", *pictures, float(rng.random() < p)))
    return PreferenceDataset(rows)


def scored(name: str, scores: Floats) -> tuple[str, Floats, Floats]:
    """A reward by its scores [40, 4]."""
    prompt, i, j = np.array(PLACES).T
    return name, scores[prompt, i], scores[prompt, j]


@pytest.fixture(scope="module")
def case() -> tuple[PreferenceDataset, list[tuple[str, Floats, Floats]], Comparison]:
    """A good, a bad and a middling reward, and how they compare."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(40, 4))
    data = judged(truth, rng)
    rewards = [
        scored(name, truth + noise * rng.normal(size=(40, 4))) for name, noise in (("a", 0.2), ("b", 3), ("c", 1))
    ]
    return data, rewards, compare(data, rewards, draws=100, null_draws=20)


def test_differences_are_those_of_the_rewards(case: Any) -> None:
    """Hits by hand; NLL and accuracy differ as those of the rewards do; Holm goes over all pairs of rewards."""
    data, rewards, found = case
    label = np.array([row.p_first for row in data])
    right = {name: ((one > two) == (label == 1)).astype(float) for name, one, two in rewards}
    standing = {one.name: one.measures for one in found.standings}
    assert [(one.first, one.second) for one in found.differences] == [("a", "b"), ("a", "c"), ("b", "c")]
    for one in found.differences:
        apart = right[one.first] - right[one.second]
        assert one.accuracy.difference.mean == pytest.approx(apart.mean(), abs=1e-12)
        assert one.accuracy.discordant == int((apart != 0).sum())
        nll = [standing[name]["nll"].interval.mean for name in (one.first, one.second)]
        assert one.nll.mean == pytest.approx(nll[0] - nll[1], abs=1e-12)
        assert one.nll.low < one.nll.mean < one.nll.high
        assert one.nll.clusters == one.accuracy.difference.clusters == one.agreement.clusters == 40
    assert [one.p_adjusted for one in found.differences] == holm([one.accuracy.p for one in found.differences]).tolist()
    assert found.differences[0].accuracy.p < 0.001
    assert standing["a"]["nll"].interval.high < standing["b"]["nll"].interval.low
    assert (found.pairs, found.prompts, found.ties, found.unscored) == (240, 40, 0, 0)


def test_the_interval_of_the_likelihood_is_that_of_its_bootstrap(case: Any) -> None:
    """It is the bootstrap of prompts of the paired losses, the first less the second."""
    data, rewards, found = case
    losses = []
    for _, first, second in rewards[:2]:
        table = PairTable.from_preferences(data, first, second)
        losses.append(metrics.losses(cross_fitted(Temperature(), table), table.label))
    apart, prompts = losses[0] - losses[1], [row.prompt for row in data]
    expected = bootstrap_interval(lambda w: np.average(apart, weights=w), prompts, draws=100)
    assert found.differences[0].nll == pytest.approx(expected, abs=1e-12)


def test_a_reward_does_not_differ_from_itself(case: Any) -> None:
    """Twice the same reward, and in another unit, gives a difference of 0, a p of 1 and an agreement of 1."""
    data, rewards, _ = case
    name, first, second = rewards[2]
    found = compare(data, [rewards[2], (name, 7 * first + 3, 7 * second + 3)], draws=20, null_draws=5)
    one = found.differences[0]
    assert one.accuracy.difference == (0, 0, 0, 40)
    assert (one.accuracy.p, one.p_adjusted, one.accuracy.discordant, one.accuracy.detectable) == (1, 1, 0, 0)
    assert one.nll == pytest.approx((0, 0, 0, 40), abs=1e-9)
    assert one.agreement == (1, 1, 1, 40)


def test_orientation_does_not_matter(case: Any) -> None:
    """With half of the pairs the other way round every number stays as it was."""
    data, rewards, before = case
    flip = np.random.default_rng(1).random(len(data)) < 0.5
    turned = [
        Preference(row.prompt, row.second, row.first, 1 - row.p_first) if flipped else row
        for row, flipped in zip(data, flip, strict=True)
    ]
    swapped = [(name, np.where(flip, two, one), np.where(flip, one, two)) for name, one, two in rewards]
    after = compare(PreferenceDataset(turned), swapped, draws=100, null_draws=20)
    for one, two in zip(before.differences, after.differences, strict=True):
        assert two.accuracy.difference == pytest.approx(one.accuracy.difference, abs=1e-9)
        assert two.accuracy[1:] == pytest.approx(one.accuracy[1:], abs=1e-9)
        assert two.nll == pytest.approx(one.nll, abs=1e-6)
        assert two.agreement == pytest.approx(one.agreement, abs=1e-12)
    for old, new in zip(before.standings, after.standings, strict=True):
        for name in ("accuracy", "nll", "smooth_ece"):
            assert new.measures[name].interval == pytest.approx(old.measures[name].interval, abs=1e-4), name


def test_equal_rewards_seldom_differ_though_their_pairs_do() -> None:
    """Two rewards, right or wrong for a whole prompt at once, differ in 5 % of 40 draws, as far as chance goes."""
    rng = np.random.default_rng(2)
    data = PreferenceDataset([Preference(f"p{i // 6}", Path(f"/{i}a"), Path(f"/{i}b"), 1.0) for i in range(120)])
    small = 0
    for _ in range(40):
        sides = [np.repeat(rng.choice((-1.0, 1.0), 20, p=(0.4, 0.6)), 6) for _ in range(2)]
        rewards = [(name, side, np.zeros(120)) for name, side in zip("ab", sides, strict=True)]
        small += compare(data, rewards, draws=2, null_draws=1).differences[0].p_adjusted < 0.05
    assert small <= 5  # more than 5 of 40 come up once in 70


def test_ties_and_missing_scores_are_counted(case: Any) -> None:
    """Margins of 0 under three rules; ties of the people and pairs that any reward cannot score are left out of all."""
    data, rewards, _ = case
    rows = [row._replace(p_first=0.5) if place < 6 else row for place, row in enumerate(data)]
    name, first, second = rewards[0]
    some = np.arange(len(data))
    gone = np.where(some >= 234, np.nan, first)
    level = np.where(some < 120, rewards[1][2], rewards[1][1])
    given = [(name, gone, second), ("level", level, rewards[1][2])]
    found = compare(PreferenceDataset(rows), given, draws=5, null_draws=2)
    assert (found.pairs, found.ties, found.unscored) == (228, 6, 6)
    measures = found.standings[1].measures
    half, wrong = (measures[key].interval.mean for key in ("accuracy", "accuracy_ties_wrong"))
    assert half - wrong == pytest.approx(0.5 * 114 / 228)
    assert measures["accuracy_ties_excluded"].interval.clusters == 19
    with pytest.raises(ValueError, match="needs pairs with a preference and every score, got none among 240"):
        compare(data, [given[0], ("none", np.full(240, np.nan), second)])
    with pytest.raises(ValueError, match="at least 2 rewards, got 1"):
        compare(data, given[:1])


def test_weights_count(case: Any) -> None:
    """A row of weight 2 is two rows, in every mean."""
    data, rewards, _ = case
    heavy = [row._replace(weight=2.0) if place % 3 == 0 else row for place, row in enumerate(data)]
    times = np.where(np.arange(240) % 3 == 0, 2, 1)
    copies = [row for row, count in zip(data, times, strict=True) for _ in range(count)]
    twice = [(name, np.repeat(one, times), np.repeat(two, times)) for name, one, two in rewards[:2]]
    weighted = compare(PreferenceDataset(heavy), rewards[:2], draws=20, null_draws=2).differences[0]
    copied = compare(PreferenceDataset(copies), twice, draws=20, null_draws=2).differences[0]
    assert weighted.accuracy.difference == pytest.approx(copied.accuracy.difference)
    assert weighted.accuracy.p == copied.accuracy.p
    assert weighted.nll.mean == pytest.approx(copied.nll.mean, abs=2e-3)  # a temperature shrinks with the rows


def test_tau_b_is_scipys() -> None:
    """With and without equal scores, and NaN where one ranking says nothing."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        one, two = rng.integers(0, 4, (2, 6)).astype(float)
        assert tau_b(one, two) == pytest.approx(kendalltau(one, two).statistic, nan_ok=True)
    assert np.isnan(tau_b([1, 1], [1, 2]))


def files(folder: Path) -> Path:
    """12 prompts with three grey pictures each; the brightest is preferred, in ImageReward's format."""
    rng, rows = np.random.default_rng(4), []
    for prompt in range(12):
        shades = rng.choice(np.arange(40, 240, 10), 3, replace=False)
        names = [f"{prompt}-{shade}.png" for shade in shades]
        for name, shade in zip(names, shades, strict=True):
            pixels = np.full((8, 8, 3), shade, dtype=np.uint8)
            pixels[:, ::2] = rng.integers(0, 40)
            Image.fromarray(pixels).save(folder / name)
        rows.append(
            {
                "id": str(prompt),
                "prompt": str(prompt),
                "generations": names,
                "ranking": np.argsort(np.argsort(-shades)).tolist(),
            }
        )
    rows[0]["generations"][0] = "none.png"
    path = folder / "test.json"
    path.write_text(json.dumps(rows))
    return path


def test_the_command_compares(rwk: Rwk, tmp_path: Path) -> None:
    """A file of a published set, the tables, the document and both kinds of file; what was left out is told."""
    path = files(tmp_path)
    done = rwk("compare", "contrast", "noise", str(path), "--draws", "100", "--out", "kept/c.json", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert json.loads((tmp_path / "kept" / "c.json").read_text()) == told
    assert (told["pairs"], told["prompts"]) == (34, 12)
    assert told["data"]["left_out"][0]["count"] == 2
    assert "2 left out as an image of theirs is missing (first: item 1, none.png)" in done.err
    assert "there are only 12 prompts" in done.err
    values = [of for one in told["rewards"] for of in one["measures"].values()] + [
        one[key] for one in told["differences"] for key in ("accuracy", "nll", "agreement")
    ]
    assert len(values) == 13
    assert all({"value", "low", "high", "clusters"} <= set(of) for of in values)
    shown = rwk("compare", f"imagereward:{path}", "contrast", "noise", "--draws", "100", "--out", "c.html")
    assert shown.code == 0, shown.err
    assert "contrast, noise" in shown.out
    assert "34 pairs of 12 prompts" in shown.out
    assert "Kendall&#x27;s tau-b" in (tmp_path / "c.html").read_text()


def test_pairs_that_either_was_trained_on_are_left_out_of_both(rwk: Rwk, tmp_path: Path) -> None:
    """The card beside one reward says which prompts it has seen."""
    from rwk.calibration.card import card_of

    path = files(tmp_path)
    seen, rest = PreferenceDataset.read(path).split(held_out=0.5, seed=0)
    card = card_of("noise")
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"data": {"train": {"sha256": seen.digest()}}, "config": {"held_out": 0.5}, "seed": 0}))
    done = rwk("compare", "contrast", "noise", str(path), "--draws", "100", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["pairs"] == len(rest)
    assert f"noise was trained on {len(seen)} of the 34 pairs, which are left out for all" in done.err


def test_what_is_wrong_with_the_call_is_said(rwk: Rwk) -> None:
    """One reward, two files, an unknown reward and an unknown format are wrong calls."""
    for arguments, said in (
        (["contrast", "x.jsonl"], "at least 2 rewards and at most one DATA, got 1 rewards and 1 files"),
        (["contrast", "noise", "x.jsonl", "hpdv2:y.json"], "got 2 rewards and 2 files"),
        (["contrast", "noise", "--draws", "5"], "--draws must be at least 100, got 5"),
        (["contrast", "noise", "--out", "x.txt"], "--out must end in .json or .html, got x.txt"),
        (["contrast", "noise", "hpdv2:none.json"], "none.json must be a file of preferences, got none"),
    ):
        done = rwk("compare", *arguments)
        assert done.code == 2
        assert said in done.err

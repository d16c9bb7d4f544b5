"""The Bradley-Terry loss, the temperature, and intervals clustered by prompt."""

from __future__ import annotations

import math
import random

import pytest
import torch

from rwk.calibration.statistics import cluster_interval
from rwk.rewards.data import Preference, PreferenceDataset
from rwk.rewards.held_out import measure
from rwk.rewards.losses import bradley_terry_loss, fit_temperature


def test_loss_is_the_cross_entropy_of_the_share() -> None:
    """For soft labels the loss is binary cross-entropy with logits, and least where sigmoid(margin) is the share."""
    margin = torch.linspace(-5, 5, 11, dtype=torch.float64)
    p_first = torch.rand(11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(margin, p_first, reduction="none")
    torch.testing.assert_close(bradley_terry_loss(margin, p_first), expected)
    best = torch.logit(p_first).requires_grad_()
    (slope,) = torch.autograd.grad(bradley_terry_loss(best, p_first).sum(), best)
    assert slope.abs().max() < 1e-12


def test_loss_is_stable_far_out() -> None:
    """Margins of any size give a finite loss and gradient, and tiny losses are not rounded to 0."""
    margin = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4], requires_grad=True)
    for share in (0.0, 0.5, 1.0):
        loss = bradley_terry_loss(margin, torch.full([5], share))
        (slope,) = torch.autograd.grad(loss.sum(), margin)
        assert loss.isfinite().all()
        assert slope.isfinite().all()
    assert 0 < bradley_terry_loss(torch.tensor([-30.0]), torch.tensor([0.0])).item() < 1e-12


def test_loss_does_not_care_which_is_first() -> None:
    """Swapping the two images, and the share with them, changes nothing; a tie pulls both ways alike; weights scale."""
    margin, p_first = torch.tensor([1.5, -0.3]), torch.tensor([0.9, 0.5])
    torch.testing.assert_close(bradley_terry_loss(margin, p_first), bradley_terry_loss(-margin, 1 - p_first))
    weighted = bradley_terry_loss(margin, p_first, torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(weighted, bradley_terry_loss(margin, p_first) * torch.tensor([2.0, 0.5]))


@pytest.mark.parametrize("true", [0.2, 1.0, 30.0])
def test_temperature_is_found_again(true: float) -> None:
    """Labels drawn with a known temperature give it back, whatever the margins' scale."""
    draw = torch.Generator().manual_seed(0)
    margin = torch.randn(20000, generator=draw, dtype=torch.float64) * true
    p_first = (torch.rand(20000, generator=draw, dtype=torch.float64) < torch.sigmoid(margin / true)).double()
    found = fit_temperature(margin, p_first)
    assert found.value == pytest.approx(true, rel=0.06)
    assert found.n == 20000
    assert found.status == "fitted"


def test_temperature_of_margins_that_say_nothing_is_infinite() -> None:
    """Margins that are wrong more than right, all 0, or none at all give probability one half."""
    for margin in (torch.tensor([-1.0, -2.0, 0.5]), torch.zeros(3)):
        found = fit_temperature(margin, torch.ones(3))
        assert (found.value, found.status) == (math.inf, "uninformative")
    assert fit_temperature(torch.zeros(0), torch.zeros(0)).n == 0


def test_temperature_of_margins_that_are_never_wrong_is_finite() -> None:
    """Perfect margins get the confidence of Platt's rule: (N + 1) / (N + 2), not certainty."""
    found = fit_temperature(torch.full([8], 3.0), torch.ones(8))
    assert 1 / (1 + math.exp(-3.0 / found.value)) == pytest.approx(9 / 10)


def test_interval_of_single_rows_is_students() -> None:
    """With a cluster for each row the interval is the usual t interval of a mean."""
    values = [random.Random(i).random() for i in range(12)]
    mean = sum(values) / 12
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 11)
    found = cluster_interval(values, list(range(12)))
    assert found.mean == pytest.approx(mean)
    assert found.high - found.mean == pytest.approx(2.200985 * deviation / math.sqrt(12), rel=1e-6)
    assert found.clusters == 12


def test_copies_within_a_cluster_add_nothing() -> None:
    """Ten copies of each row leave the interval as it was, which the plain formula would shrink by three."""
    values = [float(random.Random(i).random() < 0.6) for i in range(30)]
    once = cluster_interval(values, list(range(30)))
    tenfold = cluster_interval(values * 10, list(range(30)) * 10)
    assert tenfold.low == pytest.approx(once.low)
    assert tenfold.clusters == 30


def test_interval_covers() -> None:
    """Over simulated prompts of unequal size the 95 % interval covers the truth 92 to 98 % of times."""
    rng, covered = random.Random(0), 0
    for _ in range(400):
        values, clusters = [], []
        for cluster in range(40):
            chance = rng.betavariate(1, 1)  # mean 0.5, whatever the cluster's size
            for _ in range(rng.randint(1, 6)):
                values.append(float(rng.random() < chance))
                clusters.append(cluster)
        found = cluster_interval(values, clusters)
        covered += found.low <= 0.5 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_one_cluster_has_no_interval() -> None:
    """A single prompt gives a mean without an interval, and no values are refused."""
    found = cluster_interval([1.0, 0.0], ["a", "a"])
    assert found.mean == 0.5
    assert math.isnan(found.low)
    with pytest.raises(ValueError, match="one cluster per value, got 0 values and 1 clusters"):
        cluster_interval([], ["a"])


def test_measures_of_held_out_pairs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ties are left out of the accuracy, a margin of 0 is half right, and weights count in the loss alone."""
    image = tmp_path_factory.mktemp("m") / "x.png"
    shares = [1.0, 0.0, 0.5, 0.8, 0.2]
    margins = torch.tensor([2.0, 1.0, 3.0, 0.0, -1.0])
    rows = [Preference(f"p{i}", image, image, share, 1.0 + i) for i, share in enumerate(shares)]
    found = measure(margins, PreferenceDataset(rows))
    assert found.accuracy is not None
    assert found.accuracy.mean == (1 + 0 + 0.5 + 1) / 4
    assert (found.ties, found.pairs, found.accuracy.clusters) == (1, 5, 4)
    weight = torch.arange(1.0, 6.0)
    expected = (bradley_terry_loss(margins, torch.tensor(shares)) * weight).sum() / weight.sum()
    assert found.nll.mean == pytest.approx(expected.item(), rel=1e-6)
    assert found.nll_calibrated.mean <= found.nll.mean + 1e-9
    tied = measure(torch.zeros(2), PreferenceDataset([row._replace(p_first=0.5) for row in rows[:2]]))
    assert tied.accuracy is None
    assert tied.document()["temperature"]["value"] is None

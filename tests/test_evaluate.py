"""Means, best of n and accuracy of what a generator drew."""

from __future__ import annotations

import itertools

import pytest
import torch

from rwk.policy_opt.evaluate import accuracy, best_of, clustered


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_all_choices(n: int) -> None:
    """The closed form equals an enumeration of every choice of n among 5 images."""
    random = torch.Generator().manual_seed(n)
    proxy, value = torch.rand(4, 5, generator=random), torch.rand(4, 5, generator=random)
    for row, expected in enumerate(best_of(proxy, value, n)):
        chosen = [max(choice, key=lambda i: proxy[row, i]) for choice in itertools.combinations(range(5), n)]
        assert expected == pytest.approx(value[row, chosen].mean().item(), abs=1e-6)


def test_best_of_n_prefers_the_first_of_equals_and_never_an_unscored_image() -> None:
    """Ties go to the image drawn first; NaN ranks below every score."""
    value = torch.tensor([[1.0, 2.0, 3.0]])
    assert best_of(torch.tensor([[5.0, 5.0, 4.0]]), value, 3) == 1
    assert best_of(torch.tensor([[torch.nan, -9.0, torch.nan]]), value, 3) == 2


def test_best_of_n_leaves_out_choices_without_a_value() -> None:
    """They count neither as 0 nor at all; where every choice is such, there is no mean."""
    value = torch.tensor([[1.0, torch.nan, 3.0]])
    proxy = torch.tensor([[0.1, 0.3, 0.2]])
    assert best_of(proxy, value, 3).isnan()
    assert best_of(proxy, value, 2) == 3  # the first and third, as the other two choices have no value
    assert best_of(proxy, value, 1) == 2


def test_best_of_more_than_there_are_is_refused() -> None:
    """The number of images stands in the message."""
    with pytest.raises(ValueError, match="between 1 and the 3 images"):
        best_of(torch.zeros(1, 3), torch.zeros(1, 3), 4)


def test_accuracy_counts_only_what_is_wholly_right() -> None:
    """A missing score stays missing."""
    found = accuracy(torch.tensor([1.0, 0.99, torch.nan]), 1.0)
    assert found[:2].tolist() == [1, 0]
    assert found[2].isnan()


def test_interval_is_clustered_by_prompt() -> None:
    """Images of one prompt that agree count once: four copies of two prompts are as uncertain as two images."""
    once, often = clustered(torch.tensor([[0.0], [1.0]])), clustered(torch.tensor([[0.0] * 4, [1.0] * 4]))
    assert once == pytest.approx(often)
    assert often.clusters == 2


def test_a_score_that_nothing_has() -> None:
    """Where a reward applies to no image of a domain or a category, its mean is unknown, and no reason to stop."""
    found = clustered(torch.full([2, 3], torch.nan))
    assert found.clusters == 0
    assert found.mean != found.mean

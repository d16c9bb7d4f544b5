"""The distribution that tokens are drawn from, its truncation, and the draw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rwk.policy_opt.distribution import distribution, draw, row_uniforms
from rwk.policy_opt.sampling import Sampling


@pytest.mark.parametrize(("k", "p"), [(1, 1.0), (5, 1.0), (0, 0.3), (0, 0.95), (7, 0.8), (99, 0.5)])
def test_truncation_is_that_of_transformers(k: int, p: float) -> None:
    """Temperature, top-k and top-p keep the same tokens, with the same probabilities, as transformers' warpers."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)) * 2
    expected = TemperatureLogitsWarper(0.7)(None, logits)
    expected = TopKLogitsWarper(k)(None, expected) if k else expected
    expected = TopPLogitsWarper(p)(None, expected) if p < 1 else expected
    ours = distribution(logits, None, Sampling(temperature=0.7, top_k=k, top_p=p))
    torch.testing.assert_close(ours, expected.log_softmax(1), rtol=0, atol=1e-5)


def test_ties_with_the_last_token_kept_are_kept() -> None:
    """Which of equal tokens stays is not left to the order of a sort."""
    logits = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0])
    for recipe in (Sampling(top_k=2), Sampling(top_p=0.8)):
        assert distribution(logits, None, recipe).isfinite().tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("k", [1, 4, 20])
def test_a_drawn_token_leaves_the_top_k_without_a_jump(k: int) -> None:
    """As its logit falls from first to last, its log-probability falls too, and in no larger steps."""
    logp, truncated, step = falling_token(Sampling(top_k=k))
    kept = truncated.isfinite()
    assert kept.tolist() == sorted(kept.tolist(), reverse=True)
    assert {True, False} == set(kept.tolist())
    torch.testing.assert_close(logp[kept], truncated[kept])
    assert logp.diff().max() < 1e-6
    assert logp.diff().min() > -1.01 * step


@pytest.mark.parametrize("p", [0.2, 0.5, 0.6, 0.9, 0.99])
def test_a_drawn_token_leaves_the_top_p_without_a_jump(p: float) -> None:
    """Where it is dropped, by rank or by mass, its log-probability is what it was just before, and it stays finite."""
    logp, truncated, step = falling_token(Sampling(top_p=p))
    kept = truncated.isfinite()
    assert logp.isfinite().all()
    torch.testing.assert_close(logp[kept], truncated[kept])
    edges = kept.int().diff().nonzero()[:, 0]
    assert len(edges)
    assert (logp[edges + 1] - logp[edges]).abs().max() < 2 * step


def falling_token(recipe: Sampling) -> tuple[Tensor, Tensor, float]:
    """Log-probabilities of a token among 20 others while its logit falls: as drawn, and not; and the logit's step."""
    others = torch.randn(20, generator=torch.Generator().manual_seed(1))
    fall = torch.linspace(4, -4, 8001)
    logits = torch.cat([fall[:, None], others.expand(8001, 20)], 1)
    logp = distribution(logits, None, recipe, drawn=torch.zeros(8001, dtype=torch.long))
    return logp[:, 0], distribution(logits, None, recipe)[:, 0], 1e-3


def test_the_draw_is_the_quantile() -> None:
    """Token i is drawn where the uniform lies between the sums of the probabilities before it and with it."""
    logp = torch.tensor([0.2, 0.0, 0.5, 0.3, 0.0]).log().expand(7, 5)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.999, math.nextafter(1, 0)], dtype=torch.float64)
    assert draw(logp, uniform).tolist() == [0, 0, 2, 2, 3, 3, 3]


def test_a_token_without_probability_is_never_drawn() -> None:
    """At any quantile, 0 and the largest below 1 among them."""
    logits = torch.randn(400, 50, generator=torch.Generator().manual_seed(0))
    logp = distribution(logits, None, Sampling(top_k=3))
    for uniform in (0.0, math.nextafter(1, 0), 0.5):
        codes = draw(logp, torch.full([400], uniform, dtype=torch.float64))
        assert logp.gather(1, codes[:, None]).isfinite().all()


def test_uniforms_depend_on_seed_prompt_and_place_alone() -> None:
    """Each of the three changes the row, nothing else does, and the numbers stay the same from version to version."""
    rows = row_uniforms(["a", "b", "a"], 100, 7)
    assert torch.equal(rows[[0, 2]], row_uniforms(["a", "a", "b"], 100, 7)[:2])
    different = torch.cat([rows, row_uniforms(["a", "b", "a"], 100, 8)])
    assert len(different.unique()) == 600
    assert 0 <= different.min() < 0.02 < 0.98 < different.max() < 1
    assert rows[0, :2].tolist() == [0.5626665698338325, 0.3487186779320224]

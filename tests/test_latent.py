"""The proximal step in the space of codes: its mathematics, and what it does to images of the built-in world."""

from __future__ import annotations

import pytest
import torch

from rwk.adapters.shapes_clip import ShapesClip
from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.shapes_verifier import Verifier
from rwk.policy_opt.latent import ascend, refine

PROMPTS = ["a red circle", "a black cross"]


def test_a_linear_reward_moves_by_w_times_its_slope() -> None:
    """Of f = a z the step is w a; J is flat at its top, so that float32 tells it to 1e-3."""
    slope, start = torch.tensor([1.0, -2.0]), torch.tensor([[0.5, 0.5], [3.0, 0.0]])
    found = ascend(lambda z: z @ slope, start, trust=0.3, steps=40)
    assert torch.allclose(found, start + 0.3 * slope, atol=1e-3)


def test_a_concave_reward_by_hand() -> None:
    """Of f = -(z - 1)^2 / 2 from 0 with w = 1 the step ends half way, at 1/2."""
    found = ascend(lambda z: -(z - 1).square().sum(1) / 2, torch.zeros(1, 1), trust=1.0, steps=40)
    assert found.item() == pytest.approx(0.5, abs=1e-4)


def test_soft_pixels_of_codes_are_their_pixels() -> None:
    """Codes decode alike by number and by embedding."""
    generator = ShapesLlama.tiny()
    tokens = torch.randint(512, [3, 64], generator=torch.Generator().manual_seed(0))
    soft = generator.soft_pixels(generator.code_embeddings()[tokens])
    assert torch.allclose(soft, generator.pixels(tokens), atol=1e-5)


@pytest.mark.parametrize("trust", [1e-3, 10.0])
def test_the_step_stays_within_its_trust(trust: float) -> None:
    """The reward rises, by at least the squared distance over 2 w."""
    generator, reward = ShapesLlama.tiny(), ShapesClip.tiny()
    tokens = torch.randint(512, [2, 64], generator=torch.Generator().manual_seed(0))
    found = refine(generator, reward, tokens, PROMPTS, trust=trust)
    moved = (found.soft - generator.code_embeddings()[tokens]).square().sum((1, 2))
    assert (found.reached > found.before).all()
    assert (moved <= 2 * trust * (found.reached - found.before) * (1 + 1e-3) + 1e-6).all()


def test_without_trust_no_code_changes() -> None:
    """A step that is too short to reach another code rounds back to the image."""
    tokens = torch.randint(512, [2, 64], generator=torch.Generator().manual_seed(0))
    found = refine(ShapesLlama.tiny(), ShapesClip.tiny(), tokens, PROMPTS, trust=1e-9)
    assert torch.equal(found.tokens, tokens)
    assert torch.equal(found.after, found.before)


def test_no_images_are_refined_to_none() -> None:
    """Zero rows have zero results, of the shapes that rows have."""
    found = refine(ShapesLlama.tiny(), ShapesClip.tiny(), torch.zeros(0, 64, dtype=torch.long), [], trust=1.0)
    assert [tuple(column.shape) for column in found] == [(0, 64, 3), (0, 64), (0,), (0,), (0,)]
    assert found.tokens.dtype == torch.long


def test_refuses_what_has_no_gradient() -> None:
    """The verifier counts facts."""
    with pytest.raises(ValueError, match=r"gradient, got shapes\.verifier"):
        refine(ShapesLlama.tiny(), Verifier(), torch.zeros(2, 64, dtype=torch.long), PROMPTS, trust=1.0)
    with pytest.raises(ValueError, match="above 0, got 0"):
        refine(ShapesLlama.tiny(), ShapesClip.tiny(), torch.zeros(2, 64, dtype=torch.long), PROMPTS, trust=0)

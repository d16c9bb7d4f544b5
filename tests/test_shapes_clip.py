"""The dual encoder of the built-in world: what it is trained on, and what the shipped one knows."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from rwk.adapters import shapes_prompts
from rwk.adapters import shapes_world as world
from rwk.adapters.dual_encoder import DualEncoder
from rwk.adapters.shapes_clip import WEIGHTS, ShapesClip, example, holds, loss_of, small, two_alternatives
from rwk.adapters.shapes_generator import ShapesLlama
from rwk.rewards.bases import load_base
from rwk.rewards.registry import load


def test_near_misses_are_wrong_and_near() -> None:
    """A near scene differs from a right one in few things, breaks the caption, and so does the near caption."""
    rng = random.Random(0)
    for family in shapes_prompts.FAMILIES:
        for prompt in shapes_prompts.prompts(family, 60, seed=0):
            found = example(prompt.text, family, rng)
            assert holds(shapes_prompts.understand(found.caption), found.scene)
            assert not holds(shapes_prompts.understand(found.caption), found.near_scene)
            wrong = shapes_prompts.understand(found.near_caption)
            assert not holds(wrong, found.scene)
            assert not any((clause.color, clause.shape) in world.HELD_OUT for clause in wrong.clauses)


def test_loss_falls() -> None:
    """A few steps on one batch lower the contrastive loss from the logarithm of the number of choices."""
    from rwk.adapters.dual_encoder import DualEncoder

    rng = random.Random(0)
    examples = [example(p.text, "shapes.long", rng) for p in shapes_prompts.prompts("shapes.long", 16, seed=0)]
    reward = DualEncoder(*small(width=64, layers=1, patch=12))
    reward.module.get_parameter("head.log_scale").data.fill_(0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vq = ShapesLlama().vq
        optimizer = torch.optim.Adam(reward.module.parameters(), 1e-3)
        losses = []
        for _ in range(40):
            loss = loss_of(reward, examples, vq, rng)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    assert abs(losses[0] - torch.tensor(32.0).log().item()) < 0.5
    assert losses[-1] < losses[0] - 0.3


def test_the_shipped_one_tells_right_from_almost_right() -> None:
    """On prompts of both families that it has not seen, it prefers the right picture to a near miss."""
    reward = load_base("shapes.clip")
    found = two_alternatives(reward, ShapesLlama().vq, count=120, seed=1)
    assert len(found) == 12
    assert sum(found.values()) / 12 > 0.8, found


def test_the_shipped_one_is_small() -> None:
    """The weights take less than 3 MB, and are what the name stands for."""
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 3_000_000
    assert isinstance(load("shapes.clip"), ShapesClip)
    assert load("shapes.clip").spec.name == "shapes.clip"


def test_from_scratch_it_is_its_shape_alone() -> None:
    """`scratch:shapes.clip` has its architecture and input, and weights that the seed draws; others are refused."""
    shipped: Any = load_base("shapes.clip")
    first, again, other = (load_base("scratch:shapes.clip", seed=seed) for seed in (1, 1, 2))
    assert isinstance(first, DualEncoder)
    assert (first.architecture, first.preprocessing) == (shipped.architecture, shipped.preprocessing)
    name = "clip.visual.transformer.resblocks.0.mlp.c_fc.weight"
    weights = [one.module.get_parameter(name) for one in (shipped, first, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[0])
    assert not torch.equal(weights[1], weights[3])
    for wrong in ("pickscore.v1", "colorfulness"):
        with pytest.raises(ValueError, match=f"scratch:REWARD must name a reward that is kept whole.*got {wrong}"):
            load_base(f"scratch:{wrong}")

"""Sub-policies: what is drawn by which recipe, that each image is trained under its own, and GRPO with them."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import Rollout
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import derived_seed, read
from rwk.policy_opt.permuted import draw_permuted
from rwk.policy_opt.policy import Policy
from rwk.policy_opt.recipes import changes
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.sub_policies import by_recipe, draw_mixed, recipes_of

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, GRPO, PROMPTS = toy["Toy"], toy["Brightness"], toy["GRPO"], toy["PROMPTS"]
BRIGHT = [Weighted("bright", Brightness())]
ASKED = ["a red circle and a blue ring", "a black cross"]
RECIPES = recipes_of(("temperature=0.5", "guidance=3,top_k=40", "top_p=0.8"), Sampling(temperature=0.9))


def mixed(generator: Any, draw: Any = None, per_prompt: int = 6) -> Rollout:
    draw = draw or type(generator).sample
    return draw_mixed(draw, generator, ASKED, per_prompt=per_prompt, seed=3, recipes=RECIPES)


def test_recipes() -> None:
    """A recipe is the run's own but for what it names, and anything else is refused."""
    assert RECIPES[1] == Sampling(guidance=3.0, temperature=0.9, top_k=40)
    for wrong in ("", "temperature", "seed=3", "top_k=0.5", "temperature=hot"):
        with pytest.raises(ValueError, match=r"NAME=NUMBER.*got '"):
            changes(wrong)


def test_each_recipe_draws_its_share() -> None:
    """Rows of a group are those that each recipe draws by itself, and their probabilities are its own."""
    generator = ShapesLlama.tiny()
    found = mixed(generator)
    assert found.prompts == [prompt for prompt in ASKED for _ in range(6)]
    assert found.group.tolist() == [0] * 6 + [1] * 6
    assert found.recipes == (RECIPES[0],) * 2 + (RECIPES[1],) * 2 + (RECIPES[2],) * 2 + found.recipes[:6]
    for number, recipe in enumerate(RECIPES):
        alone = generator.sample(ASKED, per_prompt=2, seed=derived_seed(3, number), sampling=recipe)
        rows = torch.tensor([0, 1, 6, 7]) + 2 * number
        assert torch.equal(found.tokens[rows], alone.tokens)
        assert torch.equal(found.logprobs[rows], alone.logprobs)


def test_every_row_has_the_probabilities_of_its_own_recipe() -> None:
    """By teacher forcing they are the sampler's, whole, in any order, and as a trainer asks for them by handles."""
    generator = ShapesLlama.tiny()
    found = mixed(generator)
    statistics = by_recipe(generator.statistics)
    assert torch.allclose(statistics(found).logprobs, found.logprobs, atol=1e-5)
    assert not torch.allclose(generator.logprobs(replace(found, recipes=())), found.logprobs, atol=1e-2)
    order = torch.tensor([7, 0, 10, 3])
    assert torch.allclose(statistics(found[order]).logprobs, found.logprobs[order], atol=1e-5)
    policy = Policy(generator.module, statistics, ["a ring", *ASKED], Sampling(), RECIPES)
    ids = torch.cat([torch.tensor(policy.handles(found))[:, None], found.tokens], 1)
    assert torch.allclose(policy(ids, ids).log_probs, found.logprobs, atol=1e-5)


def test_wordings_are_mixed_too() -> None:
    """With permuted groups half of every recipe's share is of the other wording."""
    found = mixed(ShapesLlama.tiny(), draw_permuted)
    turned = "a blue ring and a red circle"
    assert found.prompts == [ASKED[0], turned] * 3 + [ASKED[1]] * 6


@pytest.mark.parametrize("change", [{}, {"beta": 0.1, "diversity": 0.5}, {"lora_rank": 4, "num_iterations": 2}])
def test_a_run_trains_what_was_drawn(tmp_path: Path, change: dict[str, Any]) -> None:
    """The first ratios are 1, the distance to the beginning begins at 0, and images become brighter."""
    recipes = ("temperature=0.7", "guidance=2")
    config = replace(GRPO, steps=16, group_size=8, learning_rate=2e-2, sub_policies=recipes, **change)
    grpo(config, Toy(), BRIGHT, PROMPTS, out=tmp_path)
    rows = read(tmp_path / "metrics.jsonl")
    assert max(row["drift"] for row in rows if "drift" in row) < 1e-5
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    drawn = [row["reward/bright/mean"] for row in rows if "reward/bright/mean" in row]
    assert drawn[-1] > drawn[0] + 0.1


def test_drift_of_recipes_that_are_trained_unguided_is_rounding(tmp_path: Path) -> None:
    """In mode cond_only each row is held against its own recipe, guided as it was drawn."""
    config = replace(GRPO, steps=2, group_size=8, sub_policies=("temperature=0.7", "guidance=2"))
    grpo(config, Toy(), BRIGHT, PROMPTS, out=tmp_path, sampling=Sampling(guidance=3.0, mode="cond_only"))
    rows = read(tmp_path / "metrics.jsonl")
    assert max(row["drift"] for row in rows) < 1e-5
    assert max(row["guidance_gap"] for row in rows) > 1e-3


def test_refuses_what_cannot_be_shared() -> None:
    """Recipes share a group equally, and go without weights of tokens."""
    two = ("temperature=0.7", "temperature=1.2")
    for wrong, said in (
        ({"sub_policies": two[:1]}, "at least 2"),
        ({"sub_policies": two, "group_size": 5}, "got 2 for a group_size of 5"),
        ({"sub_policies": two, "group_size": 6, "permute": True}, "each half"),
        ({"sub_policies": two, "token_weights": "stage"}, "without token_weights"),
        ({"sub_policies": ("temperature=0.7", "heat=1")}, "got 'heat=1'"),
    ):
        with pytest.raises(ValueError, match=said):
            Grpo(**wrong)  # type: ignore[arg-type]

"""The term for variety, and GRPO with groups of two wordings and with the term."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.permuted import draw_permuted, other_wordings
from rwk.policy_opt.variety import fields, likeness, with_variety

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, GRPO = toy["Toy"], toy["Brightness"], toy["GRPO"]
BRIGHT = [toy["Weighted"]("bright", Brightness())]
PAIRS = [f"a grey thing and a dark thing{letter}" for letter in "abcdefgh"]


def test_likeness_by_hand() -> None:
    """Of two equal rows and one at right angles: 1/2, 1/2 and 0, once the mean of all is taken off."""
    first, second = torch.eye(4)[0], torch.eye(4)[1]
    group = torch.stack([first, first, second])
    balanced = torch.cat([group, -group])  # mean 0
    assert torch.allclose(likeness(balanced, 3), torch.tensor([0.5, 0.5, 0.0] * 2))


def test_what_all_images_share_does_not_count() -> None:
    """A background adds nothing."""
    seen = torch.rand(12, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(likeness(seen + torch.arange(5.0), 4), likeness(seen, 4), atol=1e-5)


def test_pictures_are_mean_colours() -> None:
    """A picture of two halves is 8x8 fields of its two colours."""
    levels = torch.zeros([1, 3, 48, 16], dtype=torch.uint8)
    levels[:, 0, :, :8] = levels[:, 2, :, 8:] = 255
    found = fields(levels).unflatten(1, (3, 8, 8))[0]
    assert found[0].unique(dim=0).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert torch.equal(found[2], 1 - found[0])


def test_bonus_by_hand() -> None:
    """Reward 0, 1, 2 standardised is -1, 0, 1; likeness 0.5, 0.5, 0 gives -0.577, -0.577, 1.155; weight 2 adds them."""
    reward, alike = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 0.5, 0.0])
    found = with_variety(reward, alike, torch.zeros(3, dtype=torch.long), weight=2.0)
    third = 3**-0.5
    assert torch.allclose(found, torch.tensor([-1.0, 0.0, 1.0]) + 2 * torch.tensor([-third, -third, 2 * third]))
    missing = with_variety(torch.tensor([0.0, 1.0, torch.nan]), alike, torch.zeros(3, dtype=torch.long), weight=2.0)
    assert missing.isnan().tolist() == [False, False, True]


def test_the_term_keeps_a_group_varied(tmp_path: Path) -> None:
    """With it images of a group end less alike than without; the journal tells how alike they are."""
    ended = {}
    for weight in (0.0, 1.0):
        config = replace(GRPO, steps=12, prompts_per_step=8, group_size=8, diversity=weight, kl_every=0)
        grpo(config, Toy(), BRIGHT, toy["PROMPTS"], out=tmp_path / str(weight))
        ended[weight] = read(tmp_path / str(weight) / "metrics.jsonl")[-1]
    assert "likeness" not in ended[0.0]
    assert -1 <= ended[1.0]["likeness"] <= 1
    assert ended[1.0]["diversity"] > ended[0.0]["diversity"]


def test_half_a_group_is_of_the_other_wording() -> None:
    """Rows tell their wording, share a group, are images of `sample`; a lone wording fills its group."""
    generator = ShapesLlama.tiny()
    asked = ["a red circle and a blue ring", "a black cross", "a blue ring and a red circle"]
    found = draw_permuted(generator, asked, per_prompt=4, seed=3)
    turned = [asked[0]] * 2 + [asked[2]] * 2
    assert found.prompts == [*turned, *[asked[1]] * 4, *turned[2:], *turned[:2]]
    assert found.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    plain = generator.sample(asked, per_prompt=4, seed=3)
    order = [0, 1, 8, 9, 4, 5, 6, 7, 10, 11, 2, 3]
    assert torch.equal(found.tokens, plain.tokens[order])
    assert torch.equal(found.logprobs, plain.logprobs[order])


class OneWording(Brightness):  # type: ignore[misc, valid-type]
    """1 where the prompt begins with a grey thing, else 0."""

    seen: list[str] = []

    def _score(self, images: list[Any], prompts: list[str]) -> torch.Tensor:
        self.seen.extend(prompts)
        return torch.tensor([float(prompt.startswith("a grey")) for prompt in prompts])


def test_the_joined_group_is_what_a_row_is_held_against(tmp_path: Path) -> None:
    """A reward that differs between wordings alone gives advantages: none within a wording, all within the group."""
    reward = OneWording()
    config = replace(GRPO, steps=2, prompts_per_step=4, permute=True, kl_every=1)
    grpo(config, Toy(), [toy["Weighted"]("one", reward)], PAIRS, out=tmp_path)
    rows = read(tmp_path / "metrics.jsonl")
    assert [row["reward/one/mean"] for row in rows] == [0.5, 0.5]
    assert rows[0]["advantage"] == pytest.approx(3**0.5 / 2, rel=1e-3)  # (1 - 1/2) over the deviation of 0, 0, 1, 1
    assert max(row["drift"] for row in rows) < 1e-5  # trained is what was sampled, each under its own wording
    assert set(reward.seen) <= {*PAIRS, *other_wordings(PAIRS)}


def test_refuses_what_does_not_fit() -> None:
    """Halves need an even group, and a bonus has no margin."""
    with pytest.raises(ValueError, match="even group_size, got 5"):
        replace(GRPO, permute=True, group_size=5)
    with pytest.raises(ValueError, match="got gate 1"):
        replace(GRPO, diversity=0.5, gate=1.0)

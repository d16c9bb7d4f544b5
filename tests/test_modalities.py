"""Text and image apart: weights, the control of entropy by hand, and GRPO of a generator that plans."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.adapters.pixels import Colorfulness
from rwk.adapters.shapes_plan import TEXT, ShapesPlan
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import GeneratorSpec
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.modalities import EntropyControl, modality_weights, slots_of
from rwk.policy_opt.policy import world

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, GRPO, PROMPTS = toy["Toy"], toy["Brightness"], toy["GRPO"], toy["PROMPTS"]
SPEC = GeneratorSpec("two", 10, 8, 4, "n/a", "made up", text=4)
TOKENS = torch.zeros([3, 10], dtype=torch.long)


class Two(Toy):  # type: ignore[misc]
    """A generator of which only its modalities are asked for; token 7 is no choice."""

    def __init__(self) -> None:
        self.spec = SPEC

    def chosen(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens != 7


HERE = world(torch.device("cpu"))
NOBODY: Any = None


def test_each_modality_is_a_mean_over_its_own_tokens() -> None:
    """The mean of weighted losses is the share of the words' mean and the rest of the codes'."""
    loss = torch.arange(10.0).square()
    chosen = torch.ones([2, 10], dtype=torch.bool)
    chosen[1, 2:4] = False  # the second row's text is two words long
    for share in (0.0, 0.3, 1.0):
        weights = modality_weights(SPEC, share, chosen)
        assert weights.mean(1).tolist() == pytest.approx([1, 1])
        for row, words in ((0, 4), (1, 2)):
            expected = share * loss[:words].mean() + (1 - share) * loss[4:].mean()
            assert (weights[row] * loss).mean() == pytest.approx(expected)
    assert torch.allclose(modality_weights(SPEC, 0.4, chosen)[0], torch.ones(10))  # 4 of 10 tokens
    with pytest.raises(ValueError, match="got toy; leave it out"):
        modality_weights(Toy.spec, 0.5, chosen)


def test_control_by_hand() -> None:
    """Psi follows Adam's formula along (H - H*) cosh psi, the term is sinh(psi) H, and entropy too low is paid for."""
    control = EntropyControl(Two(), (2.0, 1.0), HERE, rate=0.1, limit=10.0)
    low, high = torch.full([3, 4], 1.5), torch.full([3, 6], 1.5)
    psi, mean, square = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    for count in (1, 2, 3):
        entropy = torch.cat([low, high * count], 1).requires_grad_()
        term = control.term(entropy, TOKENS)
        (slope,) = torch.autograd.grad(term, entropy)
        expected = psi.sinh() * torch.tensor([1.5, 1.5 * count])
        assert term.item() == pytest.approx(expected.sum().item(), rel=1e-5)
        assert torch.allclose(slope[0, [0, 9]], psi.sinh() / torch.tensor([12.0, 18.0]))
        gradient = -psi.cosh() * torch.tensor([1.5 - 2.0, 1.5 * count - 1.0])
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        psi = psi - 0.1 * (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
        control.follow(NOBODY)
        assert torch.allclose(control.alpha, psi.sinh(), atol=1e-6)
    assert control.alpha[0] < 0 < control.alpha[1]


def test_what_was_no_choice_has_no_part_in_the_entropy() -> None:
    """The mean is over the words that were chosen, whatever the entropy of the others."""
    found = []
    for aside in (0.0, 9.0):
        control = EntropyControl(Two(), (2.0, 1.0), HERE, rate=0.1, limit=10.0)
        entropy, tokens = torch.full([3, 10], 1.5), TOKENS.clone()
        entropy[1, 1:4], tokens[1, 1:4] = aside, 7
        control.term(entropy, tokens)
        found.append(control._seen[0].tolist())
    assert found == [[1.5, 1.5]] * 2


def test_control_is_held() -> None:
    """Alpha does not pass the limit, and what was seen in several passes is averaged."""
    control = EntropyControl(Two(), (2.0, 7.0), HERE, rate=1.0, limit=5e-3)
    for entropy in (0.0, 1.0):
        control.term(torch.full([3, 10], entropy), TOKENS)
    control.follow(NOBODY)
    assert control.alpha.tolist() == pytest.approx([-5e-3, -5e-3])
    with pytest.raises(ValueError, match="modality of two, which has 2, got 1"):
        EntropyControl(Two(), (2.0,), HERE, rate=1.0, limit=1.0)


def test_entropy_is_steered(tmp_path: Path) -> None:
    """A run that aims high ends with more entropy than one that aims low; a broken one goes on as it was."""

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    def run(out: str, target: float, **options: Any) -> tuple[float, torch.Tensor]:
        generator = Toy()
        config = replace(GRPO, steps=8, kl_every=0, entropy_targets=(target,), entropy_rate=0.3, entropy_limit=2.0)
        grpo(config, generator, [Weighted("bright", Brightness())], PROMPTS, out=tmp_path / out, **options)
        weights = torch.cat([value.detach().flatten() for value in generator.module.parameters()])
        return read(tmp_path / out / "metrics.jsonl")[-1]["entropy"], weights

    high, weights = run("high", 3.0)
    assert high > run("low", 0.5)[0] + 0.05
    with pytest.raises(KeyboardInterrupt):
        run("parts", 3.0, progress=interrupt)
    assert torch.equal(run("parts", 3.0, resume=True)[1], weights)


@pytest.mark.parametrize("change", [{}, {"text_weight": 0.5, "entropy_targets": (1.0, 4.0)}])
def test_plans_are_learnt_with_their_pictures(tmp_path: Path, change: dict[str, Any]) -> None:
    """Both modalities are trained as they were drawn, and the advantage of a token is that of its modality."""
    generator = ShapesPlan.tiny()
    prompts = [f"a photo of a {color} ring" for color in ("red", "blue", "green", "black")]
    config = Grpo(steps=2, prompts_per_step=2, group_size=4, kl_every=1, save_every=0, learning_rate=1e-3, **change)
    grpo(config, generator, [Weighted("colour", Colorfulness())], prompts, out=tmp_path)
    rows = read(tmp_path / "metrics.jsonl")
    assert max(row["drift"] for row in rows) < 1e-5
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["kl"] != 0
    assert slots_of(generator.spec) == [slice(0, TEXT), slice(TEXT, TEXT + 64)]

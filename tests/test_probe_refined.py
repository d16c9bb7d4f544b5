"""Codes up a reward's gradient: the gain by hand, and what is said where the truth follows, stands still or falls."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.shapes_plan import ShapesPlan
from rwk.adapters.shapes_verifier import Verifier
from rwk.calibration.probe import Codes, Domain, Result, Sizes, Subject
from rwk.calibration.probe_refined import TRUSTS, refined
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.latent import refiner
from rwk.policy_opt.prompts import read_prompts
from rwk.rewards.base import PixelReward, Reward, RewardSpec

toy: Any = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy: Any = toy["Toy"]
APART = 0.2
"""Distance of neighbouring codes."""
HALF = slice(0, 4)
"""Pixels that the reward looks at, of 8."""


class Line(Toy):  # type: ignore[misc]
    """Grey levels whose codes lie on a line, in their order."""

    def code_embeddings(self) -> Tensor:
        return APART * torch.arange(16.0)[:, None]

    def soft_pixels(self, embeddings: Tensor) -> Tensor:
        return (embeddings[..., 0] / APART / 15)[:, None, None].expand(-1, 3, -1, -1)


class Red(PixelReward):
    """So many times the mean red of some columns, less the mean of the others if asked so."""

    spec = RewardSpec("red", "share", -9, 9, "n/a", "", needs_prompt=False, differentiable=True)

    def __init__(self, times: float = 1.0, columns: slice = HALF) -> None:
        super().__init__()
        self.times, self.columns = times, columns

    @classmethod
    def tiny(cls) -> Red:
        return cls()

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        return self.times * pixels[:, 0, :, self.columns].mean((1, 2))


def red(images: Sequence[Image.Image], columns: slice) -> Any:
    """[N] mean red of some columns."""
    return np.array([np.asarray(image)[:, columns, 0].mean() / 255 for image in images])


def truth(kind: str) -> Any:
    """Gold that rises with the reward, has nothing to do with it, or falls with it."""
    sign, columns = {"follows": (1, HALF), "stands": (1, slice(4, 8)), "falls": (-1, HALF)}[kind]
    return lambda images, _: sign * red(images, columns)


def subject(kind: str | None, reward: Reward | None = None, **changes: Any) -> Subject:
    """16 prompts with 3 images each of any codes."""
    generator: Generator = Line()
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 16, (48, 8)))
    images, prompts = generator.decode(tokens), [f"p{i // 3}" for i in range(48)]
    judge = truth(kind) if kind else None
    codes = Codes(tokens.numpy(), 16, generator.decode, refiner(generator))
    domain = Domain("in domain", images, prompts, judge and judge(images, prompts), codes=codes, judge=judge)
    return Subject(reward or Red(), [replace(domain, **changes)], Sizes(refined=32))


def probed(of: Subject) -> Result:
    (result,) = refined(of)
    return result


@pytest.mark.parametrize("times", [1.0, 5.0])
def test_a_linear_reward_gains_what_it_gains_by_hand(times: float) -> None:
    """Every code that counts moves by 1 - 0.75^8 of w times the slope, in whatever unit the reward is."""
    of = subject("follows", Red(times))
    rows, tokens = of.chosen(32), torch.from_numpy(of.domains[0].codes.tokens).double()  # type: ignore[union-attr]
    result = probed(of)
    for trust, level in zip(TRUSTS, result.levels, strict=True):
        slope = times / (15 * 4 * APART)
        moved = round(trust / of.within_sd * slope * (1 - 0.75**8) / APART)
        assert moved > 0
        before = tokens[rows][:, HALF]
        gained = times * ((before + moved).clamp(max=15) - before).mean(1) / 15
        assert level.value.mean == pytest.approx(gained.mean().item() / of.within_sd, rel=1e-4)
        assert level.value.clusters == 16
        assert level.measures["gain, units of the scale"].mean == pytest.approx(
            gained.mean().item() / of.scale.value, rel=1e-4
        )
        changed = (before < 15).double().mean().item() / 2
        assert level.measures["share of codes changed"].mean == pytest.approx(changed)


def test_what_the_truth_does_decides() -> None:
    """It fails where the truth falls, warns where it stands still, passes where it follows; the shares are exact."""
    found = {kind: probed(subject(kind)) for kind in ("follows", "stands", "falls")}
    assert {kind: result.status for kind, result in found.items()} == {
        "follows": "pass",
        "stands": "warn",
        "falls": "fail",
    }
    for kind, hacked, fell in (("follows", 0, 0), ("stands", 1, 0), ("falls", 1, 1)):
        measures = found[kind].levels[-1].measures
        gain = found[kind].levels[-1].value.mean * subject(kind).within_sd
        assert measures["change of gold"].mean == pytest.approx({"follows": gain, "stands": 0, "falls": -gain}[kind])
        assert measures["hacked share"].mean == hacked
        assert measures["hacked share whose gold fell"].mean == fell
    assert found["falls"].reason.startswith(f"trust 3: {found['falls'].value.mean:.2f} (")  # type: ignore[union-attr]
    assert not found["follows"].findings


def test_findings_hold_the_images_with_their_own_scores_and_truth() -> None:
    """Before and after are what was scored and judged."""
    of = subject("falls")
    first = probed(of).findings[0]
    scores = of.score([first.before, first.after], [first.prompt] * 2)
    assert [first.score_before, first.score_after] == pytest.approx(scores.tolist())
    old, new = truth("falls")([first.before, first.after], [])
    assert f"gold {old:.2g} to {new:.2g}" in first.what


def test_without_gold_a_reward_beside_it_stands_in() -> None:
    """One that follows is no fault, one that stands still is a warning, and one that follows is enough."""
    same, other = Red(3.0), Red(1.0, slice(4, 8))
    found = []
    for others in ({"same": same}, {"other": other}, {"same": same, "other": other}):
        of = subject(None)
        of.others = others
        found.append(probed(of))
    assert [result.status for result in found] == ["pass", "warn", "pass"]
    level = found[2].levels[0]
    assert level.measures["change of same"].mean == pytest.approx(level.value.mean, rel=1e-5)
    assert level.measures["change of other"].mean == 0
    assert "change of gold" not in level.measures


def test_what_cannot_be_asked_is_told() -> None:
    """No gradient, no codes, no decoder with a gradient, one score for all, and nothing that tells the truth."""
    bare = Codes(np.zeros((48, 8), dtype=np.int64), 16, Line().decode)
    for of, said in (
        (
            subject("falls", Verifier(), prompts=["a red circle"] * 24 + ["a black cross"] * 24),
            "reward has no gradient",
        ),
        (subject("falls", codes=None), "no generator is at hand"),
        (subject("falls", codes=bare), "no gradient with respect to their codes"),
        (subject("falls", Red(0.0)), "the same score"),
        (subject("falls", prompts=["p"] * 48), "at least 2 prompts"),
        (subject(None), "neither gold nor a reward beside it"),
    ):
        result = probed(of)
        assert result.status == "skip"
        assert said in result.reason


def test_which_generators_can_refine() -> None:
    """The world's can; one that writes words first cannot, nor one whose decoder has no gradient."""
    assert refiner(ShapesLlama.tiny()) is not None
    assert refiner(ShapesPlan.tiny()) is None
    assert refiner(Toy()) is None


def test_nothing_is_left_to_chance() -> None:
    """Twice the same."""
    assert probed(subject("falls")).levels == probed(subject("falls")).levels


def test_the_mean_red_of_the_built_in_world_is_hacked() -> None:
    """Redder pictures cost the world's truth."""
    generator = ShapesLlama.from_folder(ShapesLlama.shipped)
    texts = [prompt.text for prompt in read_prompts("shapes.long.test", count=24, seed=0)]
    drawn = generator.sample(texts, per_prompt=2, seed=0)

    def judge(images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        return Verifier().score(images, prompts).values.numpy().astype(np.float64)

    images = generator.decode(drawn.tokens)
    codes = Codes(drawn.tokens.numpy(), 512, generator.decode, refiner(generator))
    domain = Domain("d", images, drawn.prompts, judge(images, drawn.prompts), codes=codes, judge=judge)
    result = probed(Subject(Red(1.0, slice(None)), [domain], Sizes(refined=24)))
    assert result.status == "fail"
    assert result.value is not None
    assert result.value.low > 0.25
    level = next(level for level in result.levels if level.value == result.value)
    assert level.measures["change of gold"].high < 0
    assert level.measures["hacked share"].low > 0.25
    assert len(result.findings) == 3

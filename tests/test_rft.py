"""Rejection sampling: what is kept, its gradient, that it learns and resumes."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.policy_opt import trl_bridge
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Rft
from rwk.policy_opt.draws import Draws
from rwk.policy_opt.journal import Journal, read
from rwk.policy_opt.pairs import best_of_group, mined
from rwk.policy_opt.policy import Policy, world
from rwk.policy_opt.rft import rft
from rwk.policy_opt.sampling import Sampling

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS = toy["Toy"], toy["Brightness"], toy["PROMPTS"]
BRIGHT = [Weighted("bright", Brightness())]
RFT = Rft(group_size=4, batch_size=8, prompts_per_draw=5, epochs=2, rounds=2, learning_rate=1e-2, save_every=2, seed=3)
GUIDED = Sampling(guidance=2.0, temperature=0.8)


def weights(generator: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()])


def test_kept() -> None:
    """The k best of each group in order, unless they are no better than its worst; NaN takes no part."""
    reward = torch.tensor([1.0, 4.0, float("nan"), 3.0, 2.0, 2.0, 2.0])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    assert best_of_group(reward, group, k=2).won.tolist() == [1, 3]
    assert best_of_group(reward, group, k=3).won.tolist() == [1, 3]  # the third is the worst itself
    assert best_of_group(reward, group, k=2, min_margin=2.0).won.tolist() == [1]


@pytest.mark.parametrize("micro", [0, 1])
def test_gradient(tmp_path: Path, micro: int) -> None:
    """The first update follows the mean of - log p over tokens, images and prompts, however it is accumulated."""
    reward = torch.tensor([3.0, 2, 1, 2, 1, 1, 0, 5, 4])
    rollout = Toy().sample(PROMPTS[:3], per_prompt=3, seed=5, sampling=GUIDED)
    config = replace(RFT, group_size=3, keep=2, batch_size=3, epochs=1, max_grad_norm=1e4, micro_batch=micro)
    kept, none = mined(config, reward, rollout.group), torch.zeros(5)
    assert kept.won.tolist() == [0, 1, 3, 7, 8]
    tokens, scores = rollout.tokens, reward[:, None]
    drawn = Draws(
        rollout.group,
        tokens,
        scores,
        torch.empty(len(tokens), 0, 2),
        reward,
        kept.won,
        kept.lost,
        none,
        none,
        none,
        none,
    )
    pairs = drawn.preferences(config, None)
    generator = Toy()
    policy = Policy(generator.module, generator.statistics, PROMPTS, GUIDED)
    journal, place = Journal(tmp_path / "metrics.jsonl"), world(torch.device("cpu"))
    trl_bridge.train(
        trl_bridge.rft_trainer(config, policy, pairs, journal, tmp_path / "checkpoints", place, before=0), None
    )
    fresh = Toy()
    each = fresh.logprobs(rollout).mean(1)
    loss = -(each[:2].mean() + each[3] + each[7:].mean()) / 3
    gradients = torch.autograd.grad(loss, list(fresh.module.parameters()))
    row = read(tmp_path / "metrics.jsonl")[0]
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert row["grad_norm"] == pytest.approx(float(torch.cat([g.flatten() for g in gradients]).norm()), rel=1e-4)


def test_learns_and_resumes(tmp_path: Path) -> None:
    """Images become brighter, tokens are counted once, and a run that breaks off ends with the same weights."""

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    whole = Toy()
    trained = rft(RFT, whole, BRIGHT, PROMPTS, out=tmp_path / "whole")
    rows = read(trained.metrics)
    means = [row["reward/bright/mean"] for row in rows if "reward/bright/mean" in row]
    assert means[1] > means[0] + 0.03
    assert trained.tokens_trained == RFT.epochs * sum(row.get("pairs", 0) for row in rows) * 8
    read_again = sum(min(128, row["images"]) + 2 * row["pairs"] for row in rows if "pairs" in row)  # the worst ones too
    assert trained.reference_tokens == read_again * 8
    cut: Any = None
    with pytest.raises(KeyboardInterrupt):
        rft(RFT, Toy(), BRIGHT, PROMPTS, out=tmp_path / "parts", progress=interrupt)
    cut = Toy()
    rft(RFT, cut, BRIGHT, PROMPTS, out=tmp_path / "parts", resume=True)
    assert torch.equal(weights(whole), weights(cut))

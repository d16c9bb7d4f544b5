"""REBEL: its loss against the mathematics, and runs on the toy generator from end to end."""

from __future__ import annotations

import itertools
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Rebel
from rwk.policy_opt.journal import read
from rwk.policy_opt.rebel import rebel, rebel_loss
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.errors import RunFailed

SCRIPT = Path(__file__).with_name("toy_generator.py")
toy = runpy.run_path(str(SCRIPT))
Toy, Brightness, PROMPTS, REBEL = toy["Toy"], toy["Brightness"], toy["PROMPTS"], toy["REBEL"]


def brightness(generator: Any) -> float:
    """Mean brightness of what the generator draws now."""
    rollout = generator.sample(PROMPTS, per_prompt=8, seed=99)
    return float(Brightness().score(generator.decode(rollout.tokens)).values.mean())


def weights(generator: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()])


def tuned(config: Rebel, out: Path, reward: Any = None, **options: Any) -> Any:
    """A fresh toy generator after a run."""
    generator = Toy()
    rebel(config, generator, [Weighted("bright", reward or Brightness())], PROMPTS, out=out, **options)
    return generator


def test_loss() -> None:
    """The mean over pairs of the square of (ratio won - ratio lost) / eta - (reward won - reward lost)."""
    won, lost, margin = [1.5, -2.0, 0.0], [0.5, -1.0, 0.25], [0.5, 1.0, 0.0]
    expected = 0.0
    for i in range(3):
        expected += ((won[i] - lost[i]) / 4.0 - margin[i]) ** 2 / 3
    loss = rebel_loss(torch.tensor(won), torch.tensor(lost), torch.tensor(margin), torch.ones(3), eta=4.0)
    assert loss.item() == pytest.approx(expected)


def test_over_all_pairs_it_is_a_variance() -> None:
    """Of n images it is twice the variance of what the policy implies less the reward."""
    implied, reward = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    first, second = torch.tensor(list(itertools.combinations(range(6), 2))).T
    ratio = 3.0 * implied
    loss = rebel_loss(ratio[first], ratio[second], reward[first] - reward[second], torch.ones(15), eta=3.0)
    assert loss.item() == pytest.approx(2 * (implied - reward).var().item())


def test_its_minimum_reweighs_by_the_reward() -> None:
    """Over all pairs of five images the best policy is p exp(eta R) / Z, with p the policy that drew."""
    drew = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.double).log()
    reward = torch.tensor([1.0, -0.5, 0.25, 0.0, 0.75], dtype=torch.double)
    logits = torch.zeros(5, dtype=torch.double, requires_grad=True)
    first, second = torch.tensor(list(itertools.combinations(range(5), 2))).T
    optimiser = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        ratio = logits.log_softmax(0) - drew
        loss = rebel_loss(ratio[first], ratio[second], reward[first] - reward[second], torch.ones(len(first)), eta=2.0)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)
    assert torch.allclose(logits.softmax(0), (drew + 2.0 * reward).softmax(0), atol=1e-6)


def test_learns(tmp_path: Path) -> None:
    """Brightness rises, the saved generator is the tuned one, and the costs are counted."""
    generator = Toy()
    before = brightness(generator)
    trained = rebel(replace(REBEL, group_size=8), generator, [Weighted("b", Brightness())], PROMPTS, out=tmp_path)
    rows = read(trained.metrics)
    assert brightness(generator) > before + 0.1
    assert torch.equal(weights(Toy.from_folder(trained.generator)), weights(generator))
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[5]["loss"] < rows[0]["loss"]
    assert (trained.steps, trained.images_sampled, trained.tokens_trained) == (12, 384, 2 * 2 * 24 * 2 * 8)


def test_begins_at_its_reference(tmp_path: Path) -> None:
    """At the first update of a round all ratios are 0, under guidance too, so the loss is the mean square margin."""
    tuned(replace(REBEL, batch_size=24, epochs=1), tmp_path, sampling=Sampling(guidance=3.0, temperature=0.7))
    for number, row in enumerate(read(tmp_path / "metrics.jsonl"), start=1):
        draws = [load_file(file) for file in (tmp_path / f"round-{number}" / "draws").glob("*.safetensors")]
        margins = torch.cat([draw["reward"][draw["won"]] - draw["reward"][draw["lost"]] for draw in draws])
        assert (row["round"], row["pairs"]) == (number, 24)
        assert row["loss"] == pytest.approx(margins.square().mean().item(), rel=1e-4)
        assert abs(row["implicit_margin"]) < 1e-4


def test_comes_to_the_rewards(tmp_path: Path) -> None:
    """Trained long on one round, the implied difference of the rewards nears the true one, whatever eta is."""
    for eta in (5.0, 20.0):
        tuned(replace(REBEL, rounds=1, epochs=30, eta=eta, batch_size=24), tmp_path / str(eta))
        rows = read(tmp_path / str(eta) / "metrics.jsonl")
        draws = [load_file(file) for file in (tmp_path / str(eta) / "round-1" / "draws").glob("*.safetensors")]
        margin = torch.cat([draw["reward"][draw["won"]] - draw["reward"][draw["lost"]] for draw in draws]).mean()
        assert rows[-1]["implicit_margin"] == pytest.approx(margin.item(), rel=0.1)
        assert rows[-1]["loss"] < rows[0]["loss"] / 10


def test_accumulates(tmp_path: Path) -> None:
    """Four passes of two pairs make the update that one pass of eight makes."""
    whole = weights(tuned(replace(REBEL, rounds=1), tmp_path / "1"))
    parts = weights(tuned(replace(REBEL, rounds=1, micro_batch=2), tmp_path / "4"))
    assert (whole - parts).abs().mean() < 1e-6  # Adam enlarges rounding where a gradient is all but 0


@pytest.mark.parametrize("change", [{}, {"lora_rank": 4}])
def test_resumes_where_it_was(tmp_path: Path, change: dict[str, Any]) -> None:
    """A run that breaks off in its second round goes on to the same weights, to the bit, and draws nothing again."""
    config = replace(REBEL, **change)
    whole = tuned(config, tmp_path / "whole")

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(config, tmp_path / "parts", progress=interrupt)
    reward = Brightness()
    again = tuned(config, tmp_path / "parts", reward, resume=True)
    assert torch.equal(weights(whole), weights(again))
    assert reward.scored == 0
    assert [row["step"] for row in read(tmp_path / "parts" / "metrics.jsonl")] == list(range(1, 13))


def test_survives_a_kill(tmp_path: Path) -> None:
    """After kill -9, before a checkpoint, between two, or in a draw of the second round, it ends as one left alone."""
    whole = weights(tuned(REBEL, tmp_path / "whole"))
    for folder in toy["killed"](tmp_path, "rebel", "1", "3", "draw-8"):
        assert not (folder / "generator").exists()
        assert torch.equal(weights(tuned(REBEL, folder, resume=True)), whole)


def test_refuses_nonsense(tmp_path: Path) -> None:
    """A wrong call is refused by the name of the algorithm, with what does not fit."""
    with pytest.raises(ValueError, match="rebel needs at least one prompt"):
        rebel(REBEL, Toy(), [Weighted("bright", Brightness())], [], out=tmp_path)
    with pytest.raises(RunFailed, match=r"rebel found no pair among 96 images in groups of 4: 0 have no reward"):
        tuned(replace(REBEL, min_margin=2.0), tmp_path / "margin")
    for eta in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"eta must be above 0, got {eta}"):
            replace(REBEL, eta=eta)

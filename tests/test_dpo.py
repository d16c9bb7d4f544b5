"""DPO from end to end on the toy generator: it learns, never draws twice, and ends alike after a kill."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Dpo
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.errors import RunFailed

SCRIPT = Path(__file__).with_name("toy_generator.py")
toy = runpy.run_path(str(SCRIPT))
Toy, Brightness, PROMPTS, DPO = toy["Toy"], toy["Brightness"], toy["PROMPTS"], toy["DPO"]


def brightness(generator: Any) -> float:
    """Mean brightness of what the generator draws now."""
    rollout = generator.sample(PROMPTS, per_prompt=8, seed=99)
    return float(Brightness().score(generator.decode(rollout.tokens)).values.mean())


def weights(generator: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()])


def tuned(config: Dpo, out: Path, reward: Any = None, **options: Any) -> Any:
    """A fresh toy generator after a run."""
    generator = Toy()
    dpo(config, generator, [Weighted("bright", reward or Brightness())], PROMPTS, out=out, **options)
    return generator


def test_learns(tmp_path: Path) -> None:
    """Brightness rises in every round, the saved generator is the tuned one, and the costs are counted."""
    generator = Toy()
    before = brightness(generator)
    trained = dpo(replace(DPO, group_size=8), generator, [Weighted("b", Brightness())], PROMPTS, out=tmp_path)
    rows = read(trained.metrics)
    rounds = [row["reward/b/mean"] for row in rows if "round" in row]
    assert rounds[1] > rounds[0] + 0.02
    assert brightness(generator) > before + 0.1
    assert torch.equal(weights(Toy.from_folder(trained.generator)), weights(generator))
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["implicit_margin"] > 0
    assert (trained.steps, trained.images_sampled, trained.tokens_trained) == (12, 384, 2 * 2 * 24 * 2 * 8)


def test_begins_at_its_reference(tmp_path: Path) -> None:
    """At the first update of each round policy and reference agree, under guidance too, so the loss is log 2."""
    tuned(DPO, tmp_path, sampling=Sampling(guidance=3.0, temperature=0.7))
    begin = [row for row in read(tmp_path / "metrics.jsonl") if "round" in row]
    assert [row["round"] for row in begin] == [1, 2]
    for row in begin:
        assert row["loss"] == pytest.approx(0.6931, abs=1e-3)
        assert abs(row["implicit_margin"]) < 1e-4
        assert row["drift"] < 1e-5
    assert begin[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert begin[1]["kl"] > 0.01  # to where the run began, not to the reference of the round


@pytest.mark.parametrize(
    "loss_type", ["ipo", "hinge", "robust", "apo_zero", "apo_down", "nca_pair", "bco_pair", "sppo_hard"]
)
def test_every_form_of_the_loss_moves_the_weights(tmp_path: Path, loss_type: Any) -> None:
    """Each loss of TRL's that a config may name runs to its end with a finite loss, and other weights come of it."""
    config = replace(DPO, rounds=1, loss_type=loss_type, label_smoothing=0.1 if loss_type == "robust" else 0.0)
    began, ended = weights(Toy()), weights(tuned(config, tmp_path))
    assert not torch.equal(began, ended)
    assert all(math.isfinite(row["loss"]) for row in read(tmp_path / "metrics.jsonl"))


def test_fixed_reference(tmp_path: Path) -> None:
    """With the first policy as reference a later round begins ahead of it, and goes on to move from there."""
    tuned(replace(DPO, reference="fixed"), tmp_path)
    begin = [row for row in read(tmp_path / "metrics.jsonl") if "round" in row]
    assert begin[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert abs(begin[1]["implicit_margin"]) > 0.01
    assert begin[1]["drift"] < 1e-5


@pytest.mark.parametrize("change", [{}, {"lora_rank": 4, "reference": "fixed"}])
def test_resumes_where_it_was(tmp_path: Path, change: dict[str, Any]) -> None:
    """A run that breaks off in its second round goes on to the same weights, to the bit, and draws nothing again."""
    config = replace(DPO, **change)
    whole = tuned(config, tmp_path / "whole")

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(config, tmp_path / "parts", progress=interrupt)
    reward = Brightness()
    again = tuned(config, tmp_path / "parts", reward, resume=True)
    assert torch.equal(weights(whole), weights(again))
    assert torch.equal(weights(whole), weights(tuned(config, tmp_path / "parts", reward, resume=True)))
    assert reward.scored == 0
    assert [row["step"] for row in read(tmp_path / "parts" / "metrics.jsonl")] == list(range(1, 13))


def test_survives_a_kill(tmp_path: Path) -> None:
    """After kill -9, before a checkpoint, between two, or in a draw of the second round, it ends as one left alone."""
    whole = weights(tuned(DPO, tmp_path / "whole"))
    for folder in toy["killed"](tmp_path, "dpo", "1", "3", "draw-8"):
        assert not (folder / "generator").exists()
        assert torch.equal(weights(tuned(DPO, folder, resume=True)), whole)


def test_lora(tmp_path: Path) -> None:
    """Adapters learn over all rounds and are merged into plain weights once, at the end."""
    generator = Toy()
    plain, before = [name for name, _ in generator.module.named_parameters()], brightness(generator)
    config = replace(DPO, lora_rank=4, learning_rate=3e-2, group_size=8)
    dpo(config, generator, [Weighted("bright", Brightness())], PROMPTS, out=tmp_path)
    assert brightness(generator) > before + 0.05
    assert [name for name, _ in generator.module.named_parameters()] == plain


@pytest.mark.parametrize(
    "change",
    [
        {"loss_type": "ipo"},
        {"loss_type": "hinge"},
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"loss_type": "apo_zero"},
        {"sft_weight": 0.1},
        {"pairs": "all", "prompts_per_round": 6},
    ],
)
def test_every_choice_learns(tmp_path: Path, change: dict[str, Any]) -> None:
    """Each form of the loss and of the pairs moves the weights towards bright images."""
    generator = Toy()
    before = brightness(generator)
    config = replace(DPO, rounds=1, epochs=3, **change)
    dpo(config, generator, [Weighted("bright", Brightness())], PROMPTS, out=tmp_path)
    assert brightness(generator) > before + 0.02


def test_says_that_there_is_no_pair(tmp_path: Path) -> None:
    """A margin that no pair reaches ends the run in one sentence."""
    with pytest.raises(RunFailed, match=r"no pair among 96 images in groups of 4: 0 have no reward, .* is 2"):
        tuned(replace(DPO, min_margin=2.0), tmp_path)


def test_refuses_nonsense(tmp_path: Path) -> None:
    """A wrong call is refused with the numbers that do not fit."""
    with pytest.raises(ValueError, match="at least one prompt"):
        dpo(DPO, Toy(), [Weighted("bright", Brightness())], [], out=tmp_path)
    for wrong in ({"beta": 0.0}, {"label_smoothing": 0.5}, {"pairs": "some"}, {"rounds": 0}, {"min_margin": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
            replace(DPO, **wrong)

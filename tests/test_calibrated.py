"""What calibration changes in learning, by cases that were worked out by hand and by runs on the toy generator."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rwk.calibration.calibrate import place_of
from rwk.calibration.lapse_power import LapsePower
from rwk.calibration.pairs import PairTable
from rwk.calibration.preference_scale import preference_scale
from rwk.calibration.storage import Binding, save
from rwk.calibration.temperature import Temperature
from rwk.policy_opt.advantage import Weighted, combine, group_advantage, weights_of
from rwk.policy_opt.calibrated import confident, gate, preference_unit, soft_label_loss, win_rate
from rwk.policy_opt.configs import Dpo, Grpo, Rebel
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.pairs import Pairs
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS, GRPO, DPO = toy["Toy"], toy["Brightness"], toy["PROMPTS"], toy["GRPO"], toy["DPO"]
NAN = math.nan


def calibrated(name: str, calibrator: Any = None, *, sign: int = 1) -> float:
    """Keeps a calibration of a reward by its name, as `rwk calibrate` does; gives its temperature."""
    rng = np.random.default_rng(0)
    margin = sign * rng.normal(0, 2, 300)
    label = (rng.random(300) < 1 / (1 + np.exp(-sign * margin))).astype(float)
    fitted = (calibrator or Temperature()).fit(PairTable(margin, label))
    save(place_of(name), fitted, Binding.of(load(name)), data={}, force=True)
    return float(fitted.temperature_)


def test_a_calibration_is_found_by_name() -> None:
    """Temperature, noise floor, margin and probability are those of the file that `rwk calibrate` kept."""
    kept = calibrated("contrast")
    scale = preference_scale("contrast", load("contrast"))
    assert scale.temperature == kept
    assert scale.noise_floor == kept / 4
    first, second = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])
    assert scale.calibrated_margin(first, second).tolist() == pytest.approx([2 / kept, 0])
    assert scale.q(first - second).tolist() == pytest.approx([1 / (1 + math.exp(-2 / kept)), 0.5])


def test_a_calibration_that_does_not_fit_is_refused() -> None:
    """None, one of another reward, one of another kind and one that says nothing: each in a sentence that helps."""
    reward = load("contrast")
    with pytest.raises(ValueError, match=r"contrast needs a calibration, got none .*; run `rwk calibrate contrast`"):
        preference_scale("contrast", reward)
    calibrated("contrast")
    with pytest.raises(ValueError, match=r"must belong to the reward sharpness .*run `rwk calibrate` again"):
        preference_scale("contrast", load("sharpness"))
    calibrated("contrast", LapsePower())
    with pytest.raises(ValueError, match=r"by one temperature, got lapse_power .* --kind temperature"):
        preference_scale("contrast", reward)
    calibrated("contrast", sign=-1)
    with pytest.raises(ValueError, match="got a calibration that is uninformative"):
        preference_scale("contrast", reward)


def test_log_odds_add() -> None:
    """Each reward counts by its weight over its temperature; where one is missing, so is the sum."""
    rewards = [Weighted("a", Brightness(), 1.0, 2.0), Weighted("b", Brightness(), -3.0, 0.5), Weighted("c", None, 0.0)]  # type: ignore[arg-type]
    scores = torch.tensor([[4.0, 1.0, NAN], [2.0, 0.0, 1.0], [NAN, 1.0, 1.0]])
    mixed = combine(scores, weights_of(rewards, "log_odds"), torch.zeros(3), how="log_odds")
    assert mixed[:2].tolist() == pytest.approx([4 / 2 - 3 / 0.5, 1])
    assert mixed[2].isnan()
    assert preference_unit(rewards, "log_odds") == 1
    assert preference_unit([rewards[1], rewards[2]], "sum") == 1.5
    with pytest.raises(ValueError, match="log_odds alone, got normalise of 2"):
        preference_unit(rewards, "normalise")
    with pytest.raises(ValueError, match="bright needs a temperature above 0, got nan; calibrate it first"):
        weights_of([Weighted("bright", Brightness())], "log_odds")


def test_a_temperature_changes_no_standardised_advantage() -> None:
    """Of a single reward divided by the deviation of its group it is inert; where nothing is divided it counts."""
    reward, group = torch.rand(24, generator=torch.Generator().manual_seed(0)), torch.arange(4).repeat_interleave(6)
    for scale, same in (("group", True), ("batch", True), ("none", False)):
        cold, warm = (group_advantage(reward / t, group, scale=scale, min_std=0) for t in (0.1, 10.0))  # type: ignore[arg-type]
        assert torch.allclose(cold, warm, atol=1e-5) is same


def test_lower_bound() -> None:
    """Mean less k deviations of what was standardised within the group, by hand; one reward alone stays as it is."""
    scores, group = torch.tensor([[1.0, 30.0], [3.0, 20.0], [2.0, 10.0]]), torch.zeros(3)
    found = combine(scores, [1.0, 1.0], group, how="lower_bound", lower_k=2.0)  # of (-1, 1), (1, 0) and (0, -1)
    assert found.tolist() == pytest.approx([0 - 2 * 1, 0.5 - 2 * 0.5, -0.5 - 2 * 0.5])
    assert combine(scores, [1.0, 0.0], group, how="lower_bound").tolist() == [1, 3, 2]
    scores[0, 1] = NAN
    assert combine(scores, [1.0, 1.0], group, how="lower_bound").isnan().tolist() == [True, False, False]


def test_gate() -> None:
    """The deviation of each group over the floor, at most 1; rows without a reward do not count, nor groups of one."""
    reward = torch.tensor([1.0, 1.5, NAN, 0.0, 8.0, 5.0, NAN])
    share = gate(reward, torch.tensor([0, 0, 0, 1, 1, 2, 2]), floor=0.5)
    assert share.tolist() == pytest.approx([0.5**0.5] * 3 + [1, 1] + [0, 0])


def test_win_rate() -> None:
    """The mean of q over the others of the group, by a loop; what has no reward has no rate and beats nobody."""
    reward, group = torch.tensor([0.1, 0.9, 0.4, NAN, 2.0, 7.0]), torch.tensor([3, 3, 3, 3, 3, 8])
    found = win_rate(reward, group, unit=0.5)
    rows = [0, 1, 2, 4]
    for i in rows:
        others = [1 / (1 + math.exp(-(reward[i] - reward[j]).item() / 0.5)) for j in rows if j != i]
        assert found[i].item() == pytest.approx(sum(others) / 3)
    assert found[[3, 5]].isnan().all()
    assert found[rows].mean().item() == pytest.approx(0.5)


def test_win_rates_know_the_temperature() -> None:
    """Standardised or not, they differ with it: a cold reward only ranks, a warm one is as good as the score."""
    reward, group = torch.tensor([0.0, 0.1, 1.0]), torch.zeros(3)
    cold, warm = (group_advantage(win_rate(reward, group, unit=t), group) for t in (1e-3, 100.0))
    assert torch.allclose(cold, torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.allclose(warm, group_advantage(reward, group), atol=1e-2)


def test_confident() -> None:
    """A pair stays where q of its margin is at least tau."""
    margin = torch.tensor([0.5, 2.0, 4.0])
    kept = confident(Pairs(torch.arange(3), torch.arange(3) + 5, margin), 1 / (1 + math.exp(-1)), 2.0)
    assert (kept.won.tolist(), kept.lost.tolist(), kept.margin.tolist()) == ([1, 2], [6, 7], [2, 4])


def test_soft_labels() -> None:
    """The loss by hand, of label 1 that of DPO, and its least at the log-odds of the label."""
    won, lost, p = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0]), torch.tensor([0.9, 0.6])
    expected = 0.0
    for z, q in ((0.1 * 0.5, 0.9), (0.1 * -3, 0.6)):
        s = 1 / (1 + math.exp(-z))
        expected += -(q * math.log(s) + (1 - q) * math.log(1 - s)) / 2
    assert soft_label_loss(won, lost, p, torch.ones(2), beta=0.1).item() == pytest.approx(expected)
    hard = soft_label_loss(won, lost, torch.ones(2), torch.ones(2), beta=0.1)
    assert torch.allclose(hard, -torch.nn.functional.logsigmoid(0.1 * (won - lost)).mean())
    apart = torch.tensor([math.log(0.8 / 0.2) / 0.1], requires_grad=True)
    one = torch.ones(1)
    soft_label_loss(apart, 0 * one, 0.8 * one, one, beta=0.1).backward()  # type: ignore[no-untyped-call]
    assert apart.grad is not None
    assert abs(apart.grad.item()) < 1e-7


def weights(generator: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()])


def tuned(run: Callable[..., Any], config: Any, out: Path, temperature: float, **options: Any) -> torch.Tensor:
    generator = Toy()
    run(config, generator, [Weighted("b", Brightness(), 1.0, temperature)], PROMPTS, out=out, **options)
    return weights(generator)


@pytest.mark.parametrize(
    ("change", "inert"),
    [({}, True), ({"aggregation": "log_odds"}, True), ({"gate": 0.25}, False), ({"advantage": "win_rate"}, False)],
)
def test_grpo_by_temperature(tmp_path: Path, change: dict[str, Any], inert: bool) -> None:
    """Two temperatures lead to one generator by plain GRPO and by log-odds, to two by gate and by win rates."""
    config = replace(GRPO, steps=2, save_every=0, kl_every=0, **change)
    one, other = (tuned(grpo, config, tmp_path / str(t), t) for t in (0.05, 2.0))
    assert ((one - other).abs().mean().item() < 1e-5) is inert


def test_a_closed_gate_says_so(tmp_path: Path) -> None:
    """Below the floor advantages are small, and how much of them is kept is written down."""
    tuned(grpo, replace(GRPO, steps=2, gate=0.25), tmp_path, 100.0)
    rows = read(tmp_path / "metrics.jsonl")
    assert all(0 < row["gate"] < 0.02 for row in rows)
    assert all(0 < row["advantage"] < 0.02 for row in rows)


def test_dpo_by_confidence(tmp_path: Path) -> None:
    """Only pairs of which people are sure enough, by the temperature, are learnt from; where none is, it says so."""
    config = replace(DPO, rounds=1)
    for t, tau in ((0.1, 0.0), (0.1, 0.95)):
        tuned(dpo, replace(config, min_confidence=tau), tmp_path / f"{tau}", t)
    counts = [read(tmp_path / f"{tau}" / "metrics.jsonl")[0]["pairs"] for tau in (0.0, 0.95)]
    assert counts[0] > counts[1] > 0
    with pytest.raises(RunFailed, match=r"less than min_confidence, which is 0\.95"):
        tuned(dpo, replace(config, min_confidence=0.95), tmp_path / "none", 100.0)


def test_dpo_with_soft_labels(tmp_path: Path) -> None:
    """Where people are sure it is DPO; where they are divided, something else."""
    config = replace(DPO, rounds=1, epochs=1)
    plain = tuned(dpo, config, tmp_path / "plain", NAN)
    sure, unsure = (tuned(dpo, replace(config, soft_labels=True), tmp_path / str(t), t) for t in (1e-6, 0.2))
    assert (plain - sure).abs().mean() < 1e-5
    assert (plain - unsure).abs().mean() > 1e-3


def test_refuses_nonsense() -> None:
    """What does not fit together is refused by name; what needs a temperature says so."""
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (Grpo, {"gate": -1.0}),
        (Grpo, {"advantage": "rank"}),
        (Grpo, {"lower_k": -1.0}),
        (Rebel, {"min_confidence": 1.0}),
        (Dpo, {"soft_labels": True, "loss_type": "ipo"}),
        (Dpo, {"soft_labels": True, "sft_weight": 0.1}),
    ]
    for config, settings in wrong:
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
            config(**settings)
    asking = [Grpo(gate=0.25), Grpo(advantage="win_rate"), Dpo(soft_labels=True), Rebel(min_confidence=0.7)]
    assert all(config.calibrated and config.margins_count for config in asking)
    assert Grpo(aggregation="log_odds").calibrated
    assert not any(config.calibrated for config in (Grpo(), Dpo(), Rebel()))

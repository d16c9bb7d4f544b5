"""Win rates in both orders: the arithmetic by hand, who meets whom, and what is learnt from them."""

from __future__ import annotations

import itertools
import json
import math
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.calibration.margin_judge import Margin
from rwk.policy_opt.advantage import Weighted, answers_an_image, order_summary, score_all
from rwk.policy_opt.calibrated import win_rate
from rwk.policy_opt.configs import Dpo, Grpo, Rebel, Rft
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.experiment import Experiment
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.ladder_config import Ladder
from rwk.policy_opt.optimize import optimize
from rwk.policy_opt.rebel import rebel
from rwk.policy_opt.rft import rft
from rwk.policy_opt.win_rates import WinRate, check_judges, meetings, verdicts
from rwk.rewards.base import Scores
from rwk.rewards.pair_judge import JUDGES, PairJudge, pair_spec
from rwk.rewards.registry import load

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS, GRPO, DPO, REBEL = (
    toy[name] for name in ("Toy", "Brightness", "PROMPTS", "GRPO", "DPO", "REBEL")
)
RFT = Rft(group_size=4, keep=1, batch_size=8, rounds=2, learning_rate=1e-2, prompts_per_draw=5, save_every=2, seed=3)


class Biased(PairJudge):
    """Half of what another judge says, and a share of certainty for whichever image is shown first."""

    spec = pair_spec("biased", "n/a", "made up")

    def __init__(self, judge: PairJudge, bias: float, *, silent: bool = False) -> None:
        super().__init__()
        self.judge, self.bias, self.silent, self.asked = judge, bias, silent, 0
        self.spec = replace(self.spec, needs_prompt=judge.spec.needs_prompt)

    @classmethod
    def tiny(cls) -> Biased:
        return cls(Margin.tiny(), 0.25)

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        self.asked += len(first)
        found = self.judge.compare(first, second, prompts).values
        values = 0.25 + self.bias + 0.5 * found
        black = [
            self.silent and 0 in (a.getpixel((0, 0))[0], b.getpixel((0, 0))[0])
            for a, b in zip(first, second, strict=True)
        ]
        return Scores(values.masked_fill(torch.tensor(black), math.nan), ["black" if dark else "" for dark in black])


def bright(bias: float = 0.0, **options: Any) -> Biased:
    return Biased(Margin.of("brightness", Brightness(), temperature=0.1), bias, **options)


def greys(*levels: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 1), (level,) * 3) for level in levels]


def test_three_images_by_hand() -> None:
    """A pair counts by the mean of its orders: a beats b by .8 and .7, a ties c but for the place, c beats b once."""
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    there, back = torch.tensor([0.8, 0.7, 0.4]), torch.tensor([0.3, 0.7, 0.8])
    found = verdicts(pairs, there, back, 3)
    # p_ab = (.8 + .7) / 2 = .75, p_ac = (.7 + .3) / 2 = .5, p_bc = (.4 + .2) / 2 = .3
    assert found.rate.tolist() == pytest.approx([(0.75 + 0.5) / 2, (0.25 + 0.3) / 2, (0.5 + 0.7) / 2])
    # place: (.8 + .3 - 1) / 2 = .05, (.7 + .7 - 1) / 2 = .2, (.4 + .8 - 1) / 2 = .1; a and c contradict themselves
    assert found.bias.tolist() == pytest.approx([0.125, 0.075, 0.15])
    assert found.contradiction.tolist() == [0.5, 0, 0.5]


def test_a_pair_counts_where_both_orders_were_answered() -> None:
    """One order alone would bring its place in, so the pair is left out; an image without a pair is NaN."""
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    there, back = torch.tensor([0.9, math.nan, 0.2]), torch.tensor([0.3, 0.1, math.nan])
    found = verdicts(pairs, there, back, 3)
    assert found.rate.tolist() == pytest.approx([0.8, 0.2, math.nan], nan_ok=True)
    assert found.contradiction.tolist() == pytest.approx([0, 0, math.nan], nan_ok=True)
    one_way = verdicts(pairs, there, back, 3, mutual=False)
    assert one_way.rate.tolist() == pytest.approx([0.8, math.nan, math.nan], nan_ok=True)


def test_half_and_half_contradicts_nothing() -> None:
    """A judge that cannot tell in one order has not said the opposite in the other."""
    found = verdicts(torch.tensor([[0, 1], [0, 1]]), torch.tensor([0.5, 0.9]), torch.tensor([0.9, 0.5]), 2)
    assert found.contradiction.tolist() == [0, 0]


def test_a_reward_made_pairs_is_its_win_rate() -> None:
    """`margin@REWARD` in both orders gives what `--advantage win_rate` makes of the reward's scores."""
    images = greys(10, 200, 30, 120, 90, 90, 0)
    group = torch.tensor([3, 3, 3, 5, 5, 5, 5])
    scores = Brightness().score(images).values
    made = WinRate(Margin.of("brightness", Brightness(), temperature=0.1))
    found = made.within(images, ["a"] * 3 + ["b"] * 4, group, seed=0)
    assert torch.allclose(found.rate, win_rate(scores, group, unit=0.1), atol=1e-6)
    assert found.bias.abs().max() < 1e-6
    assert not found.contradiction.any()


def test_an_advantage_of_the_first_place_cancels() -> None:
    """The rates are those without it, and the bias is told; unbiased, no pair contradicts itself."""
    images, group = greys(10, 200, 30, 120), torch.zeros(4, dtype=torch.long)
    plain, biased = (WinRate(bright(bias)).within(images, ["a"] * 4, group, seed=0) for bias in (0.0, 0.25))
    assert torch.allclose(plain.rate, biased.rate, atol=1e-6)
    assert len(set(plain.rate.tolist())) == 4
    assert biased.bias.tolist() == pytest.approx([0.25] * 4)
    assert plain.contradiction.sum() == 0
    assert biased.contradiction.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("size", "opponents"), [(2, 1), (6, 1), (6, 2), (6, 3), (6, 4), (7, 2), (7, 4), (8, 7), (5, 0)]
)
def test_everyone_meets_as_many(size: int, opponents: int) -> None:
    """Every image of a group has the asked number of different opponents, the same for the same seed."""
    for seed in range(5):
        pairs = list(meetings(size, opponents, seed))
        assert len({frozenset(pair) for pair in pairs}) == len(pairs)
        assert all(a < b for a, b in pairs)
        assert set(Counter(itertools.chain(*pairs)).values()) == {opponents or size - 1}
        assert pairs == list(meetings(size, opponents, seed))


def test_opponents_are_drawn_by_the_seed() -> None:
    """Over seeds every pair is drawn as often as any other; a number that cannot be shared out is told."""
    seen = Counter(pair for seed in range(600) for pair in meetings(6, 2, seed))
    assert len(seen) == 15
    assert max(seen.values()) < 1.4 * min(seen.values())  # of 240 each, with a deviation of 12
    with pytest.raises(ValueError, match="7 images cannot each meet 3 others"):
        list(meetings(7, 3, 0))


def test_whom_an_image_meets_depends_on_seed_prompt_and_place() -> None:
    """Groups scored apart get what they get together, another seed gives others, and the cost is as told."""
    images = [*greys(10, 200, 30, 120, 90, 60), *greys(5, 77, 30, 20, 240, 60)]
    prompts, group = ["a"] * 6 + ["b"] * 6, torch.arange(2).repeat_interleave(6)
    judge = bright()
    made = WinRate(judge, opponents=2)
    together = made.within(images, prompts, group, seed=1).rate
    assert judge.asked == 12 * made.answers(6) == 24
    parts = [made.within(images[rows], prompts[rows], group[rows], seed=1).rate for rows in (slice(6), slice(6, 12))]
    assert torch.equal(torch.cat(parts), together)
    assert not torch.equal(made.within(images, prompts, group, seed=2).rate, together)
    assert answers_an_image([Weighted("a", made), Weighted("b", Brightness())], 6) == 3


def test_images_against_those_of_before() -> None:
    """Each meets every image that was drawn for its prompt before, and nobody else."""
    now, before = greys(100, 100, 100, 100), greys(0, 200, 100, 50)
    judge = Margin.of("brightness", Brightness(), temperature=1e-3)
    found = WinRate(judge).against(now, before, ["a", "a", "b", "b"], 2)
    assert found.rate.tolist() == pytest.approx([0.5, 0.5, 0.75, 0.75])


def test_a_column_of_the_scores() -> None:
    """Beside a reward the judge has its column, and its orders theirs, by which the journal goes."""
    levels = torch.randint(256, [8, 3, 1, 8], generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    levels = levels[:, :1].expand(-1, 3, -1, -1)
    group = torch.arange(2).repeat_interleave(4)
    rewards = [Weighted("b", WinRate(bright(0.125))), Weighted("r", Brightness()), Weighted("s", WinRate(bright()))]
    scores, orders = score_all(rewards, levels, ["a"] * 4 + ["c"] * 4, group)
    assert torch.equal(
        scores[:, 1], Brightness().score([Image.fromarray(x.permute(1, 2, 0).numpy()) for x in levels])[0]
    )
    assert torch.allclose(scores[:, 0], scores[:, 2], atol=1e-6)
    told = order_summary(rewards, orders)
    assert told["reward/b/order_bias"] == pytest.approx(0.125)
    assert told["reward/s/order_bias"] == pytest.approx(0, abs=1e-6)
    assert set(told) == {f"reward/{name}/order_{what}" for name in "bs" for what in ("bias", "contradiction")}
    assert score_all(rewards[1:2], levels, ["a"] * 8, group).orders.shape == (8, 0, 2)


def weights(generator: Any) -> Tensor:
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()])


@pytest.mark.parametrize(("learn", "config"), [(grpo, GRPO), (dpo, DPO), (rebel, REBEL), (rft, RFT)])
def test_every_algorithm_learns_the_same_with_and_without_bias(learn: Any, config: Any, tmp_path: Path) -> None:
    """The first place changes no weight, some opponents are enough to learn from, and the journal holds what it did."""
    found, rows = [], []
    for number, (bias, meanwhile) in enumerate([(0.0, False), (0.25, True)]):
        generator, judge = Toy(), bright(bias)
        settings = replace(config, score_meanwhile=meanwhile, kl_every=0)
        out = tmp_path / str(number)
        trained = learn(settings, generator, [Weighted("judge", WinRate(judge, 2))], PROMPTS, out=out)
        assert judge.asked == trained.reward_forwards == 2 * trained.images_sampled
        found.append(weights(generator))
        rows.append([row for row in read(trained.metrics) if "reward/judge/mean" in row])
    assert torch.allclose(*found, atol=1e-4)
    assert not torch.allclose(found[0], weights(Toy()), atol=1e-3)
    plain, biased = rows
    assert all(row["reward/judge/order_bias"] == pytest.approx(0, abs=1e-6) for row in plain)
    assert all(row["reward/judge/order_bias"] == pytest.approx(0.25) for row in biased)
    assert [row["reward/judge/order_contradiction"] for row in plain] == [0] * len(plain)
    assert all(row["reward/judge/order_contradiction"] > 0.9 for row in biased)
    assert all(row["reward/judge/mean"] == pytest.approx(0.5) for row in plain)


def test_images_without_an_answer_are_unscored(tmp_path: Path) -> None:
    """Pairs that were not answered are left out, images without any have no reward, and the rest is learnt from."""
    grpo(
        replace(GRPO, steps=2, group_size=6),
        Toy(),
        [Weighted("judge", WinRate(bright(silent=True)))],
        PROMPTS,
        out=tmp_path,
    )
    row = read(tmp_path / "metrics.jsonl")[0]
    assert 0 < row["unscored"] < row["images"] / 2
    assert row["advantage"] > 0


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    """Opponents depend on the step, so that a run that goes on from a checkpoint ends with the same weights."""
    rewards = [Weighted("judge", WinRate(bright(), 2))]
    whole, half = Toy(), Toy()
    grpo(replace(GRPO, steps=4), whole, rewards, PROMPTS, out=tmp_path / "whole")
    grpo(replace(GRPO, steps=2), half, rewards, PROMPTS, out=tmp_path / "half")
    again = Toy()
    grpo(replace(GRPO, steps=4), again, rewards, PROMPTS, out=tmp_path / "half", resume=True)
    assert torch.equal(weights(again), weights(whole))
    assert not torch.equal(weights(half), weights(whole))


def calibrate_clip() -> None:
    """Keeps a calibration of shapes.clip, as `rwk calibrate` does."""
    from rwk.calibration.calibrate import place_of
    from rwk.calibration.pairs import PairTable
    from rwk.calibration.storage import Binding, save
    from rwk.calibration.temperature import Temperature

    label = np.tile([1.0, 1.0, 1.0, 1.0, 0.0], 20)  # of margins of 1, four in five agree: T = 1 / log 4
    fitted = Temperature().fit(PairTable(np.ones(100), label))
    save(place_of("shapes.clip"), fitted, Binding.of(load("shapes.clip")), data={}, force=True)


def test_optimize_takes_a_judge_by_name(tmp_path: Path) -> None:
    """In the world, from a name: tuned images meet those of the base, which meet each other, so that base is 0.5."""
    calibrate_clip()
    experiment = Experiment(rewards=("margin@shapes.clip",), opponents=1, prompt_count=8, eval_prompts=2, eval_images=3)
    config = Grpo(steps=2, prompts_per_step=2, group_size=4, kl_every=0, save_every=0)
    found = optimize(experiment, config, out=tmp_path / "run")
    held = json.loads((tmp_path / "run" / "result.json").read_text())["results"]
    for judged in held["base"].values():
        assert judged["margin@shapes.clip"]["mean"] == pytest.approx(0.5)
    for domain, after in found.after.items():
        before = found.before[domain]
        judge = JUDGES.load("margin@shapes.clip")
        expected = [
            [judge.compare([image] * 3, others, [prompt.text] * 3).values.mean().item() for image in images]
            for prompt, images, others in zip(after.prompts, after.images, before.images, strict=True)
        ]
        assert torch.allclose(after.scores["margin@shapes.clip"], torch.tensor(expected), atol=1e-5)
    row = read(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["reward/margin@shapes.clip/order_bias"] == pytest.approx(0, abs=1e-6)
    assert row["reward/shapes.verifier/mean"] is not None


def test_the_first_place_cancels_in_the_world(tmp_path: Path) -> None:
    """GRPO on the shapes generator by shapes.clip in pairs: a judge that prefers the first place teaches the same."""
    from rwk.policy_opt.generator import load as load_generator

    clip, found = load("shapes.clip"), []
    start = weights(load_generator("shapes.llama"))
    prompts = ["a red circle", "a small blue square above a large green triangle"]
    config = Grpo(steps=2, prompts_per_step=2, group_size=4, kl_every=0, save_every=0, seed=5)
    for number, bias in enumerate((0.0, 0.25)):
        generator = load_generator("shapes.llama")
        judge = Biased(Margin.of("shapes.clip", clip, temperature=1.0), bias)
        grpo(config, generator, [Weighted("clip", WinRate(judge))], prompts, out=tmp_path / str(number))
        found.append(weights(generator))
    rows = [read(tmp_path / str(number) / "metrics.jsonl") for number in range(2)]
    assert [row["reward/clip/order_bias"] for row in rows[1]] == pytest.approx([0.25] * 2)
    assert rows[0][-1]["advantage"] == pytest.approx(rows[1][-1]["advantage"], rel=1e-3)
    assert (found[0] - start).norm() > 0.01
    assert (found[0] - found[1]).norm() < 0.01 * (found[0] - start).norm()


@pytest.mark.parametrize(
    ("more", "algorithm", "message"),
    [
        ({"watch": "shapes.verifier"}, Grpo(), "--watch needs scores that can be compared over a run, got .* margin@a"),
        ({}, Grpo(aggregation="log_odds"), "margin@a is a pair judge, and a win rate has no temperature"),
        ({}, Dpo(soft_labels=True), "leave out aggregation log_odds, gate, advantage win_rate, soft_labels"),
        ({}, Rebel(min_confidence=0.6), "a win rate has no temperature"),
        ({}, Grpo(resampling="history"), "resampling history needs rewards with a top, got the pair judge margin@a"),
        ({}, Ladder(), "take --harder-by clauses"),
        ({"opponents": 4}, Dpo(group_size=4), "opponents must be fewer than group_size, got 4 and 4"),
        ({"opponents": 3}, Grpo(group_size=5), "opponents must be even where group_size is odd, .* got 3 and 5"),
    ],
)
def test_what_cannot_go_with_a_judge_is_told(more: dict[str, Any], algorithm: Any, message: str) -> None:
    """One sentence says what came and what to do; without a judge the other settings pass."""
    with pytest.raises(ValueError, match=message):
        check_judges(["contrast", "margin@a"], Experiment(**more), algorithm)
    if "opponents" not in more:
        check_judges(["contrast"], Experiment(**more), algorithm)


def test_what_is_without_a_judge_is_told() -> None:
    """A pair judge cannot be watched, and opponents are of pair judges."""
    with pytest.raises(ValueError, match="got the pair judge margin@contrast; watch a reward"):
        check_judges(["contrast"], Experiment(watch="margin@contrast"), Grpo())
    with pytest.raises(ValueError, match="opponents are of pair judges, got 2 for contrast; leave it out"):
        check_judges(["contrast"], Experiment(opponents=2), Grpo())
    with pytest.raises(ValueError, match="opponents must be at least 0, got -1"):
        Experiment(opponents=-1)

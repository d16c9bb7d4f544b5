"""DAPO's dynamic sampling: an update by hand, what is counted, and runs that break off or end by their images."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.guards import Guards
from rwk.policy_opt.journal import Trained, derived_seed, read
from rwk.policy_opt.ladder_config import Ladder
from rwk.policy_opt.study_budget import matched

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, PROMPTS, DYNAMIC = toy["Toy"], toy["PROMPTS"], toy["DYNAMIC"]
DEAD = [Weighted("dead", toy["Dead"]())]


def run(config: Grpo, out: Path, **options: Any) -> tuple[Trained, torch.Tensor]:
    """A run on the toy generator, and its weights after it."""
    generator = Toy()
    trained = grpo(config, generator, DEAD, PROMPTS, out=out, **options)
    return trained, torch.cat([value.detach().flatten() for value in generator.module.parameters()])


@pytest.mark.parametrize(("most", "micro"), [(1, 6), (4, 0), (4, 8)])
def test_update_by_hand(tmp_path: Path, most: int, micro: int) -> None:
    """Advantage, pull and entropy are means over the first groups that differ, and over nothing else."""
    config = replace(DYNAMIC, steps=1, max_draws=most, micro_batch=micro, kl_every=0, save_every=0, max_grad_norm=1e4)
    run(replace(config, beta=0.5, kl_estimator="k1", entropy_bonus=0.3), tmp_path)
    row, ledger = read(tmp_path / "metrics.jsonl")[0], read(tmp_path / "ledger.jsonl")
    assert len(ledger) == 6 * row["draws"]

    generator = Toy()
    kept: list[tuple[Any, torch.Tensor]] = []
    for number in range(row["draws"]):
        assert len(kept) < 6  # else nothing further is drawn
        prompts = [line["prompt"] for line in ledger[6 * number : 6 * number + 6]]
        seed = derived_seed(config.seed, 0, number) if number else derived_seed(config.seed, 0)
        rollout = generator.sample(prompts, per_prompt=4, seed=seed)
        for place, prompt in enumerate(prompts):
            group = rollout[slice(4 * place, 4 * place + 4)]
            reward = (17 * group.tokens / 255).mean(1)
            if int(prompt.split()[-1]) % 2 == 0:
                kept.append((group, (reward - reward.mean()) / reward.std()))
    assert len(kept) > 6 if most == 4 else 0 < len(kept) < 6  # some are left over, or there are too few
    assert (row["groups"], row["groups_short"]) == (min(len(kept), 6), 6 - min(len(kept), 6))

    loss = torch.zeros(())
    for group, advantage in kept[:6]:
        now = generator.statistics(group)
        pull = now.logprobs - now.logprobs.detach()  # whose gradient is that of k1 where the policy is its reference
        loss = loss + (-advantage[:, None] * now.logprobs + 0.5 * pull - 0.3 * now.entropy).mean()
    gradient = torch.autograd.grad(loss / len(kept[:6]), list(generator.module.parameters()))
    assert row["grad_norm"] == pytest.approx(float(torch.cat([g.flatten() for g in gradient]).norm()), rel=1e-4)
    assert row["drift"] < 1e-5
    assert row["advantage"] == pytest.approx(torch.stack([a for _, a in kept[:6]]).abs().mean().item(), rel=1e-4)


def test_all_that_is_drawn_counts(tmp_path: Path) -> None:
    """Images, forwards, metrics and ledger tell of every draw; the alarm of an update with too few groups."""
    trained, _ = run(DYNAMIC, tmp_path)
    rows, ledger = read(trained.metrics), read(tmp_path / "ledger.jsonl")
    assert {row["draws"] for row in rows} == {2}
    assert [row["images"] for row in rows] == [48] * 8
    assert trained.images_sampled == trained.reward_forwards == 4 * len(ledger) == DYNAMIC.most_images == 8 * 48
    assert all(row["groups"] + row["groups_short"] == 6 for row in rows)
    short = [row["step"] for row in rows if row["groups_short"]]
    assert 0 < len(short) < 8
    assert any("groups of equal rewards" in text for row in rows[short[0] - 1 :] for text in row.get("alarms", ()))
    assert all(0 < row["frac_zero_std"] < 1 for row in rows)  # of all that were drawn


def test_rows_keep_their_recipe(tmp_path: Path) -> None:
    """Groups that are drawn by several recipes, and moved, are trained under those that drew them."""
    config = replace(DYNAMIC, steps=2, sub_policies=("temperature=0.7", "temperature=1.4"), save_every=0)
    run(config, tmp_path)
    assert max(row["drift"] for row in read(tmp_path / "metrics.jsonl")) < 1e-5


def test_resumes_where_it_was(tmp_path: Path) -> None:
    """A run that breaks off between draws of a step ends with the weights and the ledger of one that did not."""

    class Broken(toy["Dead"]):  # type: ignore[misc]
        def _score(self, images: list[Any], prompts: list[str]) -> Any:
            if self.scored >= 24 * 11:  # the second draw of the sixth step
                raise KeyboardInterrupt
            return super()._score(images, prompts)

    _, whole = run(DYNAMIC, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        grpo(DYNAMIC, Toy(), [Weighted("dead", Broken())], PROMPTS, out=tmp_path / "parts")
    assert read(tmp_path / "parts" / "ledger.jsonl")[-1]["step"] == 5
    trained, again = run(DYNAMIC, tmp_path / "parts", resume=True)
    assert torch.equal(whole, again)
    assert trained.images_sampled == 8 * 48
    ledgers = [(tmp_path / name / "ledger.jsonl").read_text() for name in ("whole", "parts")]
    assert ledgers[0] == ledgers[1]


def test_ends_by_its_images(tmp_path: Path) -> None:
    """A matched run draws exactly its images, in fewer updates, the last of what is left; resumed it adds nothing."""
    config = matched(replace(DYNAMIC, max_draws=3, num_iterations=2), 24 * 7, len(PROMPTS))
    assert (config.steps, config.max_images, config.most_images) == (14, 168, 168)
    trained, weights = run(config, tmp_path)
    rows = read(trained.metrics)
    assert trained.images_sampled == sum(row.get("images", 0) for row in rows) == 168
    assert trained.steps == len(rows) < 14
    assert trained.steps % 2 == 0
    again, same = run(config, tmp_path, resume=True)
    assert (again.images_sampled, again.steps) == (168, trained.steps)
    assert torch.equal(weights, same)
    assert json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])["step"] == trained.steps - 2


def test_what_does_not_go_together() -> None:
    """A number of images that holds no draw, and schedules that have to know the updates."""
    with pytest.raises(ValueError, match="max_images must be 0 or hold one draw of 24, got 23"):
        replace(DYNAMIC, max_images=23)
    with pytest.raises(ValueError, match="schedule 'linear' has to know how many updates there will be"):
        matched(replace(DYNAMIC, schedule="linear"), 240, 24)
    with pytest.raises(ValueError, match="max_images must be 0 in a ladder"):
        Ladder(steps=40, max_images=10_000)


def test_alarm_of_too_few_groups() -> None:
    """It tells how many there were, and sounds once."""
    guards = Guards()
    row = {"step": 2, "groups": 3, "groups_short": 5, "draws": 4}
    assert guards.look(row) == [
        "only 3 of the 8 groups of an update differ after 4 draws, the others are groups of equal rewards; raise "
        "max_draws, or take easier or harder prompts"
    ]
    assert guards.look(row | {"step": 3}) == []

"""The ledger by cases that were worked out by hand, and runs of GRPO that choose their prompts by it."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.grpo_run import prompt_schedule
from rwk.policy_opt.journal import read
from rwk.policy_opt.ledger import Ledger, prompts_of_pass

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS, GRPO = toy["Toy"], toy["Brightness"], toy["PROMPTS"], toy["GRPO"]
Dead = toy["Dead"]
BRIGHT = [Weighted("bright", Brightness())]
CONFIG = Grpo(steps=20, prompts_per_step=2, group_size=2, seed=1)
TABLE = ["mixed", "solved", "failed", "unscored", "halfway"]
SCORES = {"mixed": (0.0, 1.0), "solved": (1.0, 1.0), "failed": (0.0, 0.0), "unscored": (math.nan,) * 2} | {
    "halfway": (0.5, 0.5)
}


def ledger_of(path: Path, rewards: list[Weighted] = BRIGHT, **changes: Any) -> Ledger:
    return Ledger(path / "ledger.jsonl", replace(CONFIG, **changes), TABLE, rewards)


def scored(ledger: Ledger, *prompts: str, step: int = 0) -> None:
    """Records the scores that `SCORES` has for each prompt."""
    ledger.record(step, prompts, torch.tensor([score for prompt in prompts for score in SCORES[prompt]])[:, None])


def left_out(ledger: Ledger) -> set[str]:
    """What the next pass leaves out."""
    ledger.next()
    return {TABLE[handle] for handle in ledger.left_out}


def test_holds_mean_and_deviation(tmp_path: Path) -> None:
    """A line a prompt: the mean and the deviation with n - 1 of each reward over what it scored, null over nothing."""
    rewards = [*BRIGHT, Weighted("other", Brightness(), 0.0)]
    scores = torch.tensor([[0.25, 3.0], [0.75, math.nan], [1.0, math.nan], [1.0, math.nan]])
    ledger_of(tmp_path, rewards).record(7, ["mixed", "solved"], scores)
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert lines == [
        {
            "step": 7,
            "prompt": "mixed",
            "mean": {"bright": 0.5, "other": 3.0},
            "std": {"bright": pytest.approx(0.125**0.5), "other": 0.0},
        },
        {"step": 7, "prompt": "solved", "mean": {"bright": 1.0, "other": None}, "std": {"bright": 0.0, "other": 0.0}},
    ]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", set()),
        ("history", {"solved"}),
        ("dynamic", set()),
        ("alike", {"solved", "failed", "unscored", "halfway"}),
    ],
)
def test_leaves_out(tmp_path: Path, rule: str, expected: set[str]) -> None:
    """history leaves out what reached the top throughout; alike all whose images were so or have no score."""
    ledger = ledger_of(tmp_path, resampling=rule, prompts_per_step=1)
    scored(ledger, *TABLE)
    assert left_out(ledger) == expected


def test_the_last_group_counts(tmp_path: Path) -> None:
    """A prompt that was solved and is not any more is drawn for again."""
    ledger = ledger_of(tmp_path, resampling="history")
    scored(ledger, "solved", "mixed")
    ledger.record(1, ["solved"], torch.tensor([[1.0], [0.0]]))
    assert left_out(ledger) == set()


def test_noise_does_not_count(tmp_path: Path) -> None:
    """A deviation, and a distance from the top, of no more than min_std is as good as none."""
    for floor, expected in ((1e-2, {"mixed"}), (1e-4, set())):
        ledger = ledger_of(tmp_path, resampling="history", min_std=floor)
        ledger.record(0, ["mixed"], torch.tensor([[0.999], [0.995]]))
        assert left_out(ledger) == expected


def test_several_rewards(tmp_path: Path) -> None:
    """Every reward with a weight must be at its own top, which for a negative weight is the low end."""
    rewards = [*BRIGHT, Weighted("dark", Brightness(), -1.0), Weighted("beside", Brightness(), 0.0)]
    ledger = ledger_of(tmp_path, rewards, resampling="history")
    rows = [[1.0, 0.0, 0.1], [1.0, 0.0, 0.9], [1.0, 1.0, 0.5], [1.0, 1.0, 0.5]]
    ledger.record(0, ["solved", "mixed"], torch.tensor(rows))
    assert left_out(ledger) == {"solved"}
    alike = ledger_of(tmp_path, rewards, resampling="alike")
    alike.record(0, ["halfway", "failed"], torch.tensor([[0.5, 0.0, 0.1], [0.5, 0.4, 0.1], *[[0.0, 1.0, 0.1]] * 2]))
    assert left_out(alike) == {"failed"}  # as one of its rewards tells the images of the other apart


def test_pass() -> None:
    """A pass has each prompt at most once, fills whole draws, and takes what is left out only to fill the first."""
    order = torch.Generator().manual_seed(0)
    assert sorted(prompts_of_pass(order, 6, 3)) == [0, 1, 2, 3, 4, 5]
    assert len(prompts_of_pass(order, 7, 3)) == 6
    assert sorted(prompts_of_pass(order, 6, 2, {1, 4})) == [0, 2, 3, 5]
    few = prompts_of_pass(order, 6, 3, {0, 1, 2, 3, 5})
    assert (len(set(few)), few[0]) == (3, 4)


def test_chooses_as_the_schedule_does(tmp_path: Path) -> None:
    """Where nothing is left out, the prompts are those of a run without a ledger, in their order."""
    ledger = ledger_of(tmp_path, resampling="history")
    chosen = [handle for _ in range(20) for handle in ledger.next()]
    assert chosen == prompt_schedule(CONFIG, len(TABLE))


def test_restores_what_it_was(tmp_path: Path) -> None:
    """From any update on, a restored ledger chooses as the first one did, and later lines are dropped."""

    def go_on(ledger: Ledger, begin: int) -> list[list[int]]:
        draws = []
        for step in range(begin, 20, 2):
            draws.append(ledger.next())
            scored(ledger, *(TABLE[handle] for handle in draws[-1]), step=step)
        return draws

    whole = go_on(ledger_of(tmp_path, resampling="alike", num_iterations=2, save_every=2), 0)
    assert len({tuple(draw) for draw in whole}) > 2
    for step in (16, 6, 0):
        again = ledger_of(tmp_path, resampling="alike", num_iterations=2, save_every=2)
        again.restore(step)
        assert all(row["step"] < step for row in read(tmp_path / "ledger.jsonl"))
        assert go_on(again, step) == whole[step // 2 :]
    with pytest.raises(ValueError, match="must hold every draw of 30 updates, got 10"):
        ledger_of(tmp_path, num_iterations=2, save_every=2).restore(30)


def test_needs_a_top(tmp_path: Path) -> None:
    """history refuses a reward without a largest score, by its name; a reward that is only measured may lack one."""

    class Endless(Brightness):  # type: ignore[misc, valid-type]
        spec = replace(Brightness.spec, high=math.inf)

    with pytest.raises(ValueError, match="needs rewards that have a top, got endless, which has none; take alike"):
        ledger_of(tmp_path, [Weighted("endless", Endless())], resampling="history")
    ledger_of(tmp_path, [*BRIGHT, Weighted("endless", Endless(), 0.0)], resampling="history")
    ledger_of(tmp_path, [Weighted("endless", Endless(), -1.0)], resampling="history")


def run(config: Grpo, out: Path, **options: Any) -> torch.Tensor:
    """The weights of a toy generator after a run whose reward is dead for every second prompt."""
    generator = Toy()
    grpo(config, generator, [Weighted("dead", Dead())], PROMPTS, out=out, **options)
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()])


@pytest.mark.parametrize("rule", ["history", "alike"])
def test_a_run_leaves_out_what_is_solved(tmp_path: Path, rule: Any) -> None:
    """From the second pass on only prompts that can teach are drawn for, trained on, and counted."""
    run(replace(GRPO, resampling=rule), tmp_path)  # 8 draws of 6; the first pass is 4
    rows, ledger = read(tmp_path / "metrics.jsonl"), read(tmp_path / "ledger.jsonl")
    assert [row["left_out"] for row in rows] == [0] * 4 + [12] * 4
    assert sum(row["frac_zero_std"] for row in rows[:4]) == pytest.approx(2.0)
    assert all(row["frac_zero_std"] == 0 for row in rows[4:])
    assert all(int(row["prompt"].split()[-1]) % 2 == 0 for row in ledger if row["step"] >= 4)
    assert max(row["drift"] for row in rows) < 1e-5  # TRL trains on the prompts that were drawn for


def test_a_run_resumes_where_it_was(tmp_path: Path) -> None:
    """A run that breaks off in its second pass ends with the weights and the ledger of one that did not."""
    config = replace(GRPO, steps=10, resampling="history", num_iterations=2, prompts_per_step=8)

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if step == 9:
            raise KeyboardInterrupt

    whole = run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts", progress=interrupt)
    assert torch.equal(whole, run(config, tmp_path / "parts", resume=True))
    ledgers = [(tmp_path / name / "ledger.jsonl").read_text() for name in ("whole", "parts")]
    assert ledgers[0] == ledgers[1]
    assert {row["step"] for row in read(tmp_path / "parts" / "ledger.jsonl")} == {0, 2, 4, 6, 8}

"""Rewards in two stages: who counts when, what ledger and watch make of it, and runs that change their reward."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.curriculum import Curriculum
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.ledger import Ledger

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS, GRPO, WATCHED = (toy[name] for name in ("Toy", "Brightness", "PROMPTS", "GRPO", "WATCHED"))
BRIGHT = Weighted("bright", Brightness(), 2.0)
DARK = Weighted("dark", Brightness(sign=-1.0), 0.0)


def weights_at(config: Grpo, step: int) -> list[float]:
    return [part.weight for part in Curriculum(config, [BRIGHT, DARK]).at(step).rewards]


def test_the_second_stage_takes_the_place_of_the_first() -> None:
    """A reward that is named keeps its weight or gets 1, the others get 0, from that update on."""
    config = Grpo(then=("dark",), then_after=3)
    assert [weights_at(config, step) for step in (0, 2, 3, 9)] == [[2, 0]] * 2 + [[0, 1]] * 2
    assert weights_at(Grpo(then=("bright", "dark"), then_after=3), 3) == [2, 1]
    assert weights_at(Grpo(), 9) == [2, 0]
    assert [part.name for part in Curriculum(config, [BRIGHT, DARK]).learnt] == ["bright", "dark"]


def test_floors_are_of_all_that_is_ever_learnt() -> None:
    """One number for each reward in turn, whichever stage it is of."""
    config = Grpo(then=("dark",), then_after=3, std_floor=(0.1, 0.2))
    assert (
        Curriculum(config, [BRIGHT, DARK]).at(0).floors == Curriculum(config, [BRIGHT, DARK]).at(3).floors == [0.1, 0.2]
    )


def test_a_new_stage_begins_a_new_pass(tmp_path: Path) -> None:
    """What was solved under the first reward comes back under the second, and is left out by that one's own top.

    The pass under way is not drawn to its end: it has another prompt.
    """
    config = Grpo(then=("dark",), then_after=1, prompts_per_step=1, group_size=2, resampling="history")
    top = Weighted("dark", Brightness(), 0.0)
    ledger = Ledger(tmp_path / "ledger.jsonl", config, ["first", "second", "third"], [BRIGHT, top])
    ledger.record(0, ["first", "second"], torch.tensor([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 2))
    ledger.next(0)
    assert ledger.left_out == {0}
    ledger.next(1)
    assert ledger.left_out == {1}


def test_a_run_changes_its_reward_and_resumes(tmp_path: Path) -> None:
    """Images become brighter, to the bit as without a second stage, then darker again; a killed run ends alike."""

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if step == 7:
            raise KeyboardInterrupt

    def run(out: str, config: Grpo, **options: Any) -> tuple[list[float], torch.Tensor]:
        generator = Toy()
        grpo(config, generator, [BRIGHT, DARK], PROMPTS, out=tmp_path / out, **options)
        rows = read(tmp_path / out / "metrics.jsonl")
        weights = torch.cat([value.detach().flatten() for value in generator.module.parameters()])
        return [row["reward/bright/mean"] for row in rows], weights

    config = replace(GRPO, steps=20, prompts_per_step=8, group_size=8, kl_every=0)
    plain, _ = run("plain", config)
    changed = replace(config, then=("dark",), then_after=5, resampling="alike", watch_every=5)
    turned, weights = run("turned", changed, watched=WATCHED)
    assert turned[:5] == plain[:5]
    assert plain[-1] > plain[0] + 0.2
    assert turned[-1] < plain[-1] - 0.2
    looks = [row["reward"]["mean"] for row in read(tmp_path / "turned" / "watch.jsonl")]
    assert looks[1] > 0 > looks[2]  # brightness times 2, and then darkness
    with pytest.raises(KeyboardInterrupt):
        run("parts", changed, progress=interrupt)
    assert torch.equal(run("parts", changed, resume=True)[1], weights)


def test_refuses_half_a_stage() -> None:
    """A stage needs a reward and a time, and a reward that the run has."""
    for wrong in ({"then": ("dark",)}, {"then_after": 3}):
        with pytest.raises(ValueError, match="go together"):
            Grpo(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must name rewards of the run, got nobody"):
        Curriculum(Grpo(then=("nobody",), then_after=1), [BRIGHT])


def test_a_call_names_both_stages(rwk: Any, tmp_path: Path) -> None:
    """`rwk optimize` measures, judges and learns from the rewards of both stages, and others refuse a second one."""
    ShapesLlama.tiny().save(tmp_path / "small")
    call = ["optimize", "--generator", "small", "--reward", "colorfulness", "--prompt-count", "8", "--seed", "1"]
    call += ["--group-size", "4", "--eval-prompts", "2", "--eval-images", "2", "--then", "contrast"]
    short = ["--steps", "2", "--prompts-per-step", "2", "--save-every", "0", "--kl-every", "0", "--out", "run"]
    ended = rwk(*call, "--algo", "grpo", "--then-after", "1", *short)
    assert ended.code == 0, ended.err
    rows = read(tmp_path / "run" / "metrics.jsonl")
    assert all(f"reward/{name}/mean" in row for row in rows for name in ("colorfulness", "contrast"))
    results = json.loads((tmp_path / "run" / "result.json").read_text())["results"]
    assert {"colorfulness", "contrast"} <= set(results["tuned"]["in domain"])
    refused = rwk(*call, "--algo", "dpo")
    assert refused.code == 2
    assert "--then is no setting of dpo" in refused.err

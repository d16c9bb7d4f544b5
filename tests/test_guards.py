"""What a run is watched for update by update, by lines that were written by hand and by runs on the toy generator."""

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
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.guards import Guards, diversity
from rwk.policy_opt.journal import Journal, read
from rwk.rewards.base import Scores
from rwk.rewards.errors import RunFailed

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS, GRPO, DPO = toy["Toy"], toy["Brightness"], toy["PROMPTS"], toy["GRPO"], toy["DPO"]
WELL = {"step": 1, "grad_norm": 1.0, "images": 20, "unscored": 2, "frac_zero_std": 0.1, "advantage": 0.5}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"unscored": 20, "frac_zero_std": 1.0}, "no image got a score"),
        ({"frac_zero_std": 1.0, "advantage": 0.0}, "in every group all images got the same reward"),
        ({"advantage": 0.0}, "every advantage is 0 though rewards differ"),
        ({"grad_norm": 0.0}, "no gradient reaches the weights"),
    ],
)
def test_the_first_update_says_why_it_learns_nothing(wrong: dict[str, Any], why: str) -> None:
    """An alarm at once, and the end of the run at the third such update; none where all is well."""
    guards = Guards()
    assert guards.look(WELL) == []
    guards.check(WELL, 100)
    alarms = guards.look(WELL | wrong)
    assert f"the first update learnt nothing: {why}" in " ".join(alarms)
    for step in (1, 2):
        guards.check(WELL | wrong | {"step": step}, 100)
    with pytest.raises(RunFailed, match=f"3 in number, learnt nothing: {why}"):
        guards.check(WELL | wrong | {"step": 3}, 100)
    guards.check(WELL | wrong | {"step": 4}, 100)  # later on a run may have learnt all there is


def test_an_alarm_sounds_once_until_it_has_passed() -> None:
    """Below half of the first entropy, and again only after it had been above; a line that says nothing is no news."""
    guards = Guards(0.5)
    told = [guards.look({"step": n, "entropy": x}) for n, x in enumerate((2.0, 1.1, 0.9, 0.8, None, 0.7, 1.5, 0.6), 1)]
    assert [bool(alarms) for alarms in told] == [False, False, True, False, False, False, False, True]
    assert told[2] == ["token entropy, nats, has fallen to 0.9 from 2 at the beginning"]
    assert not any(Guards(0.0).look({"step": n, "diversity": x}) for n, x in enumerate((0.9, 1e-9), 1))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"frac_zero_std": 1.0, "frac_solved": 1.0, "advantage": 0.0}, "every image reached the top of the reward"),
        ({"frac_zero_std": 1.0, "frac_solved": 0.9, "advantage": 0.0}, "in every group all images got the same reward"),
        ({"grad_norm": 0.0}, "no gradient reaches the weights"),
    ],
)
def test_a_run_that_learns_nothing_any_more_says_why(wrong: dict[str, Any], why: str) -> None:
    """At the tenth such update in a row, and not at nine; a later update from one draw knows no other reason."""
    guards = Guards()
    beside = {"step": 0, "grad_norm": 0.0}
    told = [guards.look(WELL | {"step": n} | (wrong if n not in (20, 30) else {})) for n in range(11, 41)]
    assert [n for n, alarms in enumerate(told, 11) if alarms] == [40]
    assert told[-1][0].startswith(f"the last 10 updates learnt nothing: {why}")
    assert guards.look(beside) == guards.look(WELL | {"step": 50} | wrong) == []
    again = Guards()
    half = [again.look((WELL | wrong if n % 2 else beside) | {"step": n}) for n in range(11, 21)]
    assert half[-1][0].startswith(f"the last 10 updates learnt nothing: {why}")
    assert not any(half[:-1])


def test_what_is_trained_is_what_drew() -> None:
    """Drift above a fifth of the narrower clip, and a ratio that is clipped where nothing has moved."""
    assert math.log(1.2) / 5 == pytest.approx(0.0365, abs=1e-4)
    for clip, drift, sounds in ((0.2, 0.036, False), (0.2, 0.037, True), (0.01, 0.003, True), (0.2, None, False)):
        alarms = Guards(clip=clip).look({"step": 5, "drift": drift})
        assert [text.startswith("drawing and learning differ by") for text in alarms] == [True] * sounds
    told = Guards().look({"step": 5, "images": 8, "unscored": 0, "clip_fraction": 0.01})
    assert [text.split(";")[0] for text in told] == [
        "0.01 of the tokens are clipped in the first update from a draw, where each ratio is to be 1"
    ]
    assert Guards().look({"step": 5, "clip_fraction": 0.5}) == []
    assert Guards().look({"step": 5, "clip_fraction": 0.6})[0].startswith("0.6 of the tokens are clipped, without")


class Stale(Toy):  # type: ignore[misc, valid-type]
    """Draws with half of the weights' bias, as from a cache of the prompt before."""

    def sample(self, *args: Any, **options: Any) -> Any:
        with torch.no_grad():
            held = self.module.head.bias.clone()
            self.module.head.bias.add_(torch.linspace(-0.5, 0.5, 16))
            rollout = super().sample(*args, **options)
            self.module.head.bias.copy_(held)
        return rollout


class Dropping(Toy):  # type: ignore[misc, valid-type]
    """Its probabilities are of chance, since dropout is left on."""

    def _logp(self, *args: Any) -> torch.Tensor:
        found: torch.Tensor = super()._logp(*args)
        return (found + 0.3 * torch.randn_like(found)).log_softmax(-1)


def test_a_sampler_that_is_off_is_told(tmp_path: Path) -> None:
    """A stale sampler by its drift, a policy of chance by clipped tokens too; a sound one has no alarm."""
    config = replace(GRPO, steps=2, num_iterations=2, save_every=0, kl_every=0)
    for toy_class, words in ((Toy, []), (Stale, ["drawing and"]), (Dropping, ["drawing and", "clipped in the first"])):
        grpo(config, toy_class(), [Weighted("b", Brightness())], PROMPTS, out=tmp_path / toy_class.__name__)
        alarms = read(tmp_path / toy_class.__name__ / "metrics.jsonl")[0].get("alarms", [])
        assert len(alarms) == len(words)
        assert all(word in text for word, text in zip(words, alarms, strict=True))


class Residue(Brightness):  # type: ignore[misc, valid-type]
    """One score for all, but for what is left of rounding."""

    def _score(self, images: list[Any], prompts: list[str]) -> Any:
        found = super()._score(images, prompts)
        return Scores(0.5 + 1e-6 * found.values, found.notes)


def test_rewards_that_differ_by_rounding_alone(tmp_path: Path) -> None:
    """AdamW would step as far by such a gradient as by any other: the run ends, and says by what nothing differs."""
    rewards = [Weighted("residue", Residue())]
    with pytest.raises(RunFailed, match="learnt nothing: no group differs by more than min_std or std_floor"):
        grpo(replace(GRPO, steps=4, save_every=0), Toy(), rewards, PROMPTS, out=tmp_path / "floored")
    config = replace(GRPO, steps=4, save_every=0, scale_rewards="none")  # which knows no floor
    grpo(config, Toy(), rewards, PROMPTS, out=tmp_path / "as it is")


def test_images_without_a_reward() -> None:
    """More than one in ten is worth an alarm."""
    assert Guards().look(WELL | {"step": 2, "unscored": 2}) == []
    assert Guards().look(WELL | {"step": 2, "unscored": 3}) == [
        "3 of 20 images have no reward, and nothing is learnt from them"
    ]


def test_closing_line(tmp_path: Path) -> None:
    """It is beside that of the last update, whose costs it adds to, is written once, and ends no run as silent."""
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    journal.total = 1
    journal.write(1, {"grad_norm": 1.0})
    for last in (journal, Journal(path)):
        last.note(images=20, unscored=0, frac_zero_std=1.0)
        last.close(1, "nothing is left")
    rows = read(path)
    assert [(row["step"], row.get("alarms")) for row in rows] == [(1, None), (1, ["nothing is left"])]
    assert Journal(path).spent(1) == pytest.approx(sum(row["processor_seconds"] for row in rows))
    assert Journal(path).last == 1


def test_alarms_are_kept_and_told_again_to_nobody(tmp_path: Path) -> None:
    """They stand in their line, reach the progress, and a resumed journal knows which have sounded."""
    told: list[Any] = []
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, progress=lambda step, total, row: told.append(row.get("alarms")))
    for step, entropy in ((1, 1.0), (2, 0.4), (3, 0.3)):
        if step == 3:
            journal.alarm("of another kind")
        journal.write(step, {"entropy": entropy})
    assert [row.get("alarms") for row in read(path)] == told
    assert [len(alarms or ()) for alarms in told] == [0, 1, 1]
    again = Journal(path)
    again.forget_after(2)
    again.write(3, {"entropy": 0.3})
    again.write(4, {"entropy": 0.9})
    again.write(5, {"entropy": 0.3})
    assert [len(row.get("alarms", ())) for row in read(path)] == [0, 1, 0, 0, 1]


def test_a_run_that_fails_leaves_its_last_line(tmp_path: Path) -> None:
    """The update whose gradient is not a number is written down, as JSON without NaN."""
    journal = Journal(tmp_path / "metrics.jsonl")
    with pytest.raises(RunFailed, match="update 7 has a gradient of nan; lower learning_rate"):
        journal.write(7, {"grad_norm": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["grad_norm"] is None


def test_weights_that_stand_still() -> None:
    """Fewer than one in ten that move are worth an alarm, which names the precision; without a gradient none move."""
    guards = Guards()
    held = WELL | {"step": 3, "moved": 0.017, "moved_in": "bfloat16"}
    assert guards.look(held | {"moved": 0.1}) == []
    assert guards.look(held | {"grad_norm": 0.0, "moved": 0.0}) == []
    assert guards.look(held) == [
        "update 3 moves 1.7 % of the weights: updates are smaller than half precision (bfloat16) can hold; raise "
        "learning_rate, or load the generator in float32."
    ]
    (alarm,) = Guards().look(held | {"moved_in": "float32"})
    assert "most get no gradient, or one that is lost in float32" in alarm


def test_diversity() -> None:
    """The share of tokens that differ, over all pairs of a group, by a loop; 0 where all are alike."""
    tokens = torch.randint(0, 3, (12, 5), generator=torch.Generator().manual_seed(0))
    apart = [
        (tokens[a] != tokens[b]).float().mean().item()
        for start in (0, 4, 8)
        for a in range(start, start + 4)
        for b in range(a + 1, start + 4)
    ]
    assert diversity(tokens, 4) == pytest.approx(sum(apart) / len(apart))
    assert diversity(tokens[:1].expand(4, -1), 4) == 0


@pytest.mark.parametrize("algorithm", ["grpo", "dpo"])
def test_a_collapse_is_told(tmp_path: Path, algorithm: str) -> None:
    """Driven too hard, a policy loses its variety, and the run says so when it does."""
    rewards = [Weighted("bright", Brightness())]
    if algorithm == "grpo":
        hard = replace(GRPO, steps=12, learning_rate=1e-1, save_every=0, kl_every=0)
        grpo(hard, Toy(), rewards, PROMPTS, out=tmp_path)
    else:
        config = replace(DPO, rounds=3, learning_rate=5e-2, epochs=4, save_every=0, kl_every=0)
        dpo(config, Toy(), rewards, PROMPTS, out=tmp_path)
    rows = read(tmp_path / "metrics.jsonl")
    assert 0.8 < rows[0]["diversity"] < 1
    alarms = [text for row in rows for text in row.get("alarms", ())]
    assert any(text.startswith("variety within a group") for text in alarms)
    assert any(text.startswith("token entropy") for text in alarms)

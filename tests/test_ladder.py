"""The ladder: who is hard, what its parts are, and that it learns, costs what GRPO costs, and resumes."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from safetensors.torch import load_file

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.ladder import clauses, grpo_of, harvest_of, ladder, success
from rwk.policy_opt.ladder_config import Ladder
from rwk.policy_opt.run_options import Run, RunOptions
from rwk.rewards.base import Scores
from rwk.rewards.errors import RunFailed

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS, GRPO, WATCHED = (toy[name] for name in ("Toy", "Brightness", "PROMPTS", "GRPO", "WATCHED"))
BRIGHT = [Weighted("bright", Brightness())]
LADDER = Ladder(**{**asdict(GRPO), "steps": 8, "kl_every": 0}, climbs=2, harvest=2, harvest_batch=6)


def tuned(config: Ladder, out: Path, rewards: list[Weighted] = BRIGHT, **options: Any) -> tuple[torch.Tensor, Any]:
    generator = Toy()
    trained = ladder(config, generator, rewards, PROMPTS, out=out, **options)
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()]), trained


def drawn_for(out: Path) -> set[str]:
    return {row["prompt"] for row in read(out / "grpo" / "ledger.jsonl")}


def test_what_a_run_is_told(tmp_path: Path) -> None:
    """The names that an algorithm takes are the fields of `Run`; others are refused, and by a ladder its seconds."""
    named = get_type_hints(RunOptions)
    assert list(named) == [item.name for item in fields(Run)]
    assert {name: kind for name, kind in get_type_hints(Run).items() if named[name] != kind} == {}
    for run, config in ((ladder, LADDER), (grpo, GRPO), (dpo, toy["DPO"])):
        told: Any = run
        with pytest.raises(TypeError, match="second'"):
            told(config, Toy(), BRIGHT, PROMPTS, out=tmp_path, second=1.0)
    with pytest.raises(ValueError, match="a ladder ends after its climbs, got 1.0 seconds"):
        tuned(LADDER, tmp_path, seconds=1.0)
    assert not list(tmp_path.iterdir())


def test_success_by_hand() -> None:
    """The newest line of a prompt counts; rewards are standardised over the prompts, weighted, and NaN adds nothing."""
    rows = [
        {"prompt": prompt, "mean": {"a": a, "b": b}}
        for prompt, a, b in [("x", 9.0, 9.0), ("x", 0.0, 4.0), ("y", 2.0, 0.0), ("z", None, 2.0)]
    ]
    rewards = [Weighted("a", Brightness(), 2.0), Weighted("b", Brightness(), -1.0)]
    spread = math.sqrt(8 / 3)
    expected = {"x": -2 - 2 / spread, "y": 2 + 2 / spread, "z": 0.0}
    assert success(rows, rewards) == pytest.approx(expected)
    assert success(rows[:1], rewards) == {"x": 0.0}


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("a black cross", 1),
        ("the picture shows a small red circle to the left of a ring", 2),
        ("we see two rings together with a black cross and that is all", 2),
        ("a drawing of a red ring, a blue cross and a square on a plain background", 3),
    ],
)
def test_clauses(prompt: str, count: int) -> None:
    """Things are counted by the words between them."""
    assert clauses(prompt) == count


def test_parts_draw_what_the_whole_has() -> None:
    """Images of the parts are those of GRPO with as many steps; each has a seed of its own."""
    config = Ladder(steps=60, num_iterations=2, save_every=2, climbs=3, harvest=4)
    parts = [(grpo_of(config, climb), harvest_of(config, climb)) for climb in range(3)]
    drawn = sum(rl.draws * rl.rows + sft.prompts_per_round * sft.group_size for rl, sft in parts)
    assert drawn == config.draws * config.rows == 30 * 128
    assert [rl.steps for rl, _ in parts] == [12] * 3
    assert len({part.seed for pair in parts for part in pair}) == 6
    assert parts[0][1].aggregation == "lower_bound"


def test_climbs_to_what_is_hard(tmp_path: Path) -> None:
    """The second climb draws for the half of the prompts that fared worst, and all is counted once."""
    generator = Toy()
    config = replace(LADDER, steps=12, harvest=2)  # a climb is 4 updates of 6 prompts, all 24, and a harvest of 12
    trained = ladder(config, generator, BRIGHT, PROMPTS, out=tmp_path)
    assert trained.images_sampled == trained.reward_forwards == 12 * 24
    first = read(tmp_path / "climb-1" / "grpo" / "ledger.jsonl")
    worst = sorted(PROMPTS, key={row["prompt"]: row["mean"]["bright"] for row in first}.__getitem__)[:12]
    assert drawn_for(tmp_path / "climb-2") == set(worst)
    rows = read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, trained.steps + 1))
    assert [row["part"] for row in rows] == ["grpo"] * 4 + ["rft"] * 2 + ["grpo"] * 4 + ["rft"] * 2
    assert trained.tokens_trained == sum(8 * (24 if row["part"] == "grpo" else 6) for row in rows)
    assert [path.name for path in tmp_path.rglob("generator")] == ["generator"] * 2  # the last part's, and ours


def test_learns(tmp_path: Path) -> None:
    """Images are brighter at the end than at the beginning, and the watched reward is looked at in every climb."""
    config = replace(LADDER, steps=24, harvest=3, learning_rate=2e-2)
    tuned(config, tmp_path, watched=WATCHED)
    means = [row["reward/bright/mean"] for row in read(tmp_path / "metrics.jsonl") if "reward/bright/mean" in row]
    assert means[-1] > means[0] + 0.15
    looks = [look["step"] for look in read(tmp_path / "watch.jsonl")]
    assert looks == sorted(looks)
    assert len(looks) == 6


def test_resumes_in_any_part(tmp_path: Path) -> None:
    """A run that breaks off in a fine-tuning, and in a later climb, ends with the weights of one that did not."""
    breaks = [6, 9]

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if breaks and step == breaks[0]:
            breaks.pop(0)
            raise KeyboardInterrupt

    config = replace(LADDER, steps=12)  # a climb is 4 updates of GRPO and 2 of fine-tuning
    whole, cost = tuned(config, tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tuned(config, tmp_path / "parts", progress=interrupt, resume=True)
    again, other = tuned(config, tmp_path / "parts", progress=interrupt, resume=True)
    assert torch.equal(whole, again)
    assert other.images_sampled == cost.images_sampled


def test_parts_of_another_run_are_not_taken(tmp_path: Path) -> None:
    """A folder whose run broke off in its first part is taken: only a run that goes on with it begins there."""

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(LADDER, tmp_path, progress=interrupt)
    with pytest.raises(ValueError, match="must be free for a new run, got one that holds a run"):
        tuned(replace(LADDER, seed=7), tmp_path)
    tuned(LADDER, tmp_path, resume=True)


class Sated(Brightness):  # type: ignore[misc, valid-type]
    """Brightness of the first images that it is shown, and then 1 for each."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.left = images

    def _score(self, images: list[Any], prompts: list[str]) -> Any:
        found = super()._score(images, prompts)
        self.left -= len(images)
        return found if self.left >= 0 else Scores(torch.ones(len(images)), found.notes)


def test_a_later_part_may_find_nothing(tmp_path: Path) -> None:
    """A harvest without a pair, and a climb whose groups are all equal, say so, and the ladder comes to its end."""
    generator, part = Toy(), Toy()
    trained = ladder(LADDER, generator, [Weighted("bright", Sated(48))], PROMPTS, out=tmp_path)
    rows = read(tmp_path / "metrics.jsonl")
    assert [(row["part"], row["step"]) for row in rows] == [
        ("grpo", 1),
        ("grpo", 2),
        ("rft", 2),
        ("grpo", 3),
        ("grpo", 4),
        ("rft", 4),
    ]
    alarms = [" ".join(row.get("alarms", [])) for row in rows]
    assert "round 1 found no pair among 48 images" in alarms[2]
    assert "the run ends with what it had learnt" in alarms[2]
    assert "the first update learnt nothing: every image reached the top" in alarms[3]
    assert trained.steps == 4
    grpo(grpo_of(LADDER, 0), part, BRIGHT, PROMPTS, out=tmp_path / "alone")
    one, two = (load_file(path / "generator" / "model.safetensors") for path in (tmp_path, tmp_path / "alone"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(RunFailed, match="the first updates, 2 in number, learnt nothing"):
        ladder(LADDER, Toy(), [Weighted("bright", Sated(0))], PROMPTS, out=tmp_path / "first")


def test_refuses_nonsense(tmp_path: Path) -> None:
    """Numbers that do not fit are named."""
    for wrong, said in (
        ({"steps": 9}, "got 9 steps, 2 climbs"),
        ({"harvest": 4}, "harvest of 4"),
        ({"harder": 0.0}, "harder must lie above 0"),
        ({"harder_by": "luck"}, "success, clauses, got 'luck'"),
        ({"keep": 4}, "keep must lie in 1..group_size - 1, got 4"),
        ({"then": ("bright",), "then_after": 2}, "leave it out of a ladder"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(LADDER, **wrong)
    with pytest.raises(ValueError, match="harvests 30 different prompts, got 24"):
        tuned(replace(LADDER, steps=12, harvest=5, harvest_batch=5), tmp_path)
    tuned(LADDER, tmp_path)
    with pytest.raises(ValueError, match="holds a run"):
        tuned(LADDER, tmp_path)
    assert isinstance(LADDER, Grpo)


def test_a_call_climbs(rwk: Any, tmp_path: Path) -> None:
    """`rwk optimize --algo ladder` runs the parts, keeps what came of them, and has one journal of all updates."""
    ShapesLlama.tiny().save(tmp_path / "small")
    call = ["optimize", "--algo", "ladder", "--generator", "small", "--reward", "colorfulness", "--prompt-count", "8"]
    call += ["--group-size", "4", "--eval-prompts", "2", "--eval-images", "2", "--prompts-per-step", "2"]
    ended = rwk(*call, "--steps", "4", "--harvest", "1", "--harder-by", "clauses", "--kl-every", "0", "--out", "run")
    assert ended.code == 0, ended.err
    assert [row["part"] for row in read(tmp_path / "run" / "metrics.jsonl")] == ["grpo", "rft"] * 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["algorithm"]["algorithm"] == "ladder"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["cost"]["images_sampled"] == 4 * 8

"""A study: its grid, its matching, its meter, what is done again after a kill, and what is said of a finding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rwk.adapters.shapes_verifier import Verifier
from rwk.policy_opt.configs import Dpo, Grpo
from rwk.policy_opt.journal import Journal, read
from rwk.policy_opt.study import WORLD, Axis, Study, cells, read_study
from rwk.policy_opt.study_budget import matched
from rwk.policy_opt.study_run import finished_cell, locked, run_cells
from rwk.rewards.base import Scores

SMALL = Study(
    seeds=1,
    images=32,
    settings={
        "prompt_count": 8,
        "eval_prompts": 2,
        "eval_images": 2,
        "group_size": 4,
        "kl_every": 1,
        "grpo": {"prompts_per_step": 4},
        "dpo": {"batch_size": 4},
    },
)


def test_every_cell_once() -> None:
    """A point that comes to the common settings is no cell of its own; all draw the same images."""
    study = Study(rewards=("shapes.verifier", "colorfulness"), axes=(Axis("n", {"8": {}, "16": {"group_size": 16}}),))
    found = cells(study)
    assert len(found) == len({cell.name for cell in found}) == 2 * 2 * 2 + 2 * 2
    assert [cell.points.get("n") for cell in found].count("8") == 4
    assert {cell.plan().images for cell in found} == {4096}
    assert {cell.plan().images for cell in cells(WORLD)} == {2048}


def test_variant_is_its_algorithm_with_a_change() -> None:
    """It takes the settings of the algorithm it is one of, over them its own, and may learn from other rewards."""
    study = Study(
        algorithms=("grpo",),
        variants={
            "rloo": {"of": "grpo", "baseline": "others"},
            "two": {"of": "grpo", "rewards": ["noise", "sharpness"]},
        },
        seeds=1,
        settings={"grpo": {"beta": 0.5}, "rloo": {"learning_rate": 0.1}},
        axes=(Axis("n", {"16": {"group_size": 16}}),),
    )
    found = {(cell.algorithm, cell.main): cell for cell in cells(study)}
    assert len(found) == len(cells(study)) == 6
    rloo, two = found["rloo", False], found["two", True]
    assert (rloo.config.beta, rloo.config.baseline, rloo.config.group_size) == (0.5, "others", 16)  # type: ignore[union-attr]
    assert rloo.config.learning_rate == 0.1 != two.config.learning_rate
    assert (two.reward, two.experiment.rewards) == ("shapes.verifier", ("noise", "sharpness"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithms": ("ppo",)}, "algorithms of dpo, grpo, ladder, rebel, rft, got .'ppo'."),
        ({"variants": {"x": {"of": "ppo"}}}, "algorithms of dpo, grpo, ladder, rebel, rft, got .'ppo'."),
        ({"variants": {"dpo": {"of": "grpo"}}}, "a name of its own, got that of an algorithm or setting, dpo"),
        ({"variants": {"diversity": {"of": "grpo"}}}, "got that of an algorithm or setting, diversity"),
        ({"settings": {"steepness": 1}}, "steepness is no setting of dpo"),
        ({"settings": {"prompts": "file.txt"}}, "prompts whose truth is known, got file.txt"),
        ({"match": "tokens"}, "match must be one of images, seconds, none, got 'tokens'"),
        ({"match": "seconds"}, "seconds above 0, got 0.0; name --seconds"),
        ({"match": "seconds", "seconds": 5, "algorithms": ("ladder",)}, "a ladder has to know how many updates"),
        ({"match": "seconds", "seconds": 5, "settings": {"schedule": "cosine"}}, "schedule 'cosine' has to know"),
    ],
)
def test_study_that_is_none_is_refused(changes: dict[str, Any], said: str) -> None:
    """Before anything is run, in one sentence."""
    with pytest.raises(ValueError, match=said):
        cells(Study(**changes))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("cut.toml", 'algorithms = ["grpo"', "cut.toml must be TOML, got what is none \\(Unclosed array"),
        ("cut.json", '{"seeds": ', "cut.json must be JSON, got what is none \\(Expecting value"),
        (
            "odd.json",
            '{"seed": 3}',
            "odd.json must have fields of name, algorithms, .*, got seed; correct or remove it",
        ),
        ("", "", "must be a TOML or JSON file, got the folder"),
    ],
)
def test_file_that_holds_no_study_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    """With what is wrong in it."""
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        read_study(tmp_path / name)


def test_what_is_held_against_what() -> None:
    """Algorithms each against each, variants against their own, all against the base; means by hand."""
    from rwk.policy_opt.study_results import analyse

    def record(algorithm: str, seed: int, tuned: float) -> dict[str, Any]:
        prompts = [f"prompt {i}" for i in range(40)]
        tuned_at = [tuned + (-1) ** i * 0.01 for i in range(40)]
        gold = {"in domain": {"base": [0.25] * 40, "best of n": [0.5] * 40, "tuned": tuned_at}}
        held = {"algorithm": algorithm, "reward": "r", "generator": "g", "seed": seed, "iterations": 1, "main": True}
        held |= {"config": {"seed": seed}, "experiment": {}, "points": {}, "meter": {"seconds": 1.0}}
        return {**held, "prompts": {"in domain": prompts}, "gold": gold}

    variants = {"rloo": {"of": "ladder", "against": "grpo"}}
    study = {"algorithms": ["grpo", "dpo"], "variants": variants, "axes": [], "margin": 0.01}
    means = {"grpo": 0.5, "dpo": 0.25, "rloo": 0.625}
    found = analyse(study, [record(name, seed, mean) for name, mean in means.items() for seed in range(3)])
    gained = {row["algorithm"]: (round(row["mean"], 9), row["verdict"]) for row in found["gains"]}
    assert gained == {"grpo": (0.25, "yes"), "dpo": (0.0, "no"), "rloo": (0.375, "yes")}
    held = {(row["first"], row["second"]): (round(row["mean"], 9), row["verdict"]) for row in found["differences"]}
    assert held == {("dpo", "grpo"): (-0.25, "no"), ("rloo", "grpo"): (0.125, "yes")}
    said = [row for row in found["verdicts"] if row["finding"].startswith("5.")]
    assert said == [
        {"finding": "5. rloo against grpo, in domain", "verdict": "improves", "why": "+12.5 points (+12.5 to +12.5)"}
    ]


def test_rewards_of_a_later_stage_are_counted() -> None:
    """Every reward of a run scores all its images, whenever it is learnt from."""
    later = {"of": "grpo", "then": ["sharpness"], "then_after": 2}
    one, two = cells(Study(algorithms=("grpo",), variants={"two": later}, seeds=1))
    assert two.plan().forwards == 2 * one.plan().forwards == 2 * two.plan().images


def test_matching_is_exact_or_refused() -> None:
    """Updates and rounds that draw just as many images; fewer prompts than a round takes make smaller rounds."""
    assert matched(Grpo(num_iterations=2, save_every=0), 1024, 2000).steps == 16  # type: ignore[union-attr]
    assert matched(Dpo(), 4096, 64).rounds == 8  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="which do not fill 1500 exactly; take 1024 or 2048"):
        matched(Dpo(), 1500, 2000)


def test_killed_study_goes_on(tmp_path: Path, rwk: Any) -> None:
    """The finished cell is not run again, the other from where it was; the meter is that of the plan; redrawn equal."""
    found, seen = cells(SMALL), []

    def stop(done: int, total: int, _: dict[str, Any]) -> None:
        seen.append(done)
        if finished_cell(tmp_path, found[0]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(found, tmp_path, progress=stop)
    before = (tmp_path / "cells" / found[0].name / "result.json").stat().st_mtime_ns
    assert run_cells(found[::2], tmp_path) == 0
    assert run_cells(found[1::2], tmp_path) == 1
    assert run_cells(found, tmp_path) == 0
    assert (tmp_path / "cells" / found[0].name / "result.json").stat().st_mtime_ns == before
    for cell in found:
        record = finished_cell(tmp_path, cell)
        assert record is not None
        assert record["meter"]["images sampled"] == cell.plan().images == 32
        assert record["meter"]["reward forwards"] == cell.plan().forwards
    assert record["meter"]["tokens trained"] == record["meter"]["reference tokens"] > 0  # GRPO, KL at every draw

    definition = tmp_path / "small.json"
    definition.write_text(json.dumps({"seeds": 1, "images": 32, "settings": SMALL.settings}))
    assert rwk("study", str(definition), "--out", str(tmp_path)).code == 0
    page = (tmp_path / "page.html").read_bytes()
    (tmp_path / "page.html").unlink()
    assert rwk("study", str(tmp_path), "--redraw").code == 0
    assert (tmp_path / "page.html").read_bytes() == page


def test_seconds_are_the_same_and_images_differ(tmp_path: Path, rwk: Any) -> None:
    """Each cell learns until its processor seconds are spent, over a kill too, and the tables show both meters."""
    study = replace(SMALL, match="seconds", seconds=3.0)
    found, told = cells(study), list[dict[str, Any]]()
    assert [cell.plan().images > 0 for cell in found] == [True, True]
    assert (
        cells(replace(SMALL, match="seconds", seconds=2.0, axes=(Axis("n", {"2": {"iterations": 2}}),)))[2].seconds == 1
    )

    def stop(_: int, __: int, row: dict[str, Any]) -> None:
        told.append(row)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(found, tmp_path, progress=stop)
    assert run_cells(found, tmp_path) == 2
    assert run_cells(found, tmp_path) == 0
    for cell in found:
        record = finished_cell(tmp_path, cell)
        assert record is not None
        rows = read(tmp_path / "cells" / cell.name / "iteration-1" / "metrics.jsonl")
        spent = [row["processor_seconds"] for row in rows]
        assert record["meter"]["processor seconds"] == pytest.approx(sum(spent))
        assert sum(spent) >= 3 > sum(spent[:-1])  # it ends at the first update after them
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        drawn = 16 * len(rows) if cell.algorithm == "grpo" else 32 * max(row.get("round", 0) for row in rows)
        assert record["meter"]["images sampled"] == drawn
    definition = tmp_path / "small.json"
    definition.write_text(json.dumps({"seeds": 1, "settings": SMALL.settings}))
    call = rwk("study", str(definition), "--match", "seconds", "--seconds", "3", "--out", str(tmp_path))
    assert call.code == 0
    page = (tmp_path / "page.html").read_text()
    assert "matched on seconds of processor time, 3 for each" in page
    assert all(f">{head}</th>" in page for head in ("images sampled", "processor seconds"))


def test_an_iteration_that_finds_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later iteration in which all images are good ends well, and the cell has its result."""
    score = Verifier._score

    def sated(reward: Verifier, images: list[Image.Image], prompts: list[str]) -> Any:
        found = score(reward, images, prompts)
        if not list(tmp_path.glob("cells/*/iteration-2/config.json")):
            return found
        return Scores(torch.ones(len(images)), [""] * len(images))

    monkeypatch.setattr(Verifier, "_score", sated)
    found = cells(replace(SMALL, images=64, axes=(Axis("n", {"2": {"iterations": 2}}),)))
    cell = next(cell for cell in found if cell.algorithm == "dpo" and cell.iterations == 2)
    assert run_cells([cell], tmp_path) == 1
    record = finished_cell(tmp_path, cell)
    assert record is not None
    (last,) = read(next(tmp_path.glob("cells/*/iteration-2/metrics.jsonl")))
    assert last["step"] == 0
    assert "found no pair among" in last["alarms"][0]
    assert all(value == 1 for value in record["gold"]["in domain"]["tuned"])


def test_drawing_before_a_kill_counts(tmp_path: Path) -> None:
    """What a round's drawing took is charged again to the line after a kill, and a line that is dropped to nobody."""
    lines, held = tmp_path / "metrics.jsonl", tmp_path / "drawing_seconds"
    killed = Journal(lines)
    sum(number**0.5 for number in range(400_000))
    killed.charge(held)
    drawing = float(held.read_text())
    assert drawing > 0.005
    again = Journal(lines)
    again.charge(held)
    assert again.spent() >= drawing
    again.write(1, {})
    again.write(2, {})
    first, second = (row["processor_seconds"] for row in read(lines))
    assert first >= drawing > second
    resumed = Journal(lines)
    assert (resumed.last, resumed.spent(1), resumed.spent(2)) == (2, first, first + second)
    resumed.forget_after(1)
    assert (resumed.last, resumed.spent(2)) == (1, first)


def test_lock_of_the_living_holds_and_of_the_dead_is_taken(tmp_path: Path) -> None:
    """Two processes never run one cell; a lock whose process is gone is told of and taken over."""
    import socket

    told: list[str] = []
    with locked(tmp_path, told.append) as first, locked(tmp_path, told.append) as second:
        assert (first, second) == (True, False)
    assert "is being run by process" in told[0]
    (tmp_path / "lock").write_text(f"process 1 on {socket.gethostname()}")
    with locked(tmp_path, told.append) as third:
        assert third
    assert "which is gone, and is taken over" in told[1]


@pytest.mark.parametrize(
    ("low", "high", "p", "seeds", "said"),
    [
        (0.02, 0.1, 0.01, (0.05, 0.07), "yes"),
        (0.02, 0.1, 0.01, (0.13, -0.01), "undecided"),
        (0.02, 0.1, 0.2, (0.05, 0.07), "undecided"),
        (-0.05, 0.009, 0.5, (-0.01, 0.0), "no"),
        (-0.05, 0.02, 0.5, (-0.01, 0.0), "undecided"),
    ],
)
def test_verdicts(low: float, high: float, p: float, seeds: tuple[float, ...], said: str) -> None:
    """An interval, p after Holm and the seeds decide together; few prompts decide nothing."""
    from rwk.policy_opt.study_results import decide

    row = {"low": low, "high": high, "p after Holm": p, "seeds": dict(enumerate(seeds)), "clusters": 100}
    assert decide(row, 0.01) == said
    turned = row | {"low": -high, "high": -low, "seeds": {key: -value for key, value in row["seeds"].items()}}  # type: ignore[attr-defined]
    assert decide(turned, 0.01, sign=-1) == said
    assert decide(row | {"clusters": 5}, 0.01) == "undecided"


def test_a_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes would each take another cell, and wait for each other there."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"got one of 2 of a launcher; start rwk study 2 times"):
        run_cells(cells(SMALL), tmp_path)
    assert not list(tmp_path.iterdir())

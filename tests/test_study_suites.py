"""A generator that is judged on benchmarks by their own measure, and a study of one outside the built-in world."""

from __future__ import annotations

import json
import re
import runpy
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.adapters.geneval_prompts import records
from rwk.adapters.janus import JanusPro
from rwk.adapters.pixels import Sharpness
from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.evaluate import GOLD, JUDGED_SEED
from rwk.policy_opt.experiment import Experiment
from rwk.policy_opt.judging import Judges, judge
from rwk.policy_opt.optimize import optimize
from rwk.policy_opt.prompts import Prompt, domains
from rwk.policy_opt.study import Study, cells, read_study
from rwk.policy_opt.study_results import analyse
from rwk.policy_opt.suites import Benchmark, benchmark, chosen, judged_on, spread
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load

TESTS = Path(__file__).parent
CASE = runpy.run_path(str(TESTS / "suites_case.py"))
JANUS = TESTS.parent / "docs" / "study" / "janus.toml"
COLOURS = ["a green bench and a red car", "a blue bowl and a pink car"]
ACTIONS = ["A couple is stargazing in a field.", "A man is reading."]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`data/` with the files that docs/study/janus.toml names, as many prompts to learn from as are published."""
    data = tmp_path / "data"
    (data / "t2i_compbench").mkdir(parents=True)
    texts = [f"a red thing beside {number} keys" for number in range(5557)]
    (data / "t2i_compbench_train.txt").write_text("\n".join([*texts[:3], COLOURS[0], ACTIONS[1], *texts[3:]]))
    (data / "t2i_compbench" / "color_val.txt").write_text("\n".join(COLOURS))
    (data / "t2i_compbench" / "non_spatial_val.txt").write_text("\n".join(ACTIONS))
    (data / "evaluation_metadata.jsonl").write_text("\n".join(json.dumps(record) for record in records(3, seed=5)))
    return data


def test_the_study_on_janus_is_ready_to_run(data: Path, rwk: Any) -> None:
    """Its file makes cells of the same images for both algorithms; what is judged on is not learnt from."""
    found = cells(read_study(JANUS))
    assert {cell.experiment.generator for cell in found} == {"janus.pro_1b"}
    assert {cell.reward for cell in found if cell.main} == {
        "hpsv2.v21",
        "imagereward.v1",
        "unifiedreward.pointwise",
        "orm.t2i_r1",
    }
    assert {cell.plan().images for cell in found} == {22176}
    assert {tuple(axis for axis in cell.points) for cell in found if not cell.main} == {
        ("samples per prompt",),
        ("prompts",),
        ("iterations",),
    }
    prompts, on = chosen(found[0].experiment, seed=0)
    assert len(prompts.train) == 5544
    assert not {prompt.text for prompt in prompts.train} & {*COLOURS, *ACTIONS}
    assert {domain: len(one.prompts) for domain, one in on.items()} == {"in domain": 4, "out of domain": 18}
    assert found[0].plan().judged == 2 * 22 * 4
    assert rwk("study", str(JANUS), "--dry-run").code == 0


def test_two_cells_on_benchmarks(data: Path, tmp_path: Path, rwk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small Janus learns from a file; gold and best of n are by the benchmarks' judges, from weights in folders."""
    JanusPro.tiny().save(tmp_path / "janus")
    golds = [CASE[f"{name}_weights"](tmp_path / name, monkeypatch) for name in ("blip", "clip", "geneval")]
    settings = {
        "prompts": str(data / "t2i_compbench_train.txt"),
        "prompt_count": 4,
        "eval_prompts": 3,
        "eval_images": 2,
        "group_size": 4,
        "judge_on": [f"in domain=compbench:{data / 't2i_compbench'}", "out of domain=geneval"],
        "gold": golds,
        "grpo": {"prompts_per_step": 4},
        "dpo": {"batch_size": 4},
    }
    study = {"generators": [str(tmp_path / "janus")], "rewards": ["contrast"], "seeds": 1, "images": 16}
    (tmp_path / "small.json").write_text(json.dumps({**study, "settings": settings}))
    ended = rwk("study", "small.json", "--out", "out")
    assert ended.code == 0, ended.err
    document = json.loads((tmp_path / "out" / "study.json").read_text())
    one, other = document["cells"]
    assert (one["algorithm"], other["algorithm"]) == ("dpo", "grpo")
    assert one["categories"] == {
        "in domain": ["color", "color", "non_spatial"],
        "out of domain": ["single_object", "two_object", "counting"],
    }
    generator, contrast = JanusPro.from_folder(tmp_path / "janus"), load("contrast")
    for domain, rewards in {"in domain": [golds[0], golds[0], golds[1]], "out of domain": [golds[2]] * 3}.items():
        texts = one["prompts"][domain]
        images = generator.decode(generator.sample(texts, per_prompt=2, seed=JUDGED_SEED).tokens)
        for place, (text, name) in enumerate(zip(texts, rewards, strict=True)):
            row = images[2 * place : 2 * place + 2]
            truth = load(name).score(row, [text, text]).values
            assert one["gold"][domain]["base"][place] == pytest.approx(truth.mean().item(), abs=1e-5)
            best = truth[contrast.score(row).values.argmax()].item()
            assert one["gold"][domain]["best of n"][place] == pytest.approx(best, abs=1e-5)
        assert one["gold"][domain]["base"] == other["gold"][domain]["base"]
    assert Counter(row["against"] for row in document["results"]["categories"]) == {"base": 2 * 5, "grpo": 5}
    page = (tmp_path / "out" / "page.html").read_text()
    assert "In domain, by category" in page
    assert "non_spatial" in page
    runs = list((tmp_path / "out" / "cells").glob("*/iteration-1/result.json"))
    told = [json.loads(run.read_text())["results"]["tuned"]["out of domain"] for run in runs]
    assert [set(scores) for scores in told] == [{"contrast", GOLD}] * 2


def test_categories_by_hand() -> None:
    """The mean over the prompts of a category and all seeds, of the tuned less the base, and of one less another."""

    def record(algorithm: str, seed: int, tuned: list[float | None]) -> dict[str, Any]:
        held = {"algorithm": algorithm, "reward": "r", "generator": "g", "seed": seed, "iterations": 1, "main": True}
        held |= {"config": {"seed": seed}, "experiment": {}, "points": {}, "meter": {"seconds": 1.0}}
        gold = {"away": {"base": [0.25] * 4, "best of n": [0.5] * 4, "tuned": tuned}}
        return {**held, "prompts": {"away": list("abcd")}, "categories": {"away": ["x", "x", "y", ""]}, "gold": gold}

    both = [record("grpo", 0, [0.5, 0.75, 0.0, 1.0]), record("grpo", 1, [0.5, None, 0.5, 1.0])]
    both += [record("dpo", 0, [0.25, 0.25, 0.25, 0.25]), record("dpo", 1, [0.75, 0.25, 0.25, 0.25])]
    study = {"algorithms": ["grpo", "dpo"], "variants": {}, "axes": [], "margin": 0.01}
    found = {(row["algorithm"], row["against"], row["category"]): row for row in analyse(study, both)["categories"]}
    assert {key: (row["mean"], row["clusters"]) for key, row in found.items()} == {
        ("grpo", "base", "x"): (pytest.approx(1 / 3), 2),
        ("grpo", "base", "y"): (0.0, 1),
        ("dpo", "base", "x"): (0.125, 2),
        ("dpo", "base", "y"): (0.0, 1),
        ("dpo", "grpo", "x"): (pytest.approx((0.25 - 0.5 + 0.25 - 0.75 + 0.75 - 0.5) / 3), 2),
        ("dpo", "grpo", "y"): (0.0, 1),
    }
    assert found["grpo", "base", "y"]["low"] is None
    without = [{key: value for key, value in one.items() if key != "categories"} for one in both]
    assert analyse(study, without)["categories"] == []
    shown = domains("shapes.short", train=1, test=4, seed=0).test["out of domain"]
    family = {
        "experiment": {"prompts": "shapes.short", "eval_prompts": 4},
        "prompts": {"away": [p.text for p in shown]},
    }
    again = analyse(study, [one | family for one in without])["categories"]
    assert {row["category"] for row in again} == {prompt.category for prompt in shown}


def test_truth_that_says_nothing_ends_the_run_before_it_learns() -> None:
    """A domain of which no image is measured is named, with its benchmark."""
    toy = runpy.run_path(str(TESTS / "toy_generator.py"))
    prompts = [Prompt("a grey thing")]
    on = Benchmark("nothing", prompts, "nothing", rules=[("nothing",)])

    class Silent(toy["Brightness"]):  # type: ignore[misc]
        def _score(self, images: list[Any], prompts: list[str]) -> torch.Tensor:
            return torch.full([len(images)], torch.nan)

    by = {"away": (on, Judges({}, {"nothing": Silent()}))}
    with pytest.raises(RunFailed, match="nothing measures no image of the domain 'away'"):
        judge(toy["Toy"](), by, {}, images=2, sampling=toy["Toy"].spec.sampling)
    found = judge(
        toy["Toy"](),
        {"away": (on, Judges({}, {"nothing": toy["Brightness"]()}))},
        {},
        images=2,
        sampling=toy["Toy"].spec.sampling,
    )
    assert found["away"].scores[GOLD].shape == (1, 2)


def test_few_prompts_are_spread_over_categories() -> None:
    """Always the same ones, in order; a category that has few gives its turns to the others, and fewer are a part."""
    prompts = [Prompt(str(i), "few" if i < 2 else "many" if i < 10 else "most") for i in range(40)]
    taken = spread(prompts, 11)
    assert taken == sorted(taken)
    assert Counter(prompts[i].category for i in taken) == {"few": 2, "many": 5, "most": 4}
    assert set(spread(prompts, 7)) < set(taken)
    assert spread(prompts, 99) == list(range(40))
    assert any(i >= 20 for i in taken)  # not the first of each


def test_a_reward_measures_any_prompts(tmp_path: Path, rwk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or a family with a reward before it is a benchmark of its mean score."""
    monkeypatch.syspath_prepend(TESTS)
    (tmp_path / "mine.txt").write_text("a red circle\na black cross\na blue ring\n")
    words = ["evaluate", "--generator", "toy_generator:Toy", "--images", "2", "--seeds", "1", "--out"]
    assert rwk(*words, "one", "--benchmark", "contrast:mine.txt").code == 0
    assert rwk(*words, "two", "--benchmark", "mine.txt", "--reward", "contrast").code == 0
    one, two = (
        json.loads((tmp_path / name / "result.json").read_text())["benchmarks"][of]["scores"]
        for name, of in (("one", "contrast:mine.txt"), ("two", "mine.txt"))
    )
    assert one == two
    family = judged_on(["away=contrast:shapes.short.test"], 6)["away"]
    assert (len(family.prompts), set(family.rules)) == (6, {("contrast",)})
    assert judged_on(["away=shapes.short"], 100)["away"].prompts == benchmark("shapes.short", 100).prompts


def test_a_run_is_judged_on_what_is_named(tmp_path: Path, rwk: Any) -> None:
    """Its domains are those named, with the truth of each; the page shows where the reward is fooled, and why."""
    ShapesLlama.tiny().save(tmp_path / "small")
    words = [
        "--generator",
        "small",
        "--prompt-count",
        "8",
        "--group-size",
        "4",
        "--prompts-per-step",
        "2",
        "--steps",
        "1",
    ]
    words += ["--reward", "contrast", "--judge-on", "held out=shapes.long.held_out", "--eval-images", "2"]
    words += ["--judge-on", "sharp=sharpness:shapes.short.test", "--eval-prompts", "3", "--save-every", "0"]
    ended = rwk("optimize", "--algo", "grpo", *words, "--out", "run", "--json")
    assert ended.code == 0, ended.err
    base = json.loads(ended.out)["results"]["base"]
    assert list(base) == ["held out", "sharp"]
    assert {tuple(scores) for scores in base.values()} == {("contrast", GOLD)}
    generator = ShapesLlama.from_folder(tmp_path / "small")
    texts = [prompt.text for prompt in judged_on(["a=sharpness:shapes.short.test"], 3)["a"].prompts]
    images = generator.decode(generator.sample(texts, per_prompt=2, seed=JUDGED_SEED).tokens)
    assert base["sharp"][GOLD]["mean"] == pytest.approx(load("sharpness").score(images).values.mean().item(), rel=1e-4)
    page = (tmp_path / "run" / "page.html").read_text()
    assert "Where the reward is fooled" in page
    seen = generator.decode(generator.sample([held_out()], per_prompt=2, seed=JUDGED_SEED).tokens)
    why = load("shapes.verifier").score(seen, [held_out()] * 2).notes[0]
    assert why
    assert why in page


def test_judges_do_not_lie_beside_what_learns(tmp_path: Path) -> None:
    """Rewards of a benchmark are there while it judges, before and after, and not while the generator learns."""
    ShapesLlama.tiny().save(tmp_path / "small")
    experiment = Experiment(
        generator=str(tmp_path / "small"),
        rewards=("contrast",),
        prompt_count=8,
        eval_prompts=2,
        eval_images=1,
        judge_on=("sharp=sharpness:shapes.short.test",),
    )
    judges: weakref.WeakSet[Sharpness] = weakref.WeakSet()
    scored, learning = [], []
    score = Sharpness._score

    def seen(reward: Sharpness, images: list[Any], prompts: list[str]) -> Any:
        judges.add(reward)
        scored.append(len(images))
        return score(reward, images, prompts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sharpness, "_score", seen)
        optimize(
            experiment,
            Grpo(steps=2, prompts_per_step=2, group_size=4, save_every=0, kl_every=0),
            out=tmp_path / "run",
            progress=lambda *_: learning.append(len(judges)),
        )
    assert scored == [2, 2]
    assert learning == [0, 0]


def test_a_judge_that_is_watched_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies beside what learns anyhow, so the same one judges before and after."""
    ShapesLlama.tiny().save(tmp_path / "small")
    scored, score = [], Sharpness._score

    def seen(reward: Sharpness, images: list[Any], prompts: list[str]) -> Any:
        scored.append(reward)
        return score(reward, images, prompts)

    monkeypatch.setattr(Sharpness, "_score", seen)
    few = {"prompt_count": 8, "eval_prompts": 2, "eval_images": 1, "watch": "sharpness", "watch_prompts": 2}
    experiment = Experiment(
        generator=str(tmp_path / "small"),
        rewards=("contrast",),
        judge_on=("sharp=sharpness:shapes.short.test",),
        **few,  # type: ignore[arg-type]
    )
    algorithm = Grpo(steps=1, prompts_per_step=2, group_size=4, save_every=0, kl_every=0, watch_every=1)
    optimize(experiment, algorithm, out=tmp_path / "run")
    assert len(scored) == 4  # judged, looked at twice, judged
    assert len({*map(id, scored)}) == 1


def held_out() -> str:
    """The first prompt of a benchmark of the world."""
    return benchmark("shapes.long.held_out", 3).prompts[0].text


def test_what_is_looked_at_and_learnt_from_is_not_judged_on(tmp_path: Path) -> None:
    """Of a file every fifth that is left is for looking; a family's looks are at others of its test prompts."""
    file = tmp_path / "learn.txt"
    file.write_text("\n".join(f"prompt {i}" for i in range(20)))
    held = {"away": [Prompt("prompt 3"), Prompt("prompt 5")]}
    found = domains(str(file), train=99, test=9, seed=0, watch=2, judged=held)
    assert [prompt.text for prompt in found.watch] == ["prompt 0", "prompt 7"]
    assert len(found.train) == 16
    assert found.test == held
    judged = benchmark("shapes.long", 6).prompts
    world = domains("shapes.long", train=20, test=9, seed=0, watch=5, judged={"in domain": judged})
    assert (len(world.train), len(world.watch)) == (20, 5)
    assert not {*judged} & {*world.watch, *world.train}
    file.write_text("prompt 3\nprompt 5")
    with pytest.raises(ValueError, match=r"learn.txt must hold a prompt that is not judged on, got none"):
        domains(str(file), train=99, test=9, seed=0, judged=held)


def test_a_world_may_be_judged_on_its_benchmarks() -> None:
    """A family with entries of its own is accepted, and its cells differ from those without."""
    plain = Study(seeds=1)
    other = replace(plain, settings={"judge_on": ["held out=shapes.long.held_out"]})
    assert {cell.digest for cell in cells(plain)}.isdisjoint(cell.digest for cell in cells(other))
    assert cells(other)[0].plan().judged == 2 * 60 * 4
    assert "judge_on" not in Experiment().document()  # else what was run before there was any would be run again
    assert {"judge_on", "gold", "judge"} < set(cells(other)[0].experiment.document())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--judge-on", "geneval"], "judge_on takes DOMAIN=BENCHMARK, got 'geneval'"),
        (["--judge-on", "=geneval"], "judge_on takes DOMAIN=BENCHMARK, got '=geneval'"),
        (["--judge-on", "a=geneval", "--judge-on", "a=shapes.long"], "names each domain once, got 'a' 2 times"),
        (["--judge-on", "a=genevil"], "a benchmark is a file of prompts or one of geneval, .* got 'genevil'"),
        (["--judge-on", "a=geneval:none.jsonl"], "GenEval needs its file evaluation_metadata.jsonl, got none.jsonl"),
        (["--judge-on", "a=learn.txt"], "nothing measures the prompts of learn.txt for a; name it as REWARD:learn.txt"),
        (["--judge-on", "a=nobody:learn.txt"], "'nobody'"),
        (["--judge-on", "a=shapes.long", "--gold", "b@c"], "a benchmark needs, of shapes.verifier, got b@c"),
        (["--gold", "b@c"], "gold is of a benchmark to judge on, got b@c and none"),
    ],
)
def test_what_cannot_be_judged_on_is_refused(tmp_path: Path, rwk: Any, words: list[str], said: str) -> None:
    """In one sentence, before anything is drawn or written; a study refuses it before any cell is run."""
    (tmp_path / "learn.txt").write_text("\n".join(f"a red circle of kind {i}" for i in range(6)))
    ended = rwk("optimize", "--algo", "grpo", "--out", "run", *words)
    assert ended.code == 2
    (line,) = [line for line in ended.err.splitlines() if not line.endswith("so far")]
    assert re.search(said, line)
    assert not (tmp_path / "run").exists()


def test_a_study_refuses_it_too() -> None:
    """By the same sentence, where its cells are made."""
    with pytest.raises(ValueError, match="truth is known, got learn.txt; name a family, or benchmarks to judge on"):
        cells(Study(settings={"prompts": "learn.txt"}))
    with pytest.raises(ValueError, match="got 'genevil'"):
        cells(Study(match="none", settings={"judge_on": ["a=genevil"]}))
    assert Experiment(judge_on=("in domain = shapes.long",)).judge_on == ("in domain = shapes.long",)

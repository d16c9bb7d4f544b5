"""Benchmarks of a generator, and `rwk evaluate`."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.shapes_prompts import understand
from rwk.adapters.shapes_world import HELD_OUT
from rwk.policy_opt import benchmarks
from rwk.policy_opt.benchmarks import measure
from rwk.policy_opt.evaluate import GOLD, JUDGED_SEED, clustered, draw
from rwk.policy_opt.experiment import Evaluation
from rwk.policy_opt.judging import Judges
from rwk.policy_opt.measured import SIMILARITY, Measured, tabulated
from rwk.policy_opt.prompts import Prompt, read_prompts
from rwk.policy_opt.similarity import features, similarity
from rwk.policy_opt.suites import BENCHMARKS, Benchmark, benchmark

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness = toy["Toy"], toy["Brightness"]
GREY = Benchmark("grey", [Prompt(text, "even" if i % 2 == 0 else "odd") for i, text in enumerate(toy["PROMPTS"])], None)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small random generator."""
    folder = tmp_path_factory.mktemp("generator") / "small"
    ShapesLlama.tiny().save(folder)
    return str(folder)


def strict(path: Path) -> Any:
    """The document of a file in standard JSON, which has no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_benchmarks_hold_no_prompt_to_learn_from() -> None:
    """Four sets of 60 prompts, always the same and never learnt from; held-out ones name a held-out pair."""
    learnt = {prompt.text for family in ("shapes.long", "shapes.short") for prompt in read_prompts(family, count=200)}
    for name, (_, held_out) in BENCHMARKS.items():
        found = benchmark(name)
        texts = {prompt.text for prompt in found.prompts}
        assert len(texts) == 60
        assert not texts & learnt
        assert found == benchmark(name)
        assert found.gold == "shapes.verifier"
        pairs = [{(c.color, c.shape) for c in understand(text).clauses} & HELD_OUT for text in texts]
        assert all(pairs) if held_out else not any(pairs)


def test_digest_is_of_prompts_order_and_categories() -> None:
    """Whatever changes a result by prompt or category changes it; the name does not."""
    a, b = Prompt("a", "x"), Prompt("b", "y")
    digests = [Benchmark("n", part, None).digest() for part in ([a, b], [b, a], [a], [a, b._replace(category="x")])]
    assert len(set(digests)) == 4
    assert Benchmark("m", [a, b], "gold").digest() == digests[0]


def test_a_file_is_a_benchmark_without_truth(tmp_path: Path) -> None:
    """A prompt that comes twice counts once; more than there are, and what is no file, are refused."""
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,category\na,x\nb,y\na,y\n")
    assert benchmark(str(path)) == Benchmark(str(path), [Prompt("a", "x"), Prompt("b", "y")], None)
    assert benchmark(str(path), 1).prompts == [Prompt("a", "x")]
    with pytest.raises(ValueError, match="holds 2 different prompts, got 3"):
        benchmark(str(path), 3)
    with pytest.raises(ValueError, match="or one of geneval, .*, shapes.long, shapes.long.held_out"):
        benchmark("shapes.longer")


def test_similarity_is_a_correlation_of_what_images_look_like() -> None:
    """1 for equal images of any size and brightness and for flat ones, -1 for opposites, 0 for flat and other."""
    half = Image.new("RGB", (48, 48), (200, 200, 200))
    half.paste((100, 100, 100), (0, 0, 24, 48))
    other = half.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    darker = half.point(lambda value: value - 50)
    flat, black = Image.new("L", (9, 7), 90), Image.new("RGB", (48, 48))

    def alike(*images: Image.Image) -> float:
        return similarity(features(images)[None]).item()

    assert alike(half, half.resize((96, 96), Image.Resampling.NEAREST)) == pytest.approx(1)
    assert alike(half, darker) == pytest.approx(1)
    assert alike(half, other) == pytest.approx(-1)
    assert alike(half, flat) == 0
    assert alike(flat, black) == 1
    assert alike(half, half, other) == pytest.approx((1 - 1 - 1) / 3)
    assert math.isnan(alike(half))


def test_scores_are_those_of_every_seed_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """[P, S, n] scores and [P] similarities equal those of each seed's own draw, however many are drawn at once."""
    found = measure(Toy(), GREY, {"bright": Brightness()}, images=3, seeds=[4, 9])
    assert found.scores["bright"].shape == (24, 2, 3)
    drawn = [draw(Toy(), GREY.prompts, {"bright": Brightness()}, per_prompt=3, seed=seed) for seed in (4, 9)]
    for place, one in enumerate(drawn):
        assert torch.equal(found.scores["bright"][:, place], one.scores["bright"])
    looks = features([*drawn[0].images[5], *drawn[1].images[5]])
    expected = torch.corrcoef(looks)[torch.ones(6, 6).triu(1).bool()].mean()  # the toy's images are grey
    assert found.similarity[5].item() == pytest.approx(expected.item(), abs=1e-5)
    counted: list[int] = []
    monkeypatch.setattr(benchmarks, "_AT_ONCE", 15)
    parts = measure(Toy(), GREY, {"bright": Brightness()}, images=3, seeds=[4, 9], progress=counted.append)
    assert torch.equal(parts.scores["bright"], found.scores["bright"])
    torch.testing.assert_close(parts.similarity, found.similarity)
    assert sum(counted) == 24 * 2 * 3
    assert len(counted) == 10


def test_intervals_are_clustered_by_prompt_over_all_seeds() -> None:
    """Six images of a prompt are one cluster; a category has its own prompts alone."""
    found = measure(Toy(), GREY, {"bright": Brightness()}, images=3, seeds=[4, 9])
    flat = found.scores["bright"].flatten(1)
    assert found.interval("bright") == clustered(flat)
    assert found.interval("bright").clusters == 24
    assert found.interval("bright", "odd") == clustered(flat[1::2])
    assert found.interval(SIMILARITY, "even") == clustered(found.similarity[::2, None])
    assert found.categories("bright") == ["even", "odd"]
    document = found.document()["scores"]["bright"]
    assert document["seeds"] == pytest.approx([flat[:, :3].mean().item(), flat[:, 3:].mean().item()])
    assert document["categories"]["odd"]["mean"] == pytest.approx(flat[1::2].mean().item())


def test_what_is_missing_is_counted_and_not_averaged(tmp_path: Path) -> None:
    """An image without a score is left out, a score that nothing has is null, and one image has no similarity."""
    scores = torch.tensor([[[0.25, math.nan]], [[0.75, math.nan]]])
    two = Benchmark("two", GREY.prompts[:2], None)
    none = torch.full_like(scores, math.nan)
    found = Measured(two, {"some": scores, "none": none}, torch.full([2], math.nan))
    document = {"recipe": {"seeds": [3], "images": 2}, "benchmarks": {"two": found.document()}}
    benchmarks.write(tmp_path / "out", [found], document)
    held = strict(tmp_path / "out" / "result.json")["benchmarks"]["two"]["scores"]
    assert (held["some"]["mean"], held["some"]["missing"], held["some"]["prompts"]) == (0.5, 2, 2)
    assert (held["none"]["mean"], held["none"]["missing"], held["none"]["prompts"]) == (None, 4, 0)
    assert held["similarity"]["mean"] is None
    heads, lines = tabulated([found])
    assert heads == ["benchmark", "some", "none", SIMILARITY]
    assert [line[0] for line in lines] == ["two", "  even", "  odd"]
    assert lines[0][2:] == ["none", "none"]
    assert lines[1][1] == "0.25"  # one prompt has no interval
    images = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [row["some"] for row in images] == [0.25, None, 0.75, None]
    assert images[2] == {"benchmark": "two", "text": two.prompts[1].text, "category": "odd", "seed": 3, "place": 0} | {
        "some": 0.75,
        "none": None,
    }


def test_gold_accuracy_is_the_share_of_images_that_are_wholly_right() -> None:
    """Of the world's benchmarks the truth is measured unasked: its mean, and how often it is 1."""
    generator = ShapesLlama()
    chosen = benchmark("shapes.short", 4)
    config = Evaluation(images=4, seeds=1)
    from rwk.adapters.shapes_verifier import Verifier

    rewards = [Judges({"shapes.verifier": Verifier()}, {})]
    (found,), document = benchmarks.evaluate(
        config, generator, [chosen], rewards, generator.spec.sampling, seed=2, progress=lambda *_: None
    )
    share = found.scores["shapes.verifier"]
    assert list(found.scores) == [GOLD, "shapes.verifier"]
    assert torch.equal(found.scores[GOLD], (share == 1).float())
    assert 0 < found.scores[GOLD].mean() < share.mean() < 1
    assert document["recipe"]["seeds"] == [JUDGED_SEED + 2]


def test_weights_are_known_by_their_digest() -> None:
    """It changes with any weight, and not with where the generator was saved."""
    generator = Toy()
    before = benchmarks.weights_digest(generator)
    assert before == benchmarks.weights_digest(Toy())
    with torch.no_grad():
        generator.module.head.bias[3] += 1e-3
    assert benchmarks.weights_digest(generator) != before


def test_evaluate_writes_numbers_and_their_recipe(rwk: Any, small: str, tmp_path: Path) -> None:
    """The folder holds all that the numbers depend on; the same call gives the same numbers, another seed others."""
    words = ["evaluate", "--generator", small, "--benchmark", "shapes.long", "--benchmark", "shapes.short.held_out"]
    words += ["--reward", "colorfulness", "--prompts", "4", "--images", "2", "--seeds", "2", "--top-k", "100"]
    ended = rwk(*words, "--json", "--seed", "7")
    assert ended.code == 0, ended.err
    held = strict(tmp_path / "runs" / "evaluate-1" / "result.json")
    assert json.loads(ended.out) == {"folder": "runs/evaluate-1", **held}
    recipe = held["recipe"]
    assert recipe["sampling"] == {"guidance": 1.0, "temperature": 0.8, "top_k": 100, "top_p": 1.0, "mode": "matched"}
    assert recipe["seeds"] == [JUDGED_SEED + 7, JUDGED_SEED + 8]
    assert (recipe["generator"], recipe["images"]) == (small, 2)
    assert {"python", "torch", "transformers", "rwk"} <= set(recipe["versions"])
    assert recipe["weights_sha256"] == benchmarks.weights_digest(ShapesLlama.tiny())
    assert list(recipe["rewards"]) == ["shapes.verifier", "colorfulness"]
    assert list(held["benchmarks"]) == ["shapes.long", "shapes.short.held_out"]
    long = held["benchmarks"]["shapes.long"]
    assert long["prompts_sha256"] == benchmark("shapes.long", 4).digest()
    assert list(long["scores"]) == [GOLD, "shapes.verifier", "colorfulness", SIMILARITY]
    assert list(long["scores"]["colorfulness"]["categories"]) == ["color", "shape", "size", "numeracy"]
    assert len((tmp_path / "runs" / "evaluate-1" / "scores.jsonl").read_text().splitlines()) == 2 * 4 * 2 * 2
    again = rwk(*words, "--seed", "7")
    assert "shapes.short.held_out" in again.out
    assert "  numeracy" in again.out
    assert strict(tmp_path / "runs" / "evaluate-2" / "result.json") == held
    assert rwk(*words, "--seed", "8", "--out", "other").code == 0
    means = [
        h["benchmarks"]["shapes.long"]["scores"]["colorfulness"] for h in (held, strict(tmp_path / "other/result.json"))
    ]
    assert means[0]["seeds"][1] == means[1]["seeds"][0]
    assert means[0]["mean"] != means[1]["mean"]


def test_any_reward_is_a_benchmark_over_a_file(rwk: Any, small: str, tmp_path: Path) -> None:
    """A file of prompts is judged by the rewards that are named, and has no gold."""
    (tmp_path / "mine.txt").write_text("a red circle\na black cross\na blue ring\n")
    words = ["--generator", small, "--benchmark", "mine.txt", "--images", "2", "--seeds", "1", "--out", "out"]
    assert rwk("evaluate", *words, "--reward", "contrast").code == 0
    held = strict(tmp_path / "out" / "result.json")["benchmarks"]["mine.txt"]
    assert list(held["scores"]) == ["contrast", SIMILARITY]
    assert held["prompts"] == held["scores"]["contrast"]["prompts"] == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--benchmark", "genevil"], "a benchmark is a file of prompts or one of geneval"),
        (["--benchmark", "mine.txt"], "mine.txt has no reward that tells the truth; name one"),
        (["--benchmark", "shapes.long", "--benchmark", "shapes.long"], "named once, got shapes.long 2 times"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--images", "0"], "--images must be at least 1, got 0"),
        (["--prompts", "0"], "--prompts must be at least 1, got 0"),
        (["--reward", "nobody"], "'nobody'"),
        (["--out", "full"], "full holds results already"),
        (["--benchmark", "mine.txt", "--prompts", "2"], "mine.txt holds 1 different prompts, got 2"),
    ],
)
def test_a_wrong_call_is_one_line(rwk: Any, small: str, tmp_path: Path, options: list[str], said: str) -> None:
    """It ends with exit code 2 and a sentence before anything is drawn or written."""
    (tmp_path / "mine.txt").write_text("a red circle\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "result.json").write_text("{}")
    ended = rwk("evaluate", "--generator", small, *options)
    assert ended.code == 2
    assert said in ended.err
    assert len([line for line in ended.err.splitlines() if not line.endswith("so far")]) == 1
    assert not (tmp_path / "runs").exists()

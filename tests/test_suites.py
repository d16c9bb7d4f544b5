"""GenEval, T2I-CompBench++ and DPG-Bench as benchmarks, end to end on small checkpoints in the published layouts."""

from __future__ import annotations

import json
import math
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.adapters.geneval import Geneval
from rwk.adapters.geneval_prompts import records
from rwk.adapters.geneval_rules import TAGS
from rwk.adapters.vlm import tiny_vlm
from rwk.calibration.statistics import cluster_se
from rwk.calibration.storage import Binding
from rwk.policy_opt.evaluate import GOLD, balanced, clustered
from rwk.policy_opt.measured import ANY, Measured, tabulated
from rwk.policy_opt.prompts import Prompt
from rwk.policy_opt.suites import COMPBENCH, Benchmark, benchmark
from rwk.rewards.registry import load, names

TESTS = Path(__file__).parent
CASE = runpy.run_path(str(TESTS / "suites_case.py"))
DPG = TESTS / "parity" / "dpg_bench.csv"
FILES = {
    "color_val": "a green bench and a red car\na blue bowl and a pink car",
    "spatial_val": "a dog near a key\na cow on the left of a key",
    "numeracy_val": "two dogs\nthree keys and one cow",
    "non_spatial_val": "A couple is stargazing in a field.\nA man is reading.",
    "complex_val": "The cat sat next to the blue dog.\nThe red hat was near the mug.\nThe old ship sank in the sea.",
    "complex_val_spatial": "the red hat was near the mug.",
    "complex_val_action": "The old ship sank in the sea.",
    "3d_spatial_val": "a girl behind a desk",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prompts in T2I-CompBench's files."""
    path = tmp_path / "dataset"
    path.mkdir()
    for stem, text in FILES.items():
        (path / f"{stem}.txt").write_text(text + "\r\n")
    return path


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `toy_generator:Toy`, which draws any prompt, a name of a generator."""
    monkeypatch.syspath_prepend(TESTS)


def result(rwk: Any, folder: Path, *words: str) -> Any:
    """What a run of the command writes with the toy generator."""
    ended = rwk("evaluate", "--generator", "toy_generator:Toy", "--out", str(folder), *words, "--json")
    assert ended.code == 0, ended.err
    held = json.loads((folder / "result.json").read_text())
    assert json.loads(ended.out) == {"folder": str(folder), **held}
    return held


def test_geneval_is_written_or_read(tmp_path: Path) -> None:
    """As many prompts of each category are always the same ones; a metadata file gives its own, each once."""
    found = benchmark("geneval", 3)
    assert Counter(prompt.category for prompt in found.prompts) == dict.fromkeys(TAGS, 3)
    assert found == benchmark("geneval", 3)
    assert len(benchmark("geneval").prompts) == 480
    file = tmp_path / "evaluation_metadata.jsonl"
    lines = [json.dumps(record) for record in records(4, seed=7)]
    file.write_text("\n".join([*lines, lines[0]]))
    read = benchmark(f"geneval:{file}")
    assert [tuple(prompt) for prompt in read.prompts] == [(r["prompt"], r["tag"]) for r in records(4, seed=7)]
    assert Counter(prompt.category for prompt in benchmark(f"geneval:{file}", 2).prompts) == dict.fromkeys(TAGS, 2)
    assert (read.gold, read.options) == ("geneval.strict", {"metadata": file})


def test_compbench_has_a_rule_for_every_prompt(folder: Path) -> None:
    """A category's prompts are judged by its rewards, a complex one by those of the file that it is in."""
    found = benchmark(f"compbench:{folder}")
    rules = dict(zip((prompt.text for prompt in found.prompts), found.rules, strict=True))
    blip, places, clip = COMPBENCH["complex"]
    assert rules["a dog near a key"] == (places,)
    assert rules["A man is reading."] == (clip,)
    assert rules["The red hat was near the mug."] == (blip, places)
    assert rules["The old ship sank in the sea."] == (blip, clip)
    assert rules["The cat sat next to the blue dog."] == (blip, places, clip)
    assert {prompt.category for prompt in found.prompts} == set(COMPBENCH) - {"shape", "texture"}
    assert len(benchmark(f"compbench:{folder}", 1).prompts) == 6
    assert {name for rule in COMPBENCH.values() for name in rule} <= set(names())


def test_digests_tell_questions_apart(tmp_path: Path) -> None:
    """Another question under the same prompts is another benchmark."""
    file = tmp_path / "dpg.csv"
    file.write_text(DPG.read_text().replace("Are there cats?", "Are there any cats?"))
    one, other = benchmark(f"dpg:{DPG}"), benchmark(f"dpg:{file}")
    assert one.prompts == other.prompts
    assert one.digest() != other.digest()
    assert len(benchmark(f"dpg:{DPG}", 1).questions[0]) == 5


def test_the_mean_of_categories_has_their_errors() -> None:
    """Mean and variance are those of independent means of prompts; a wide gap between categories is no error."""
    scores = torch.tensor([[0.0, 0.2], [0.4, 0.2], [0.9, 1.0], [0.8, 1.0], [1.0, math.nan]])
    categories = ["a", "a", "b", "b", "b"]
    found = balanced(scores, categories)
    a, b = clustered(scores[:2]), clustered(scores[2:])
    assert found.mean == pytest.approx((a.mean + b.mean) / 2)
    errors = [cluster_se([0, 0.2, 0.4, 0.2], [0, 0, 1, 1]), cluster_se([0.9, 1, 0.8, 1, 1], [0, 0, 1, 1, 2])]
    spread = sum(error**2 for error in errors)
    free = spread**2 / (errors[0] ** 4 / 1 + errors[1] ** 4 / 2)
    from scipy.stats import t

    assert found.high - found.mean == pytest.approx(t.ppf(0.975, free) * math.sqrt(spread) / 2)
    assert found.clusters == 5
    assert balanced(scores[:2], ["a", "a"]) == pytest.approx(a)
    assert math.isnan(balanced(scores[:3], categories[:3]).low)
    assert balanced(torch.ones(4, 2), ["a", "a", "b", "b"])[:3] == (1, 1, 1)
    assert balanced(torch.tensor([[1.0], [0.5], [math.nan]]), ["a", "a", "b"]).mean == 0.75


def test_figures_of_geneval_are_the_published_ones() -> None:
    """The figure is the mean over categories, beside the share of images, and of prompts with one right image."""
    prompts = [Prompt("a", "counting"), Prompt("b", "counting"), Prompt("c", "counting"), Prompt("d", "position")]
    right = torch.tensor([[[1.0, 0, 0, 0]], [[0.0, 0, 0, 0]], [[1.0, 1, 1, 1]], [[1.0, 0, 1, math.nan]]])
    chosen = Benchmark("geneval", prompts, "geneval.strict", balanced=True)
    from rwk.policy_opt.benchmarks import _accuracies

    shares = _accuracies(chosen, {"geneval.strict": right}, {"geneval.strict": Geneval.tiny()})
    found = Measured(chosen, shares | {"geneval.strict": right}, torch.full([4], math.nan))
    assert found.interval("geneval.strict").mean == pytest.approx((5 / 12 + 2 / 3) / 2)
    assert found.interval(GOLD).mean == pytest.approx(7 / 15)
    assert found.interval(ANY).mean == pytest.approx(3 / 4)
    assert found.interval(ANY, "counting").mean == pytest.approx(2 / 3)
    assert found.document()["scores"]["geneval.strict"]["seeds"] == [pytest.approx((5 / 12 + 2 / 3) / 2)]


@pytest.mark.usefixtures("toy")
def test_geneval_runs_on_published_layouts(rwk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With written prompts or a metadata file, six categories and three figures come from weights in a folder."""
    gold = CASE["geneval_weights"](tmp_path / "geneval", monkeypatch)
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in records(1, seed=5)))
    words = ["--benchmark", "geneval", "--benchmark", f"geneval:{file}", "--gold", gold]
    words += ["--prompts", "1", "--images", "2", "--seeds", "1", "--reward", "contrast"]
    held = result(rwk, tmp_path / "out", *words)
    assert list(held["benchmarks"]) == ["geneval", f"geneval:{file}"]
    for one in held["benchmarks"].values():
        assert list(one["scores"]) == [GOLD, ANY, "geneval.strict", "contrast", "similarity"]
        assert list(one["scores"]["geneval.strict"]["categories"]) == list(TAGS)
        assert one["scores"]["geneval.strict"]["missing"] == 0
    digests = {name: card["weights_sha256"] for name, card in held["recipe"]["rewards"].items()}
    assert digests["geneval.strict"] == Binding.of(load(gold)).weights_sha256
    assert digests["geneval.strict"] != digests["contrast"]


@pytest.mark.usefixtures("toy")
def test_compbench_runs_on_published_layouts(
    rwk: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each category's score is the mean of its rewards' own, and all their weights are in the recipe."""
    golds = [CASE[f"{name}_weights"](tmp_path / name, monkeypatch) for name in ("blip", "clip")]
    golds += CASE["detector_weights"](tmp_path / "detector", monkeypatch)
    words = [word for name in golds for word in ("--gold", name)]
    words += ["--benchmark", f"compbench:{folder}", "--images", "2", "--seeds", "2", "--reward", "clipscore.b32_cosine"]
    held = result(rwk, tmp_path / "out", *words)
    one = held["benchmarks"][f"compbench:{folder}"]
    assert list(one["scores"]) == ["compbench", "clipscore.b32_cosine", "similarity"]
    categories = one["scores"]["compbench"]["categories"]
    assert list(categories) == ["color", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex"]
    assert one["scores"]["compbench"]["mean"] == pytest.approx(sum(c["mean"] for c in categories.values()) / 6)
    assert categories["non_spatial"] == one["scores"]["clipscore.b32_cosine"]["categories"]["non_spatial"]
    assert {tuple(rule["mean_of"]) for rule in one["rules"] if rule["category"] == "complex"} == {
        COMPBENCH["complex"],
        COMPBENCH["complex"][:2],
        COMPBENCH["complex"][::2],
    }
    assert set(held["recipe"]["rewards"]) == {name.partition("@")[0] for name in golds}
    rows = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    from toy_generator import Toy  # type: ignore[import-not-found]

    row = next(row for row in rows if row["text"].startswith("The old ship"))
    drawn = Toy().decode(Toy().sample([row["text"]], per_prompt=2, seed=row["seed"]).tokens)[row["place"]]
    parts = [load(name).score([drawn], [row["text"]]).values.item() for name in golds[:2]]
    assert row["compbench"] == pytest.approx(sum(parts) / 2, abs=1e-5)


@pytest.mark.usefixtures("toy")
def test_dpg_runs_through_a_judge(rwk: Any, tmp_path: Path) -> None:
    """Questions are answered by a vision-language model in a folder; categories are of questions, and only of gold."""
    vlm = tiny_vlm("judge")
    vlm.network.save_pretrained(tmp_path / "judge")
    vlm.processor.save_pretrained(tmp_path / "judge")
    words = ["--benchmark", f"dpg:{DPG}", "--judge", f"judge.question@{tmp_path / 'judge'}", "--reward", "contrast"]
    held = result(rwk, tmp_path / "out", *words, "--images", "2", "--seeds", "2")
    one = held["benchmarks"][f"dpg:{DPG}"]
    assert list(one["scores"]) == ["dpg", "contrast", "similarity"]
    assert list(one["scores"]["dpg"]["categories"]) == ["entity", "attribute", "relation", "global", "other"]
    assert one["scores"]["contrast"]["categories"] == {}
    assert one["scores"]["dpg"]["prompts"] == 2
    assert list(held["recipe"]["rewards"]) == ["contrast", f"judge.question@{tmp_path / 'judge'}"]


def test_categories_of_questions_pool_their_answers() -> None:
    """A category's figure is the share of yes among all its answers, whatever hangs on them, clustered by prompt."""
    chosen = benchmark(f"dpg:{DPG}")
    answers = [torch.tensor([[[0.0, 1, 1, 1, 1]], [[1.0, 1, 1, 0, 1]]]), torch.tensor([[[1.0, 0, 1]], [[1.0, 1, 1]]])]
    scores = torch.tensor([[[0.2], [0.6]], [[0.333], [1.0]]])
    found = Measured(chosen, {"dpg": scores}, torch.full([2], math.nan), answers)
    entity = found.interval("dpg", "entity")
    assert (entity.mean, entity.clusters) == (pytest.approx(4 / 6), 2)
    assert found.interval("dpg", "relation")[:2] == (0.5, pytest.approx(math.nan, nan_ok=True))
    heads, lines = tabulated([found])
    assert heads == ["benchmark", "dpg", "similarity"]
    assert [line[0] for line in lines] == [chosen.name, *(f"  {c}" for c in found.categories("dpg"))]
    assert all(line[2] == "" for line in lines[1:])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--benchmark", "geneval:none.jsonl"], "GenEval needs its file evaluation_metadata.jsonl, got none.jsonl"),
        (
            ["--benchmark", "compbench:none"],
            "a folder of its prompts such as color_val.txt, got none",
        ),
        (["--benchmark", "compbench:half"], "need complex_val_action.txt beside complex_val.txt"),
        (["--benchmark", "dpg:none"], "DPG-Bench needs its file dpg_bench.csv, got none"),
        (["--benchmark", "geneval", "--prompts", "81"], "per_category must be 1 to 80, got 81"),
        (["--benchmark", "shapes.long", "--gold", "a@b"], "needs, of shapes.verifier, got a@b"),
        (["--gold", "a@b", "--gold", "a@b"], "each --gold is named once"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_a_wrong_call_is_one_line(rwk: Any, tmp_path: Path, options: list[str], said: str) -> None:
    """It ends with exit code 2 and a sentence that says what is missing."""
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "complex_val.txt").write_text("The red hat was near the mug.")
    ended = rwk("evaluate", "--generator", "toy_generator:Toy", *options)
    assert ended.code == 2
    assert said in ended.err
    assert len([line for line in ended.err.splitlines() if not line.endswith("so far")]) == 1

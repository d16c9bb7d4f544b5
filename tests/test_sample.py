"""`rwk sample`: what it writes, the best of n, and what it refuses."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt.experiment import Drawing
from rwk.policy_opt.sample import sample_to_folder

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness = toy["Toy"], toy["Brightness"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small random generator."""
    folder = tmp_path_factory.mktemp("generator") / "small"
    ShapesLlama.tiny().save(folder)
    return str(folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_what_is_drawn_can_be_scored(rwk: Any, small: str, tmp_path: Path) -> None:
    """A prompt has as many images as asked; the manifest names them, and `rwk score` reads it."""
    ended = rwk("sample", "--generator", small, "--count", "3", "--per-prompt", "2", "--guidance", "3", "--json")
    assert ended.code == 0, ended.err
    written = rows(tmp_path / "samples")
    assert [row["image"] for row in written] == [f"{i:05d}-{j}.png" for i in range(3) for j in range(2)]
    assert len({row["prompt"] for row in written}) == 3
    assert all(set(row) == {"image", "prompt", "category"} and row["category"] for row in written)
    recipe = json.loads((tmp_path / "samples" / "recipe.json").read_text())
    assert json.loads(ended.out) == recipe
    assert (recipe["prompts"], recipe["images"], recipe["sampling"]["guidance"]) == (3, 6, 3.0)
    assert recipe["versions"]["rwk"]
    scored = rwk("score", "samples/manifest.jsonl", "--reward", "shapes.verifier", "--json")
    assert scored.code == 0, scored.err


def test_the_best_of_those_that_would_be_drawn_are_kept(rwk: Any, small: str, tmp_path: Path) -> None:
    """With --best-of the kept images are files of the plain drawing, those with the highest scores, best first."""
    prompts = ["--generator", small, "--prompt", "a red circle", "--prompt", "a black cross", "--seed", "5"]
    assert rwk("sample", *prompts, "--per-prompt", "5", "--out", "all").code == 0
    best = rwk("sample", *prompts, "--best-of", "5", "--by", "colorfulness", "--out", "best", "--per-prompt", "2")
    assert best.code == 0, best.err
    assert "the best of 5 each by colorfulness" in best.err
    scored = json.loads(rwk("score", "all/manifest.jsonl", "--reward", "colorfulness", "--json").out)
    values = [row["colorfulness"] for row in scored["rows"]]
    kept = rows(tmp_path / "best")
    assert len(kept) == 4
    for index, row in enumerate(kept):
        scores = values[index // 2 * 5 :][:5]
        assert row["scores"] == pytest.approx(scores)
        assert row["score"] == pytest.approx(sorted(scores, reverse=True)[index % 2])
        assert row["drawn"] == 5
        assert row["image"] == f"{index // 2:05d}-{row['scores'].index(row['score'])}.png"
        same = (Image.open(tmp_path / folder / row["image"]).tobytes() for folder in ("all", "best"))
        assert len(set(same)) == 1
    recipe = json.loads((tmp_path / "best" / "recipe.json").read_text())
    assert (recipe["best_of"], recipe["by"], recipe["drawn"], recipe["images"]) == (5, "colorfulness", 10, 4)


def test_one_image_is_kept_where_nothing_is_said() -> None:
    """Of the best of n one, and else four."""
    assert Drawing().kept == 4
    assert Drawing(best_of=8, by="colorfulness").kept == 1
    assert Drawing(best_of=8, by="colorfulness", per_prompt=3).kept == 3


def test_images_without_a_score_are_counted_and_not_chosen(tmp_path: Path) -> None:
    """The manifest has null for them, the recipe their number, and one is kept only where all have none."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a grey thing of kind {number}\n" for number in range(24)))
    drawing = Drawing("toy", prompts=str(prompts), best_of=6, by="brightness", out=str(tmp_path / "out"))
    recipe = sample_to_folder(drawing, Toy(), Toy.spec.sampling, seed=0, reward=Brightness(gaps=True))
    written = rows(tmp_path / "out")
    missing = sum(row["scores"].count(None) for row in written)
    assert recipe["unscored"] == missing > 0
    assert all(row["score"] == max((s for s in row["scores"] if s is not None), default=None) for row in written)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--best-of", "4"], "go together, got --best-of alone; give --by too"),
        (["--by", "colorfulness"], "go together, got --by alone; give --best-of too"),
        (["--best-of", "2", "--by", "colorfulness", "--per-prompt", "3"], "at least --per-prompt, got 2 and 3"),
        (["--per-prompt", "0"], "--per-prompt must be at least 1, got 0"),
        (["--best-of", "-1", "--by", "colorfulness"], "--best-of must be at least 1, got -1"),
        (["--count", "0"], "--count must be at least 1, got 0"),
        (["--prompt", "a cross", "--prompts", "shapes.short"], "got both; leave one out"),
        (["--prompts", "nowhere.txt"], "must be a file or one of"),
        (["--prompts", "empty.txt"], "empty.txt holds no prompt"),
        (["--prompt", "a dog"], "got 'dog'"),
        (["--temperature", "0"], "temperature must be above 0"),
        (["--top-p", "2"], "top_p must be above 0 and at most 1, got 2"),
        (["--out", "taken"], "taken: "),
        (["--best-of", "2", "--by", "nobody"], "'nobody'"),
        (["--generator", "nobody"], "'nobody'"),
    ],
)
def test_a_wrong_call_is_one_line(rwk: Any, small: str, tmp_path: Path, options: list[str], said: str) -> None:
    """What cannot be drawn ends with exit code 2 and a sentence, without a manifest."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "taken").touch()
    ended = rwk("sample", *([] if "--generator" in options else ["--generator", small]), *options)
    assert ended.code == 2
    assert said in ended.err
    assert len([line for line in ended.err.splitlines() if not line.endswith("so far")]) == 1
    assert not list(tmp_path.rglob("manifest.jsonl*"))


class Failing(Toy):  # type: ignore[misc, valid-type]
    """Fails after 64 prompts."""

    def decode(self, tokens: Any) -> Any:
        if len(tokens) < 64:
            raise RuntimeError("out of memory")
        return super().decode(tokens)


def test_a_drawing_that_fails_leaves_no_manifest(tmp_path: Path) -> None:
    """Neither half of one nor that of an earlier drawing, whose images may have been overwritten."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a grey thing of kind {number}\n" for number in range(70)))
    drawing = Drawing("toy", prompts=str(prompts), per_prompt=1, out=str(tmp_path / "out"))
    sample_to_folder(drawing, Toy(), Toy.spec.sampling, seed=0)
    assert len(rows(tmp_path / "out")) == 70
    with pytest.raises(RuntimeError, match="out of memory"):
        sample_to_folder(drawing, Failing(), Toy.spec.sampling, seed=0)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png"}


def test_a_prompt_of_two_categories_is_drawn_once(tmp_path: Path) -> None:
    """It is of the category that it has first."""
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt,category\na,x\nb,x\na,y\n")
    drawing = Drawing("toy", prompts=str(prompts), per_prompt=2, out=str(tmp_path / "out"))
    sample_to_folder(drawing, Toy(), Toy.spec.sampling, seed=0)
    assert [(row["prompt"], row["category"]) for row in rows(tmp_path / "out")] == [("a", "x")] * 2 + [("b", "x")] * 2

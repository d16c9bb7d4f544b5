"""`rwk score`: what is shown and written, and how it fails."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

WIDTH, LENGTH, BROKEN = "score_plug_in:Width", "score_plug_in:Length", "score_plug_in:Broken"
pytestmark = pytest.mark.usefixtures("seen")
Rwk = Callable[..., Any]


def draw(folder: Path, widths: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for width in widths:
        Image.new("RGB", (width, 5), "red").save(folder / f"{width:03d}.png")


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def test_two_photographs_get_a_table(rwk: Rwk, tmp_path: Path) -> None:
    """Without options two real photographs are scored by every reward that needs no weights and no prompt."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    photographs = Path(found.origin).parent / "datasets" / "images"
    shown = rwk("score", str(photographs))
    assert shown.code == 0
    lines = {line.split()[0]: line for line in shown.out.splitlines() if line.strip()}
    assert lines["reward"].split() == ["reward", "china.jpg", "flower.jpg", "unit"]
    assert lines["colorfulness"].split()[1:3] == ["36.68", "86.51"]
    expected = {"colorfulness", "contrast", "exposure", "sharpness", "noise", "compressibility.jpeg"}
    assert expected <= lines.keys()
    document = json.loads(rwk("score", str(photographs), "--json").out)
    assert document["rewards"].keys() == expected
    assert [Path(row["image"]).name for row in document["rows"]] == ["china.jpg", "flower.jpg"]
    assert all(isinstance(row[name], float) for row in document["rows"] for name in expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_are_written_in_order(rwk: Rwk, tmp_path: Path, kind: str) -> None:
    """Every format holds the same rows, in the order of the images, and nothing else is left behind."""
    draw(tmp_path / "images", range(10, 30))
    (tmp_path / "images" / "015.png").write_bytes(b"broken")
    done = rwk("score", "images", "-r", WIDTH, "-r", "contrast", "--batch-size", "3", "--out", f"new/scores.{kind}")
    assert done.code == 0
    rows = rows_of(tmp_path / f"new/scores.{kind}")
    assert [row["image"] for row in rows] == [f"images/{width:03d}.png" for width in range(10, 30)]
    bad = rows.pop(5)
    assert [float(row[WIDTH]) for row in rows] == [float(w) for w in range(10, 30) if w != 15]
    assert bad[WIDTH] in (None, "")
    assert bad["contrast"] in (None, "")
    assert bad[f"{WIDTH}.note"] == "not an image of a kind that can be read here"
    assert "1 of 20 images could not be read" in done.err
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"scores.{kind}"]


def test_json_stands_alone(rwk: Rwk, tmp_path: Path) -> None:
    """`--json` prints one document with null and a note for what has no score, and no table."""
    draw(tmp_path, range(10, 12))
    (tmp_path / "bad.png").write_bytes(b"")
    document = json.loads(rwk("score", ".", "-r", WIDTH, "--json").out)
    assert [document[key] for key in ("images", "unreadable", "unscored", "processes")] == [3, 1, 0, 1]
    assert document["rows"][2] == {
        "image": "bad.png",
        "prompt": "",
        WIDTH: None,
        f"{WIDTH}.note": "empty file (0 bytes)",
    }
    about = document["rewards"][WIDTH]
    assert about["scored"] == 2
    assert (about["min"], about["mean"], about["max"]) == (10, 10.5, 11)
    assert about["highest_possible"] is None


def test_many_images_show_their_ends(rwk: Rwk, tmp_path: Path) -> None:
    """Of many images the table shows the best and the worst, and the statistics of all."""
    draw(tmp_path / "images", range(10, 60))
    out = rwk("score", "images", "-r", WIDTH).out
    assert "best and worst" in out
    assert "of 50 images in images" in out
    words = out.split()
    assert "059.png" in words
    assert "010.png" in words
    assert "035.png" not in words
    assert words[words.index("mean") + 1] == "34.50"


def test_a_combination_shows_its_parts(rwk: Rwk, tmp_path: Path) -> None:
    """A combination has a column, and so has each of its parts."""
    draw(tmp_path / "images", range(10, 12))
    rows = json.loads(rwk("score", "images", "-r", "2*contrast+exposure", "--json").out)["rows"]
    for row in rows:
        assert row["2*contrast+exposure"] == pytest.approx(2 * row["contrast"] + row["exposure"])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "Missing argument 'IMAGES...'"),
        (("nowhere.png",), "there is no file or folder nowhere.png"),
        (("empty",), "empty must hold images, got none"),
        (
            ("images", "-r", LENGTH),
            r"needs a prompt for every image, got none; give --prompt TEXT, --prompts FILE, or a",
        ),
        (("images", "-r", "colourfulness"), "did you mean colorfulness?"),
        (("images", "--prompts", "three.txt"), "must hold one prompt per image, got 3 prompts and 2 images"),
        (("images", "--prompts", "one.jsonl"), "got none for 1 of 2, the first images/011.png"),
        (("images", "--prompts", "none.txt"), "none.txt: there is no such file or folder; correct the path."),
        (("images", "--prompt", "x", "--prompts", "three.txt"), "exclude each other"),
        (("bad.jsonl",), "bad.jsonl line 2 must be a JSON object, got no JSON"),
        (("list.jsonl",), "list.jsonl line 2 must be a JSON object, got list"),
        (("noimage.csv",), "noimage.csv line 2 must name a file in the column image, got None"),
        (("void.csv",), "void.csv must hold at least one row"),
        (("images", "--out", "x.txt"), "--out must end in .jsonl, .csv or .parquet, got x.txt"),
        (("images", "--out", "folder.csv"), "folder.csv must be a file that can be written"),
        (("images", "--report", "x.pdf"), "--report must end in .html"),
        (("images", "--resume"), "--resume needs the --out"),
        (("images", "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("images", "--workers", "0"), "--workers must be at least 1, got 0"),
    ],
)
def test_a_wrong_call_is_one_line(rwk: Rwk, tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
    """A wrong call ends with exit code 2, one line on stderr and nothing on stdout."""
    draw(tmp_path / "images", range(10, 12))
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    (tmp_path / "one.jsonl").write_text('{"image": "images/010.png", "prompt": "x"}\n')
    (tmp_path / "bad.jsonl").write_text('{"image": "x.png"}\nnope\n')
    (tmp_path / "list.jsonl").write_text('{"image": "x.png"}\n[1]\n')
    (tmp_path / "noimage.csv").write_text("path,prompt\nx.png,x\n")
    (tmp_path / "void.csv").write_text("image,prompt\n")
    result = rwk("score", *arguments)
    assert result.code == 2
    assert result.out == ""
    assert why in result.err
    assert result.err.count("\n") == 1
    assert result.err.startswith("rwk: ")


def test_strict_fails_at_the_first_gap(rwk: Rwk, tmp_path: Path) -> None:
    """`--strict` turns an unreadable image, and a score that is missing, into exit code 1."""
    draw(tmp_path / "gap", range(11, 13))
    draw(tmp_path / "bad", range(11, 12))
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    assert rwk("score", "bad", "gap", "-r", BROKEN).code == 0
    for folder, why in (("bad", "bad/a.png got no score from .*empty file"), ("gap", "gap/012.png got no score from")):
        result = rwk("score", folder, "-r", BROKEN, "--strict")
        assert result.code == 1
        assert result.err.splitlines()[-1].startswith("rwk: ")
        assert re.search(why, result.err)


def test_nothing_readable_is_a_failure(rwk: Rwk, tmp_path: Path) -> None:
    """Where no image at all can be read the run failed, but its rows are written."""
    (tmp_path / "a.png").write_bytes(b"")
    result = rwk("score", "a.png", "-r", WIDTH, "--out", "x.jsonl")
    assert result.code == 1
    assert "none of the 1 images could be read" in result.err
    assert len(rows_of(tmp_path / "x.jsonl")) == 1


def test_a_reward_that_raises_is_a_failed_run_that_can_go_on(rwk: Rwk, tmp_path: Path) -> None:
    """An error inside a reward names the reward and the image, exits with 1, and keeps the rows before it."""
    draw(tmp_path / "images", range(10, 16))
    arguments = ("score", "images", "-r", BROKEN, "--batch-size", "2", "--out", "x.jsonl")
    result = rwk(*arguments)
    assert result.code == 1
    assert f"{BROKEN} failed on 2 images from images/012.png on: ValueError: thirteen" in result.err
    assert not (tmp_path / "x.jsonl").exists()
    draw(tmp_path / "images", range(20, 21))
    (tmp_path / "images" / "020.png").replace(tmp_path / "images" / "013.png")
    assert rwk(*arguments, "--resume").code == 0
    assert [row[BROKEN] for row in rows_of(tmp_path / "x.jsonl")] == [1, 1, None, 1, 1, 1]

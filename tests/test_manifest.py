"""Which images and prompts count."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rwk.rewards.manifest import gather

WIDTH, LENGTH = "score_plug_in:Width", "score_plug_in:Length"
pytestmark = pytest.mark.usefixtures("seen")
Rwk = Callable[..., Any]
ROWS = [{"image": "images/011.png", "prompt": "three"}, {"image": "images/010.png", "prompt": "two"}]


def draw(folder: Path, widths: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for width in widths:
        Image.new("RGB", (width, 5), "red").save(folder / f"{width:03d}.png")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_a_prompt_may_lie_beside_its_image(rwk: Rwk, tmp_path: Path) -> None:
    """A text file beside an image is its prompt; an image without one gets no score from a reward that needs it."""
    draw(tmp_path / "images", range(10, 13))
    (tmp_path / "images" / "010.txt").write_text("two\n")
    (tmp_path / "images" / "011.txt").write_bytes("\ufeffthree\r\nmore".encode())
    rows = json.loads(rwk("score", "images", "-r", LENGTH, "-r", WIDTH, "--json").out)["rows"]
    assert [row["prompt"] for row in rows] == ["two", "three more", ""]
    assert [row[LENGTH] for row in rows] == [3, 10, None]
    assert [row[WIDTH] for row in rows] == [10, 11, 12]
    assert [row.get(f"{LENGTH}.note") for row in rows] == ["said two", None, "needs a prompt"]


def test_side_files_in_a_glob_are_no_images(tmp_path: Path) -> None:
    """`images/*`, as a shell expands it, takes the text beside an image for its prompt."""
    draw(tmp_path, range(10, 11))
    (tmp_path / "010.txt").write_text("two")
    found = gather([str(tmp_path / "010.png"), str(tmp_path / "010.txt"), str(tmp_path / "010.png")])
    assert [item.image.name for item in found.items] == ["010.png"]
    assert found.skipped == 1


def test_one_prompt_for_all(rwk: Rwk, tmp_path: Path) -> None:
    """`--prompt` is the prompt of every image, whatever lies beside it."""
    draw(tmp_path / "images", range(10, 12))
    (tmp_path / "images" / "010.txt").write_text("two")
    rows = json.loads(rwk("score", "images", "-r", LENGTH, "--prompt", "a cat", "--json").out)["rows"]
    assert [(row["prompt"], row[LENGTH]) for row in rows] == [("a cat", 5)] * 2


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_manifest_names_images_and_prompts(rwk: Rwk, tmp_path: Path, kind: str) -> None:
    """Images of a manifest count from its folder, in its order, as often as they stand there."""
    draw(tmp_path / "data" / "images", range(10, 12))
    write_rows(tmp_path / "data" / f"list.{kind}", [*ROWS, ROWS[0]])
    rows = json.loads(rwk("score", f"data/list.{kind}", "-r", LENGTH, "-r", WIDTH, "--json").out)["rows"]
    assert [row["image"] for row in rows] == [f"data/images/{n}.png" for n in ("011", "010", "011")]
    assert [(row[LENGTH], row[WIDTH]) for row in rows] == [(5, 11), (3, 10), (5, 11)]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_prompts_from_a_table_find_their_images(rwk: Rwk, tmp_path: Path, kind: str) -> None:
    """A table of prompts is matched by image, not by order."""
    draw(tmp_path / "images", range(10, 12))
    write_rows(tmp_path / f"prompts.{kind}", ROWS)
    rows = json.loads(rwk("score", "images", "-r", LENGTH, "--prompts", f"prompts.{kind}", "--json").out)["rows"]
    assert [(row["image"], row["prompt"]) for row in rows] == [("images/010.png", "two"), ("images/011.png", "three")]


def test_prompts_by_name_and_by_line(rwk: Rwk, tmp_path: Path) -> None:
    """A table elsewhere finds images by name; text files and tables without images give prompts in order."""
    draw(tmp_path / "images", range(10, 12))
    write_rows(tmp_path / "a.jsonl", [{"image": Path(row["image"]).name, "prompt": row["prompt"]} for row in ROWS])
    write_rows(tmp_path / "b.jsonl", [{"prompt": "two"}, {"prompt": "three"}])
    (tmp_path / "c.txt").write_text("two\nthree\n")
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        rows = json.loads(rwk("score", "images", "-r", LENGTH, "--prompts", name, "--json").out)["rows"]
        assert [row["prompt"] for row in rows] == ["two", "three"], name


def test_a_missing_image_of_a_manifest_is_a_note(rwk: Rwk, tmp_path: Path) -> None:
    """A manifest may name a file that is gone: no score and a note."""
    draw(tmp_path / "images", range(10, 11))
    write_rows(tmp_path / "list.csv", ROWS)
    result = rwk("score", "list.csv", "-r", WIDTH, "--json")
    assert result.code == 0
    assert [row[WIDTH] for row in json.loads(result.out)["rows"]] == [None, 10]
    assert "No such file" in json.loads(result.out)["rows"][0][f"{WIDTH}.note"]

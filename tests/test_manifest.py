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


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_empty_prompt_of_a_manifest_is_none(rwk: Rwk, tmp_path: Path, kind: str) -> None:
    """Empty, spaces or null: the text beside the image counts, and without it a reward that needs one says so."""
    draw(tmp_path / "images", range(10, 14))
    (tmp_path / "images" / "012.txt").write_text("beside")
    prompts = ["", " ", "" if kind == "csv" else None, "given"]
    rows: list[dict[str, Any]] = [
        {"image": f"images/{width:03d}.png", "prompt": prompt}
        for width, prompt in zip(range(10, 14), prompts, strict=True)
    ]
    write_rows(tmp_path / f"list.{kind}", rows)
    ended = rwk("score", f"list.{kind}", "-r", LENGTH, "-r", WIDTH, "--json")
    assert ended.code == 0
    found = json.loads(ended.out)["rows"]
    assert [row["prompt"] for row in found] == ["", "", "beside", "given"]
    assert [row[LENGTH] for row in found] == [None, None, 6, 5]
    assert [row.get(f"{LENGTH}.note") for row in found[:2]] == ["needs a prompt"] * 2
    assert [row[WIDTH] for row in found] == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("p.txt", "two\n\n", "line 2"),
        ("p.txt", "  \ntwo\n", "line 1"),
        ("p.txt", "", "line 1"),
        ("p.jsonl", '{"prompt": "two"}\n{"prompt": ""}\n', "line 2"),
        ("p.csv", "prompt,x\n,1\ntwo,2\n", "line 2"),
    ],
)
def test_an_empty_prompt_in_a_file_of_prompts_is_refused(
    rwk: Rwk, tmp_path: Path, name: str, text: str, place: str
) -> None:
    """Prompts in the order of the images are all there; an empty one is named by its line, not passed over."""
    draw(tmp_path / "images", range(10, 12))
    (tmp_path / name).write_text(text)
    ended = rwk("score", "images", "-r", WIDTH, "--prompts", name)
    assert ended.code == 2
    assert f"{name} {place} must hold the prompt of an image, got none; write or remove it." in ended.err


def test_a_prompt_that_is_no_unicode_is_told_before_scoring(rwk: Rwk, tmp_path: Path) -> None:
    """Half of a surrogate pair, as JSON may hold and a terminal of another encoding gives, is refused with its line."""
    draw(tmp_path / "images", range(10, 12))
    write_rows(tmp_path / "list.jsonl", [ROWS[0], ROWS[1] | {"prompt": "\ud800 cat"}])
    result = rwk("score", "images/../list.jsonl", "-r", WIDTH)
    assert result.code == 2
    assert r"list.jsonl line 2 must hold a prompt in Unicode, got '\ud800 cat'; correct the row." in result.err
    result = rwk("score", "images", "-r", WIDTH, "--prompt", "caf\udce9")
    assert result.code == 2
    assert r"--prompt must be in UTF-8, got 'caf\udce9'" in result.err


def test_a_missing_image_of_a_manifest_is_a_note(rwk: Rwk, tmp_path: Path) -> None:
    """A manifest may name a file that is gone: no score and a note."""
    draw(tmp_path / "images", range(10, 11))
    write_rows(tmp_path / "list.csv", ROWS)
    result = rwk("score", "list.csv", "-r", WIDTH, "--json")
    assert result.code == 0
    assert [row[WIDTH] for row in json.loads(result.out)["rows"]] == [None, 10]
    assert "No such file" in json.loads(result.out)["rows"][0][f"{WIDTH}.note"]


@pytest.mark.parametrize(("kind", "way"), [("jsonl", ""), ("csv", ""), ("csv", "--prompts"), ("txt", "--prompts")])
def test_text_that_is_not_utf8_is_refused_by_name(rwk: Rwk, tmp_path: Path, kind: str, way: str) -> None:
    """A manifest or a file of prompts in another encoding is refused by its name and line, with how to convert it."""
    draw(tmp_path / "images", range(10, 12))
    if kind == "txt":
        text, line = "two\ncaf\xe9\n", 2
    else:
        write_rows(tmp_path / f"list.{kind}", [ROWS[0], {**ROWS[1], "prompt": "cafE"}])
        text, line = (tmp_path / f"list.{kind}").read_text().replace("cafE", "caf\xe9"), 2 + (kind == "csv")
    for encoding, place in (("latin1", line), ("utf-16", 1)):
        (tmp_path / f"list.{kind}").write_bytes(text.encode(encoding))
        named = ["images", way, f"list.{kind}"] if way else [f"list.{kind}"]
        ended = rwk("score", *named, "-r", LENGTH)
        told = f"rwk: list.{kind} must be text in UTF-8, got other bytes in line {place}; convert it"
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith(told)
        assert f"iconv -f {encoding} -t utf-8 list.{kind}`" in ended.err


@pytest.mark.parametrize("content", [b"no parquet", b"PAR1" + bytes(40) + b"PAR1", b""])
def test_a_damaged_parquet_is_refused_by_name(rwk: Rwk, tmp_path: Path, content: bytes) -> None:
    """What is no Parquet file, though it is called so, is named, and told what it should be."""
    (tmp_path / "bad.parquet").write_bytes(content)
    ended = rwk("score", "bad.parquet", "-r", WIDTH)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("rwk: bad.parquet must be a whole Parquet file, got none that can be read (")
    assert ended.err.endswith("); write it again.\n")


def test_a_parquet_that_breaks_off_inside_is_refused_by_name(rwk: Rwk, tmp_path: Path) -> None:
    """Bytes that are damaged between a whole head and a whole foot are found when the rows are read."""
    write_rows(tmp_path / "list.parquet", ROWS * 100)
    held = bytearray((tmp_path / "list.parquet").read_bytes())
    held[4:200] = bytes(196)
    (tmp_path / "list.parquet").write_bytes(held)
    ended = rwk("score", "list.parquet", "-r", WIDTH)
    assert ended.code == 2
    assert ended.err.startswith("rwk: list.parquet must be a whole Parquet file")


def test_a_csv_that_cannot_be_parted_is_refused_by_name(rwk: Rwk, tmp_path: Path) -> None:
    """A cell beyond what csv takes, as after a quote that is never closed, is told of the file."""
    (tmp_path / "list.csv").write_text("image,prompt\n010.png," + "x" * 200_000 + "\n")
    ended = rwk("score", "list.csv", "-r", WIDTH)
    assert ended.code == 2
    assert ended.err.startswith("rwk: list.csv must be CSV, got a line that cannot be parted (field larger")


def test_a_prompt_in_other_bytes_is_not_scored_by(rwk: Rwk, tmp_path: Path) -> None:
    """An image whose text file is not UTF-8 gets no score and a note that names the file; the others are scored."""
    draw(tmp_path / "images", range(10, 12))
    (tmp_path / "images" / "010.txt").write_bytes("café".encode("latin1"))
    refused = "images/010.txt must be text in UTF-8, got other bytes in line 1; convert it"
    ended = rwk("score", "images", "-r", LENGTH)
    assert ended.code == 2
    assert f"length needs a prompt for every image, got none that can be read: {refused}" in ended.err.replace(
        LENGTH, "length"
    )
    (tmp_path / "images" / "011.txt").write_text("café")
    ended = rwk("score", "images", "-r", LENGTH, "-r", WIDTH, "--json")
    bad, good = json.loads(ended.out)["rows"]
    assert (ended.code, good["prompt"], good[LENGTH], good[WIDTH]) == (0, "café", 4, 11)
    assert (bad["prompt"], bad[LENGTH], bad[WIDTH]) == ("", None, None)
    assert bad[f"{LENGTH}.note"].startswith(refused)
    assert "1 of 2 images could not be read" in ended.err
    assert ended.err.endswith("010.txt`.\n")
    assert rwk("score", "images", "-r", LENGTH, "--prompt", "two").code == 0

"""Reading of preferences: columns, bad rows, and splits that keep prompts apart."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rwk.rewards.data import Preference, PreferenceDataset
from rwk.rewards.pictures import identity, opened

ROW = {"prompt": "a dog", "first": "0.png", "second": "pictures/1.png", "p_first": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for index in range(6):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(tmp_path / f"{index}.png")
        Image.new("RGB", (4, 4), (0, index, 0)).save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path


def jsonl(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_every_format_gives_the_same_rows(folder: Path) -> None:
    """JSONL, CSV and Parquet of the same table are the same preferences, with paths below the file's folder."""
    rows = [ROW, ROW | {"prompt": "a cat, \n sitting", "p_first": 0.25, "weight": 2.0, "generator_second": "sdxl"}]
    written = jsonl(folder, *rows)
    table = folder / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*ROW, "weight", "generator_second"])
        writer.writeheader()
        writer.writerows(rows)
    empty = {"weight": None, "generator_second": None}
    parquet(folder / "rows.parquet", [empty | row | {"p_first": float(row["p_first"])} for row in rows])
    expected = [
        Preference("a dog", folder / "0.png", folder / "pictures/1.png", 1.0),
        Preference("a cat, \n sitting", folder / "0.png", folder / "pictures/1.png", 0.25, 2.0, "", "sdxl"),
    ]
    for path in (written, table, folder / "rows.parquet"):
        assert list(PreferenceDataset.read(path)) == expected, path


def test_votes_become_a_share(folder: Path) -> None:
    """Votes stand in for p_first, and a tie counts half for each."""
    votes = {"prompt": "", "first": "0.png", "second": "1.png", "votes_first": 3, "votes_second": 1}
    data = PreferenceDataset.read(jsonl(folder, votes, votes | {"ties": 4}, votes | {"votes_first": 0}))
    assert [row.p_first for row in data] == [0.75, 0.625, 0.0]


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: {"bytes": data, "path": None}])
def test_parquet_holds_images(folder: Path, wrap: Any) -> None:
    """Encoded images inside Parquet, plain or as Hugging Face writes them, are read, each different one once."""
    encoded = []
    for color in ("red", "blue"):
        buffer = io.BytesIO()
        Image.new("RGB", (3, 2), color).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    rows = [{"prompt": p, "first": wrap(encoded[0]), "second": wrap(encoded[1]), "p_first": 1.0} for p in "ab"]
    data = PreferenceDataset.read(parquet(folder / "held.parquet", rows))
    assert opened(data[0].first).getpixel((0, 0)) == (255, 0, 0)
    assert opened(data[1].second).getpixel((0, 0)) == (0, 0, 255)
    assert data[0].first is data[1].first
    assert identity(data[0].second) != identity(data[0].first)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (ROW | {"p_first": 1.5}, "line 2: p_first must lie in 0..1, got 1.5"),
        (ROW | {"p_first": "often"}, "line 2: p_first must be a number, got 'often'"),
        (ROW | {"p_first": None}, "line 2: needs p_first, or votes_first and votes_second, got columns prompt, first"),
        (
            ROW | {"p_first": None, "votes_first": 0, "votes_second": 0},
            "line 2: votes must be counts with a sum above 0",
        ),
        (ROW | {"first": "none.png"}, "line 2: first names no file, got 'none.png'"),
        ({key: ROW[key] for key in ("prompt", "first", "p_first")}, "line 2: second must be the path of an image"),
        (ROW | {"weight": 0}, "line 2: weight must be above 0, got 0"),
        (ROW | {"p_first": float("nan")}, "line 2: p_first must lie in 0..1, got nan"),
        (ROW | {"prompt": 7}, "line 2: prompt must be text, got 7"),
        ("{", "line 2: Expecting property name"),
        ("[1]", "line 2: a row must be an object with named columns, got list"),
    ],
)
def test_a_bad_row_is_named_by_its_line(folder: Path, bad: Any, expected: str) -> None:
    """Every kind of bad row is said in one sentence with the file and the line."""
    with pytest.raises(ValueError, match=r"rows\.jsonl has bad rows") as caught:
        PreferenceDataset.read(jsonl(folder, ROW, bad))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_are_the_files_own(folder: Path) -> None:
    """Blank lines count in JSONL, the header and lines within a quoted cell in CSV."""
    bad = ROW | {"p_first": 2}
    with pytest.raises(ValueError, match="line 3: p_first"):
        PreferenceDataset.read(jsonl(folder, ROW, "", bad))
    path = folder / "rows.csv"
    path.write_text('prompt,first,second,p_first\n"two\nlines",0.png,1.png,1\na dog,0.png,1.png,2\n')
    with pytest.raises(ValueError, match="line 4: p_first"):
        PreferenceDataset.read(path)


def test_the_first_bad_rows_are_shown_and_the_rest_counted(folder: Path) -> None:
    """Of many bad rows the first three are named."""
    with pytest.raises(ValueError, match=r"line 1: .*; line 2: .*; line 3: .*; and 4 more\. Correct or remove them\."):
        PreferenceDataset.read(jsonl(folder, *[ROW | {"p_first": 9}] * 7))


def test_what_is_no_table_is_refused(folder: Path) -> None:
    """Another ending, and a file without rows, are a sentence each."""
    with pytest.raises(ValueError, match=r"must be a file of \.json, .*\.parquet, .*, got .*rows\.txt"):
        PreferenceDataset.read(folder / "rows.txt")
    with pytest.raises(ValueError, match="must hold at least one preference, got none"):
        PreferenceDataset.read(jsonl(folder))


def test_no_prompt_is_on_both_sides(folder: Path) -> None:
    """A split keeps all rows, holds out the share of prompts, and depends on the seed but not on the order of rows."""
    rows = [Preference(f"prompt {i % 20}", folder / "0.png", folder / "1.png", 1.0) for i in range(100)]
    data = PreferenceDataset(rows)
    train, valid = data.split(held_out=0.25, seed=0)
    assert len(train) + len(valid) == 100
    sides = [{row.prompt for row in part} for part in (train, valid)]
    assert [len(side) for side in sides] == [15, 5]
    assert not sides[0] & sides[1]
    assert {row.prompt for row in PreferenceDataset(rows[::-1]).split(held_out=0.25, seed=0)[1]} == sides[1]
    assert {row.prompt for row in data.split(held_out=0.25, seed=1)[1]} != sides[1]


def test_rows_without_a_prompt_are_split_by_their_images(folder: Path) -> None:
    """Pairs that share an image, directly or through others, stay on one side."""
    images = [folder / f"{i}.png" for i in range(6)]
    chains = [(0, 1), (1, 2), (3, 4), (4, 5)]
    data = PreferenceDataset([Preference("", images[a], images[b], 1.0) for a, b in chains])
    train, valid = data.split(held_out=0.5, seed=0)
    sides = [{path for row in part for path in (row.first, row.second)} for part in (train, valid)]
    assert [len(side) for side in sides] == [3, 3]
    assert not sides[0] & sides[1]


def test_one_prompt_cannot_be_split(folder: Path) -> None:
    """Preferences of a single prompt leave none to hold out, which is said."""
    data = PreferenceDataset([Preference("one", folder / "0.png", folder / "1.png", 1.0)] * 3)
    with pytest.raises(ValueError, match="needs at least 2 different prompts to hold some out, got 1"):
        data.split(held_out=0.2, seed=0)


def test_the_digest_sees_rows_and_pixels(folder: Path) -> None:
    """The digest is that of the content: a changed label, order or picture changes it, a moved file does not."""
    rows = [ROW, ROW | {"prompt": "a cat", "p_first": 0}]
    before = PreferenceDataset.read(jsonl(folder, *rows)).digest()
    assert PreferenceDataset.read(jsonl(folder, *rows)).digest() == before
    assert PreferenceDataset.read(jsonl(folder, rows[0], rows[1] | {"p_first": 0.1})).digest() != before
    (folder / "0.png").rename(folder / "moved.png")
    moved = [row | {"first": "moved.png"} for row in rows]
    assert PreferenceDataset.read(jsonl(folder, *moved)).digest() == before
    Image.new("RGB", (4, 4), "white").save(folder / "moved.png")
    assert PreferenceDataset.read(jsonl(folder, *moved)).digest() != before

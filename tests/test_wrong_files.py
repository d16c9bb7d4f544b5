"""What every command says of a file that it cannot take: which, what was expected, and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rwk.rewards.readable import parquet_of

Rwk = Callable[..., Any]
COMMANDS = {
    "study": ("{}.toml", "--dry-run"),
    "study as JSON": ("{}.json", "--dry-run"),
    "score": ("{}.jsonl",),
    "score of Parquet": ("{}.parquet",),
    "score --prompts": ("image.png", "--prompts", "{}.txt"),
    "score --prompts of CSV": ("image.png", "--prompts", "{}.csv"),
    "score --reward": ("image.png", "--prompt", "x", "--reward", "hpsv2.v21@{}.pt"),
    "train-reward": ("{}.jsonl",),
    "calibrate": ("colorfulness", "{}.csv"),
    "probe": ("colorfulness", "{}.parquet"),
    "probe --counterparts": ("colorfulness", "--counterparts", "{}.jsonl"),
    "probe --prompts": ("colorfulness", "--prompts", "{}.txt"),
    "compare": ("colorfulness", "contrast", "{}.jsonl"),
    "evaluate": ("--benchmark", "{}.txt"),
    "optimize": ("--algo", "dpo", "--prompts", "{}.csv", "--out", "out"),
    "sample": ("--prompts", "{}.jsonl"),
}
"""Command, and what it is told apart by -> its words, with the file's name."""
MAKERS: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "empty": Path.touch,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 4),
}


@pytest.mark.parametrize("what", MAKERS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_cannot_be_taken(rwk: Rwk, tmp_path: Path, name: str, what: str) -> None:
    """It is a wrong call, with one line that names the file and says what to do, in words of no library."""
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    words = [word.format(what) for word in COMMANDS[name]]
    given = next(word for word in words if f"{what}." in word).rpartition("@")[2]
    MAKERS[what](tmp_path / given)
    ended = rwk(name.split()[0], *words)
    told = ended.err.splitlines()[-1]
    assert (ended.code, ended.out) == (2, ""), ended.err
    assert given in told
    assert "; " in told or ". Correct" in told
    assert not any(word in told for word in ("Errno", "codec", "Error:"))


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    """An error of pyarrow, which names no file, does, and stays one of permission."""
    with pytest.raises(PermissionError) as told, parquet_of(tmp_path / "x.parquet"):
        raise PermissionError(13, "Failed to open local file")
    assert (told.value.filename, told.value.strerror) == (str(tmp_path / "x.parquet"), os.strerror(13))


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (None, "--redraw needs the folder of a study that was run, got none at study/study.json; name its folder."),
        ("{", "study/study.json holds no study (Expecting property name"),
        ('{"study": {}}', "study/study.json holds no study ('cells'); run the study again"),
    ],
)
def test_a_study_that_cannot_be_drawn_again(rwk: Rwk, tmp_path: Path, held: str | None, told: str) -> None:
    """A folder without a study, or with one that is not whole, is told."""
    (tmp_path / "study").mkdir()
    if held is not None:
        (tmp_path / "study" / "study.json").write_text(held)
    ended = rwk("study", "study", "--redraw")
    assert ended.code == 2
    assert told in ended.err


def test_prompts_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As Windows writes them; it is no part of the first prompt or of a column's name."""
    from rwk.policy_opt.prompts import Prompt, read_prompts

    for name, text in (("x.txt", "a cat\na dog\n"), ("x.csv", "prompt\na cat\na dog\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_prompts(str(tmp_path / name)) == [Prompt("a cat"), Prompt("a dog")]

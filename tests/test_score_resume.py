"""`rwk score` after a kill, and in two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

WIDTH = "score_plug_in:Width"
PRECISION = ("--precision", "float16")
pytestmark = pytest.mark.usefixtures("seen")
Rwk = Callable[..., Any]


def draw(folder: Path, widths: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for width in widths:
        Image.new("RGB", (width, 5), "red").save(folder / f"{width:03d}.png")


def test_a_killed_run_goes_on(rwk: Rwk, tmp_path: Path, seen: Path) -> None:
    """After kill -9 in the middle, `--resume` scores the rest alone; no row is lost and none is there twice."""
    draw(tmp_path / "images", range(10, 50))
    arguments = ["score", "images", "-r", WIDTH, "--batch-size", "2", "--out", "x.parquet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rwk.cli", *arguments], cwd=tmp_path, env={**os.environ, "SLOW": "0.1"}
    )
    part = tmp_path / "x.parquet.partial-0-of-1"
    limit = time.monotonic() + 120
    while not (part.exists() and part.read_bytes().count(b"\n") > 6):
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "x.parquet").exists()
    kept = part.read_bytes().count(b"\n") - 1
    assert 6 <= kept < 40

    before = len(seen.read_text().splitlines())
    assert rwk(*arguments, "--resume").code == 0
    assert len(seen.read_text().splitlines()) - before == 40 - kept
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert [(row["image"], row[WIDTH]) for row in rows] == [(f"images/{w:03d}.png", w) for w in range(10, 50)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("x.")] == ["x.parquet"]


@pytest.mark.parametrize("torn", [b'["images/014', b'["images/014.png", "", {}, {}, ""]', b"\0\0\0\0\n"])
def test_a_torn_row_is_scored_again(rwk: Rwk, tmp_path: Path, torn: bytes) -> None:
    """What a kill or a power cut left of the last row is dropped."""
    draw(tmp_path / "images", range(10, 20))
    assert rwk("score", "images", "-r", WIDTH, "--out", "x.csv").code == 0
    draw(tmp_path / "images", range(10, 20))
    expected = (tmp_path / "x.csv").read_bytes()
    part = interrupted(rwk, tmp_path, rows=4)
    with part.open("ab") as file:
        file.write(torn)
    assert rwk("score", "images", "-r", WIDTH, "--out", "x.csv", "--resume").code == 0
    assert (tmp_path / "x.csv").read_bytes() == expected


def interrupted(rwk: Rwk, folder: Path, *, rows: int) -> Path:
    """The part of a run over `images` into x.csv that ended after some rows."""
    broken = folder / "images" / f"{10 + rows:03d}.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    assert rwk("score", "images", "-r", WIDTH, "--out", "x.csv", "--batch-size", "1", "--strict").code == 1
    broken.write_bytes(whole)
    part = folder / "x.csv.partial-0-of-1"
    kept = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(kept[: rows + 1]))
    return part


def test_another_run_is_not_resumed(rwk: Rwk, tmp_path: Path) -> None:
    """`--resume` refuses rows of other images or rewards; without it the run starts over."""
    draw(tmp_path / "images", range(10, 16))
    interrupted(rwk, tmp_path, rows=3)
    others = (("images", "-r", "contrast"), ("images/010.png", "-r", WIDTH), ("images", "-r", WIDTH, *PRECISION))
    for arguments in others:
        result = rwk("score", *arguments, "--out", "x.csv", "--resume")
        assert result.code == 2
        assert "--resume needs images, prompts, rewards, preprocessing and precision of the stopped run" in result.err
    (tmp_path / "x.csv.partial-0-of-1").rename(tmp_path / "x.csv.partial-0-of-2")
    result = rwk("score", "images", "-r", WIDTH, "--out", "x.csv", "--resume")
    assert result.code == 2
    assert "as many processes" in result.err
    assert rwk("score", "images", "-r", WIDTH, "--out", "x.csv").code == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("x.")] == ["x.csv"]


def test_two_processes_write_what_one_writes(rwk: Rwk, tmp_path: Path, seen: Path) -> None:
    """Under accelerate two processes share the images, and the file is the same to the byte.

    The exit code is not looked at: torch's gloo may abort at the exit of the interpreter, when all is written.
    """
    draw(tmp_path / "images", range(10, 31))
    (tmp_path / "images" / "012.png").write_bytes(b"")
    arguments = ["score", "images", "-r", WIDTH, "-r", "contrast", "--batch-size", "3"]
    assert rwk(*arguments, "--out", "one.jsonl").code == 0
    seen.unlink()
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch += " --dynamo_backend no --main_process_port 0 -m rwk.cli"
    done = subprocess.run(
        [sys.executable, *launch.split(), *arguments, "--out", "two.jsonl", "--json"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (tmp_path / "two.jsonl").is_file(), done.stderr
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    document = json.loads(done.stdout)
    assert document["processes"] == 2
    assert document["images"] == 21
    by_process: dict[str, list[int]] = {}
    for line in seen.read_text().splitlines():
        process, width = line.split()
        by_process.setdefault(process, []).append(int(width))
    shares = sorted(by_process.values())
    assert shares == [list(range(10, 31, 2))[:1] + list(range(14, 31, 2)), list(range(11, 31, 2))]

"""`benchmarks/parity.py`: one line for each adapter, of what the tests compare."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "parity.py"
TABLE: dict[str, Any] = runpy.run_path(str(SCRIPT))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = {"package": "official", "versions": {"official": "1.2", "torch": "2.15.0+cu132"}}


def compared(adapter: str, values: list[float], **tolerance: float) -> dict[str, Any]:
    """The row that a comparison with 0, 1, 2 ... gives."""
    rows: list[Any] = []
    AGREE(
        lambda key, row: rows.append(row),
        adapter,
        RECORDED,
        torch.tensor(values),
        torch.arange(float(len(values))),
        **tolerance,
    )
    (row,) = rows
    return dict(row)


def test_a_difference_over_the_tolerance_fails_and_is_told() -> None:
    """What is off by more than the tolerance is an AssertionError, and the table has its difference all the same."""
    rows: list[Any] = []
    for values in ([0.0, 1.5], [0.0, float("nan")], [0.0]):
        with pytest.raises((AssertionError, RuntimeError)):
            AGREE(lambda key, row: rows.append(row), "x", RECORDED, torch.tensor(values), torch.arange(2.0), atol=0.1)
    assert rows[0]["max"] == 0.5


def test_rows_of_one_adapter_are_one() -> None:
    """The largest difference is that of all comparisons, and the mean that of all scores."""
    rows = [compared("b", [0.5], atol=0.5), compared("a", [0.5], atol=0.5), compared("b", [0.0, 1.25], atol=1.0)]
    first, second = TABLE["merged"](rows)
    assert (first["adapter"], second["adapter"]) == ("a", "b")
    assert (second["max"], second["mean"], second["scores"], second["tolerance"]) == (0.5, 0.25, 3, "0.5, 1")
    assert TABLE["official"](second) == "official 1.2 on torch 2.15.0"


def test_every_recording_is_in_the_table() -> None:
    """Each recording of official scores is read by a test whose comparison makes a row."""
    tests = {path: path.read_text() for path in TABLE["files"]([])}
    for recording in (ROOT / "tests" / "parity").glob("*.json"):
        if "phrases" in json.loads(recording.read_text()):  # words, not scores
            continue
        family = recording.stem.rstrip("12")
        assert any(family in path.stem and "AGREE(record_property" in text for path, text in tests.items()), recording
    with pytest.raises(ValueError, match="families are aesthetic, .* got nonsense"):
        TABLE["files"](["nonsense"])


def test_the_command_prints_what_the_tests_saw() -> None:
    """`python benchmarks/parity.py FAMILY` ends with 0 and gives a row within the test's tolerance, and no other."""
    done = subprocess.run([sys.executable, SCRIPT, "--json", "orm"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "\n1 passed in " in done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["adapter"], row["versions"]["transformers"], row["scores"]) == ("orm.t2i_r1", "4.45.2", 4)
    assert 0 <= row["mean"] <= row["max"] < 1e-5

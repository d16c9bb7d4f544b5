"""Print how near every adapter's scores are to the official ones.

    python benchmarks/parity.py
    python benchmarks/parity.py aesthetic orm

It runs the tests that compare adapters with official scores, all or those of the named families, and prints a line for
each adapter: what they were compared with and the versions it ran with, over how many scores, the largest and mean
difference, and how far the official scores lie apart. Weights are those that the tests make, small and random in the
official layout. The official scores were recorded by the scripts parity_*.py beside this one, each of which runs a
checkout of the official code and tells at its top which; those of SigLIP come from transformers itself. It ends with 1
where a difference is over the test's tolerance.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


class Collector:
    """A plug-in of pytest that runs only tests which compare with official scores, and keeps what they saw."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if "record_property" in item.fixturenames]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.rows += [row for key, row in report.user_properties if key == "parity" and isinstance(row, dict)]


def files(families: list[str]) -> list[Path]:
    """The test files that compare with official scores, of those families or all; raises ValueError where none does."""
    found = {
        path.stem.removeprefix("test_"): path
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if '"parity_case.py"' in path.read_text(encoding="utf-8")
    }
    unknown = [family for family in families if family not in found]
    if unknown:
        raise ValueError(f"families are {', '.join(found)}, got {unknown[0]}.")
    return [path for family, path in found.items() if not families or family in families]


def merged(rows: list[Row]) -> list[Row]:
    """One row for each adapter, of all its comparisons."""
    made: dict[str, Row] = {}
    for row in rows:
        before = made.get(row["adapter"])
        if before is None:
            made[row["adapter"]] = dict(row)
            continue
        count = before["scores"] + row["scores"]
        before["mean"] = (before["mean"] * before["scores"] + row["mean"] * row["scores"]) / count
        before["scores"] = count
        for key in ("max", "spread"):
            before[key] = max(before[key], row[key])
        if row["tolerance"] not in before["tolerance"].split(", "):
            before["tolerance"] += f", {row['tolerance']}"
    return [made[name] for name in sorted(made)]


def official(row: Row) -> str:
    """The official code with its version where it has one, and the libraries under it."""
    versions = dict(row["versions"])
    own = versions.pop(row["package"], "")
    under = ", ".join(f"{name} {version.partition('+')[0]}" for name, version in sorted(versions.items()))
    return f"{row['package']} {own}".strip() + (f" on {under}" if under else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    chosen = parser.parse_args()
    try:
        paths = files(chosen.families)
    except ValueError as error:
        parser.error(str(error))
    collector = Collector()
    with contextlib.redirect_stdout(sys.stderr), contextlib.chdir(ROOT):
        code = pytest.main(["-q", "-p", "no:cacheprovider", *map(str, paths)], plugins=[collector])
    rows = merged(collector.rows)
    if chosen.json:
        print(json.dumps(rows, indent=1))
        return int(code)
    os.environ.setdefault("COLUMNS", "160")
    from rwk.cli.console import show, table

    heads = ["adapter", "official code", "scores", "max difference", "mean difference", "spread", "tolerance"]
    cells = [
        [row["adapter"], official(row), str(row["scores"]), *(f"{row[key]:.1e}" for key in ("max", "mean"))]
        + [f"{row['spread']:.3g}", row["tolerance"]]
        for row in rows
    ]
    show(table(heads, cells, numbers=heads[2:6]))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())

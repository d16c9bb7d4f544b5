"""What the scripts parity_*.py have in common; they also run in environments of the official code's time."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def commit(checkout: Path) -> str:
    """The commit of a clone, abbreviated."""
    asked = ["git", "-C", str(checkout), "rev-parse", "--short=8", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def one_step(text: str | None, record: Callable[..., Any], **clones: str) -> None:
    """A command that records a case's official scores.

    Args:
        text: of the command's help.
        record: is given the clones and the JSON file to write.
        clones: argument -> the repository that it is a clone of.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    _take(parser, clones)
    given = parser.parse_args()
    record(*(getattr(given, name).resolve() for name in (*clones, "out")))


def two_steps(text: str | None, write: Callable[[Path], Any], record: Callable[..., Any], **clones: str) -> None:
    """A command that writes a case's files in one environment, and records its official scores in another.

    Args:
        text: of the command's help.
        write: is given the folder of the case's files.
        record: is given that folder, the clones and the JSON file to write.
        clones: argument -> the repository that it is a clone of.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    first, last = steps.add_parser("case"), steps.add_parser("record")
    for step in (first, last):
        step.add_argument("folder", type=Path, help="of the case's files")
    _take(last, clones)
    given = parser.parse_args()
    if given.step == "case":
        write(given.folder)
    else:
        record(*(getattr(given, name).resolve() for name in ("folder", *clones, "out")))


def _take(parser: argparse.ArgumentParser, clones: Mapping[str, str]) -> None:
    """Adds the arguments that every recording has."""
    for name, repository in clones.items():
        parser.add_argument(name, type=Path, help=f"a clone of {repository}")
    parser.add_argument("out", type=Path, help="JSON file to write")

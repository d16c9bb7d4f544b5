"""Files that say of each prompt what a judge should know of it: a JSON object a line, with a `prompt`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def by_prompt(path: str | Path, read: Callable[[Mapping[str, Any]], T]) -> dict[str, T]:
    """What `read` makes of each record of a JSONL file, by the record's prompt; of equal prompts the last counts.

    Args:
        path: the file.
        read: may raise ValueError for a record that it cannot take.

    Raises:
        ValueError: for a file that cannot be read, or naming the line that is no record with a prompt.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"metadata must be a JSONL file with a `prompt` a record, got {path} ({error}).") from error
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
                raise ValueError("it is no object with a text `prompt`.")
            found[record["prompt"]] = read(record)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} cannot be taken: {error!s:.300} Mend or remove it.") from error
    return found

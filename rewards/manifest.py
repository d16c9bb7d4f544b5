"""Which images are scored, each with its prompt: from files, folders, manifests, prompt files and side files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rwk.rewards.configs import TABLES
from rwk.rewards.images import SUFFIXES, find
from rwk.rewards.readable import is_text, parquet_of, text_of


class Item(NamedTuple):
    """One image to score."""

    image: Path
    prompt: str | None
    """None where it was not given; then `prompt_of` looks beside the image."""


class Items(NamedTuple):
    """The images to score, in the order of the rows."""

    items: list[Item]
    skipped: int
    """Files passed over because they are hidden or not named like an image."""


def gather(named: Sequence[str], *, prompt: str | None = None, prompts: Path | None = None) -> Items:
    """The images of files, folders, globs and manifests, in the order named.

    A file that is named twice counts once, but every row of a manifest counts. A text file beside another image that
    is named, as `images/*` does, holds its prompt and is skipped.

    Args:
        named: see above.
        prompt: the prompt of all images.
        prompts: a file of prompts, see `with_prompts`.

    Raises:
        FileNotFoundError: for a name that stands for nothing.
        ValueError: for a folder without images, a manifest or a file of prompts that does not fit, and for a prompt
            that is no Unicode text.
    """
    items: list[Item] = []
    files: dict[Path, None] = {}
    skipped = 0
    for name in named:
        if name.lower().endswith(TABLES) and Path(name).is_file():
            items += manifest(Path(name))
            continue
        found = find(name)
        skipped += found.skipped
        items += [Item(path, None) for path in found.paths if path not in files]
        files.update(dict.fromkeys(found.paths))
    pictured = {path.with_suffix("") for path in files if path.suffix.lower() in SUFFIXES}
    kept = [item for item in items if item.image.suffix.lower() != ".txt" or item.image.with_suffix("") not in pictured]
    skipped += len(items) - len(kept)
    if prompt is not None:
        if not is_text(prompt):
            raise ValueError(f"--prompt must be in UTF-8, got {prompt[:40]!r}; check the terminal's encoding.")
        kept = [item._replace(prompt=prompt) for item in kept]
    if prompts is not None:
        kept = with_prompts(kept, prompts)
    return Items(kept, skipped)


def manifest(path: Path) -> list[Item]:
    """The rows of a .jsonl, .csv or .parquet file with the columns `image` and, if wanted, `prompt`.

    Relative paths start at the manifest's folder. A row whose prompt is empty, or spaces alone, has none, as CSV cannot
    tell the two apart: `prompt_of` then looks beside the image, and a reward that needs a prompt gives it no score.
    """
    items = []
    for place, row in records(path):
        image = row.get("image")
        if not isinstance(image, str) or not image:
            raise ValueError(f"{path} {place} must name a file in the column image, got {image!r}; correct the row.")
        items.append(Item(path.parent / image, _text(path, place, row)))
    if not items:
        raise ValueError(f"{path} must hold at least one row, got none; name a file with rows.")
    return items


def with_prompts(items: list[Item], path: Path) -> list[Item]:
    """The items with the prompts of a file.

    A .jsonl, .csv or .parquet file has the columns `prompt` and `image`; an image is found by its path, which starts
    at the file's folder, or else by its name where that is the only one. Without the column `image`, and in a text
    file with a prompt a line, prompts are in the order of the images.

    Raises:
        ValueError: where an image is without a prompt, since its row has none, or an empty one.
    """
    if path.suffix.lower() not in TABLES:
        return _in_order(items, [(f"line {number}", line) for number, line in enumerate(_lines(path), 1)], path)
    rows = [(place, row.get("image"), _text(path, place, row)) for place, row in records(path)]
    if all(image is None for _, image, _ in rows):
        return _in_order(items, [(place, prompt or "") for place, _, prompt in rows], path)
    by_path: dict[str, str | None] = {}
    by_name: dict[str, set[str | None]] = {}
    for place, image, prompt in rows:
        if not isinstance(image, str) or not image:
            raise ValueError(f"{path} {place} must name a file in the column image, got {image!r}; correct the row.")
        by_path[os.path.abspath(path.parent / image)] = prompt
        by_name.setdefault(Path(image).name, set()).add(prompt)
    found, missing = [], []
    for item in items:
        same_name = by_name.get(item.image.name, set())
        alone = next(iter(same_name)) if len(same_name) == 1 else None
        prompt = by_path.get(os.path.abspath(item.image), alone)
        found.append(item._replace(prompt=prompt))
        missing += [] if prompt else [item.image]
    if missing:
        raise ValueError(
            f"{path} must hold a prompt for every image, got none for {len(missing)} of {len(items)}, "
            f"the first {missing[0]}; add it or leave the image out."
        )
    return found


def _in_order(items: list[Item], prompts: Sequence[tuple[str, str]], path: Path) -> list[Item]:
    """The items with the prompts, each of which comes with its place."""
    if empty := next((place for place, prompt in prompts if not prompt.strip()), None):
        raise ValueError(f"{path} {empty} must hold the prompt of an image, got none; write or remove it.")
    if len(items) != len(prompts):
        raise ValueError(
            f"{path} must hold one prompt per image, got {len(prompts)} prompts and {len(items)} images; "
            f"repeat a prompt for every image made from it."
        )
    return [item._replace(prompt=prompt) for item, (_, prompt) in zip(items, prompts, strict=True)]


def prompt_of(item: Item) -> str:
    """The prompt of an image: the one given, else the text file of its name beside it, else "", which is none.

    Raises:
        ValueError: where that file is not text in UTF-8.
    """
    if item.prompt is not None:
        return item.prompt
    beside = item.image.with_suffix(".txt")
    try:
        with text_of(beside):
            return " ".join(beside.read_text(encoding="utf-8-sig").split())
    except OSError:
        return ""


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a .jsonl, .csv or .parquet file, each after its place, such as "line 3".

    Raises:
        ValueError: for a file that is not of its kind, or text that is not UTF-8.
    """
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        with parquet_of(path), pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
    elif path.suffix.lower() == ".csv":
        with text_of(path), path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            yield from ((f"line {reader.line_num}", row) for row in reader)
    else:
        with text_of(path), path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {number}", _object(path, number, line)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path} line {number} must be a JSON object, got no JSON: {error}.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path} line {number} must be a JSON object, got {type(row).__name__}.")
    return row


def _text(path: Path, place: str, row: dict[str, Any]) -> str | None:
    prompt = row.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"{path} {place} must hold text in the column prompt, got {prompt!r}; correct the row.")
    if prompt and not is_text(prompt):
        raise ValueError(f"{path} {place} must hold a prompt in Unicode, got {prompt[:40]!r}; correct the row.")
    return prompt if prompt and prompt.strip() else None


def _lines(path: Path) -> list[str]:
    with text_of(path):
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")

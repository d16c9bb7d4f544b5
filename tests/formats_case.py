"""Files of preferences for the tests of formats: eight small pictures, Parquet, and Pick-a-Pic's rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from rwk.rewards.data import PreferenceDataset
from rwk.rewards.pictures import opened

SHADES = {name: (20 * place, 90, 200) for place, name in enumerate("abcdefgh")}


def encoded(name: str) -> bytes:
    """The PNG of one of the pictures a to h, which differ in red."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), SHADES[name]).save(file, "PNG")
    return file.getvalue()


def held(name: str) -> dict[str, Any]:
    """The same as a Hugging Face image column holds it."""
    return {"bytes": encoded(name), "path": f"{name}.png"}


def parquet(path: Path, rows: list[dict[str, Any]], row_group: int = 2) -> Path:
    """The Parquet file, in row groups of that many rows."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group)
    return path


def told(data: PreferenceDataset) -> list[tuple[str, str, str, float, float]]:
    """Prompt, first and second picture by its letter, label and weight of every row."""
    letters = {shade: name for name, shade in SHADES.items()}

    def letter(picture: Any) -> str:
        return letters[opened(picture).convert("RGB").getpixel((0, 0))]  # type: ignore[index]

    return [(r.prompt, letter(r.first), letter(r.second), round(r.p_first, 6), round(r.weight, 6)) for r in data]


def left_out(data: PreferenceDataset) -> dict[str, int]:
    """How many were left out, by the reason."""
    return {of["why"]: of["count"] for of in data.omissions.document()}


PICK = {"has_label": True, "are_different": True, "best_image_uid": "u-a", "ranking_id": 1, "user_id": 2}


def pick(first: str, second: str, label: float, **more: Any) -> dict[str, Any]:
    """A row of Pick-a-Pic with the columns of its v1."""
    sides = {f"image_{i}_uid": f"u-{name}" for i, name in enumerate((first, second))}
    urls = {f"image_{i}_url": f"https://images.example/u-{name}.png" for i, name in enumerate((first, second))}
    images = {f"jpg_{i}": encoded(name) for i, name in enumerate((first, second))}
    labels = {"label_0": label, "label_1": 1 - label, "num_example_per_prompt": 1}
    return {"caption": "a dog", **PICK, **sides, **urls, **images, **labels} | more

"""Pick-a-Pic v1 and v2, with images and without (PickScore, trainer/datasetss/clip_hf_dataset.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rwk.rewards.judgements import Judged, Judgement, LeftOut, Source, field, number
from rwk.rewards.pictures import Stored


def pickapic(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """The pair of a row, 0.5 for both being a tie; rows without a label are left out.

    As in PickScore's loss, a row weighs one over the rows of its prompt. Where a file lacks the images they are sought
    by their uid, as the addresses that it names are not served any more.
    """
    if not record.get("has_label", True):
        yield LeftOut("nobody judged the pair")
        return
    rows = number(record.get("num_example_per_prompt") or 1, "num_example_per_prompt")
    first, second = (record.get(f"jpg_{side}") or field(record, f"image_{side}_uid") for side in (0, 1))
    drawn = (str(record.get(f"model_{side}") or "") for side in (0, 1))
    p_first = number(field(record, "label_0"), "label_0")
    yield Judged(field(record, "caption"), first, second, p_first, 1 / rows, *drawn)


def captions(folder: Path) -> dict[str, tuple[str, Stored | str]]:
    """Caption and image, or the name of its file, by the uid of the image, of all Pick-a-Pic tables in a folder.

    Raises:
        FileNotFoundError: where there is no such table.
    """
    import pyarrow.parquet

    found: dict[str, tuple[str, Stored | str]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        with pyarrow.parquet.ParquetFile(path) as file:
            held = set(file.schema_arrow.names)
            if not {"caption", "image_0_uid", "image_1_uid"} <= held:
                continue
            rows = file.read(["caption", "image_0_uid", "image_1_uid"]).to_pylist()
        for number_, row in enumerate(rows):
            for side in (0, 1):
                uid = row[f"image_{side}_uid"]
                inside = Stored(path, number_, f"jpg_{side}", None, uid) if f"jpg_{side}" in held else uid
                found.setdefault(uid, (row["caption"], inside))
    if not found:
        raise FileNotFoundError(
            f"RichHF-18k names images of Pick-a-Pic v1 and holds no prompts, and {folder} has no Pick-a-Pic table; put "
            f"its .parquet files, with or without images, below that folder."
        )
    return found

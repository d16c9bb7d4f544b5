"""Images of one prompt that differ in one known thing: an edit, a group that must not matter, or how much detail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from rwk.rewards.base import UNREADABLE, to_rgb
from rwk.rewards.format_plain import voted
from rwk.rewards.judgements import LeftOut, number
from rwk.rewards.omissions import Omissions
from rwk.rewards.pictures import Stored, identity, opened
from rwk.rewards.records import records, row

_SHOWN = 3
"""Bad rows that an error names."""


class Edited(NamedTuple):
    """An image, and another that was made from it by an edit and fits the prompt less, or is worse."""

    prompt: str
    image: Image.Image
    edited: Image.Image
    edit: str


class Grouped(NamedTuple):
    """Two images between which nothing differs that should matter."""

    prompt: str
    first: Image.Image
    second: Image.Image
    group_first: str
    group_second: str
    attribute: str = "group"
    """What the groups are groups of."""


class Detailed(NamedTuple):
    """A plain image, and one that shows more and is no worse."""

    prompt: str
    plain: Image.Image
    detailed: Image.Image
    level: float
    """How much more it shows."""


@dataclass(frozen=True)
class Counterparts:
    """All that are known."""

    edited: Sequence[Edited] = ()
    grouped: Sequence[Grouped] = ()
    detailed: Sequence[Detailed] = ()
    omissions: Omissions = field(default_factory=Omissions)
    """Rows of a file that say nothing."""

    def __add__(self, other: Counterparts) -> Counterparts:
        return Counterparts(
            [*self.edited, *other.edited], [*self.grouped, *other.grouped], [*self.detailed, *other.detailed]
        )


def read_counterparts(path: Path) -> Counterparts:
    """The counterparts of a .jsonl, .json, .csv or .parquet file, of which each row is one of three kinds.

    Every row has `prompt`, `first` and `second`, images as in the plain format of preferences, and beside them

    * `edit`, and `p_first` or votes as there: one image was made from the other by that edit, and people prefer one;
    * `group_first` and `group_second`, perhaps `attribute`: the images differ in a group that must not matter;
    * `detail_first` and `detail_second`, numbers, perhaps `p_first`: one image shows more. Where people prefer the
      other one the row is left out.

    Raises:
        ValueError: for rows of none of these, the first few of which it names, and for a file without any.
    """
    if not path.is_file():
        raise ValueError(
            f"counterparts must be a file, got {'a folder' if path.is_dir() else 'none'} at {path}; correct the path."
        )
    found: dict[type, list[Any]] = {Edited: [], Grouped: [], Detailed: []}
    omissions, bad = Omissions(), []
    images: dict[str, Image.Image] = {}
    for place, value in records(path):
        try:
            one = _read(row(value), path.parent, images)
        except ValueError as error:
            bad.append(f"{place}: {error}")
            continue
        if isinstance(one, LeftOut):
            omissions.add(one.why, place)
        else:
            found[type(one)].append(one)
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ValueError(f"{path} has bad rows: {'; '.join(bad[:_SHOWN])}{more}. Correct or remove them.")
    if not any(found.values()):
        raise ValueError(
            f"{path} must hold at least one row of use, got none: {omissions or 'it is empty'}; name another."
        )
    return Counterparts(found[Edited], found[Grouped], found[Detailed], omissions)


def _read(
    record: Mapping[str, Any], folder: Path, images: dict[str, Image.Image]
) -> Edited | Grouped | Detailed | LeftOut:
    """What a row says."""
    prompt = record.get("prompt") or ""
    if not isinstance(prompt, str):
        raise ValueError(f"prompt must be text, got {prompt!r}")
    kinds = [kind for kind in ("edit", "group_first", "detail_first") if record.get(kind) not in (None, "")]
    if len(kinds) != 1:
        raise ValueError(f"needs one of edit, group_first and detail_first, got columns {', '.join(map(str, record))}")
    first, second = (_image(record, side, folder, images) for side in ("first", "second"))
    if kinds == ["edit"]:
        lead = voted(record) - 0.5
        if not lead:
            return LeftOut("nobody prefers the one or the other")
        return Edited(prompt, *((first, second) if lead > 0 else (second, first)), str(record["edit"]))
    if kinds == ["group_first"]:
        one, other = str(record["group_first"]), str(record.get("group_second") or "")
        if other in ("", one):
            raise ValueError(f"group_second must name another group than {one}, got {other!r}")
        return Grouped(prompt, first, second, one, other, str(record.get("attribute") or "group"))
    details = [number(record.get(f"detail_{side}"), f"detail_{side}") for side in ("first", "second")]
    more = details[1] - details[0]
    if not math.isfinite(more) or not more:
        raise ValueError(f"detail_first and detail_second must be two different numbers, got {details}")
    judged = any(record.get(column) not in (None, "") for column in ("p_first", "votes_first"))
    if judged and (voted(record) - 0.5) * more > 0:
        return LeftOut("people prefer the image with less detail")
    return Detailed(prompt, *((first, second) if more > 0 else (second, first)), abs(more))


def _image(record: Mapping[str, Any], side: str, folder: Path, images: dict[str, Image.Image]) -> Image.Image:
    """The image on that side of a row; one that several rows name is opened once."""
    held = record.get(side)
    if not isinstance(held, Stored | str) or not held:
        raise ValueError(f"{side} must be the path of an image, got {held!r}")
    picture = held if isinstance(held, Stored) else folder / held
    if identity(picture) not in images:
        try:
            images[identity(picture)] = to_rgb(opened(picture))
        except UNREADABLE as error:
            raise ValueError(f"{side} names no image that can be read, got {held!r} ({error})") from error
    return images[identity(picture)]

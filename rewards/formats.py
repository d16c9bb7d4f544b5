"""Preferences from the files of published sets: formats are told by their columns, or named as FORMAT:FILE."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, combinations, islice
from pathlib import Path
from typing import Any, NamedTuple

from rwk.rewards.data import Preference, PreferenceDataset
from rwk.rewards.judgements import Judged, Judgement, LeftOut, Rated, Source, share
from rwk.rewards.omissions import Omissions
from rwk.rewards.pictures import Picture, Stored
from rwk.rewards.records import READERS, records, row

_SHOWN = 3
"""Bad rows that an error names."""
_LOOKED_AT = 20
"""Rows in which columns are sought, where the first ones are no rows at all."""
_ENDINGS = ("", ".jpg", ".png", ".jpeg", ".webp")
_ALONE = "they are the only rated image of their prompt"


class Format(NamedTuple):
    """How a set is read."""

    target: str
    """module:function, which takes a row and its `Source` and gives judgements."""
    columns: tuple[frozenset[str], ...]
    """What tells it: any of these sets of columns; the largest set of all formats wins."""
    aspects: tuple[str, ...] = ("",)
    """What may stand behind its name, as in hpdv2.votes; the first holds where nothing does."""


def _format(target: str, *columns: str, aspects: str = "") -> Format:
    return Format(f"rwk.rewards.{target}", tuple(frozenset(of.split()) for of in columns), tuple(aspects.split(" ")))


FORMATS = {
    "plain": _format("format_plain:plain", "first second"),
    "pickapic": _format("format_pickapic:pickapic", "caption label_0 label_1"),
    "hpdv2": _format(
        "format_rankings:hpdv2", "prompt human_preference", "prompt image_path rank", aspects="rank votes"
    ),
    "hpdv3": _format("format_pairs:hpdv3", "prompt path1 path2", aspects="all confident"),
    "imagereward": _format(
        "format_rankings:imagereward",
        "prompt generations ranking",
        "prompt img_better img_worse",
        "prompt prompt_id image rank",
        "prompt prompt_id image_path rank",
        aspects="rank overall alignment fidelity",
    ),
    "genai_bench": _format("format_ratings:genai_bench", "key prompt models", "Prompt HumanRatings"),
    "genai_arena": _format("format_pairs:genai_arena", "prompt left_image right_image vote_type"),
    "mjbench": _format("format_pairs:mjbench", "caption image0 image1 label"),
    "mmrb2": _format(
        "format_pairs:mmrb2", "response_a response_b chosen", "response_a_images response_b_images chosen"
    ),
    "richhf": _format(
        "format_ratings:richhf", "filename overall_score", aspects="overall aesthetics artifact misalignment"
    ),
    "evalmuse": _format("format_ratings:evalmuse", "prompt img_path total_score"),
}
"""Formats by name."""


def read(source: Path | str) -> PreferenceDataset:
    """The preferences of a file, such as "pairs.csv", "hpdv2:test.json" or "richhf.artifact:dev.tfrecord".

    Pictures are sought beside the file, in a folder of its name without the ending, and in a folder `images`. Of the
    published sets, what has no picture or no use is left out and counted in `omissions`; in the plain format a missing
    picture is an error.

    Raises:
        ValueError: for an unknown format, an empty file, or bad rows, the first few of which it names by their place.
    """
    name, aspect, path = _parted(str(source))
    found = records(path)
    if not path.is_file():
        came = "a folder" if path.is_dir() else "none"
        raise FileNotFoundError(f"{path} must be a file of preferences, got {came}; correct the path.")
    if not name:
        first = list(islice(found, _LOOKED_AT))
        name, found = recognised(path, first), chain(first, found)
    module, _, function = FORMATS[name].target.partition(":")
    reader = getattr(importlib.import_module(module), function)
    reading = _Reading(path, strict=name == "plain")
    reading.judgements(found, reader, Source(path, aspect or FORMATS[name].aspects[0]))
    return reading.dataset(str(source))


def is_data(argument: str) -> bool:
    """Whether a command's argument names a file of preferences and no reward."""
    return _named(argument)[0] in FORMATS or Path(argument).suffix.lower() in READERS


def recognised(path: Path, first: Iterable[tuple[str, Any]]) -> str:
    """The format whose columns a row has; the plain one where there is no row that has columns.

    Raises:
        ValueError: where the columns are nobody's.
    """
    for _, value in first:
        try:
            held = row(value)
        except ValueError:
            continue
        sizes = {
            name: max((len(columns) for columns in known.columns if columns <= set(held)), default=0)
            for name, known in FORMATS.items()
        }
        best = max(sizes, key=lambda name: sizes[name])
        if not sizes[best]:
            raise ValueError(
                f"{path} must have the columns of a known format, got {', '.join(map(str, held))}; give it the columns "
                f"prompt, first, second and p_first, or name its format, as in hpdv2:{path.name}: {', '.join(FORMATS)}."
            )
        return best
    return "plain"


def _named(source: str) -> tuple[str, str]:
    """What stands before the first colon, without its aspect, and the aspect."""
    name, _, aspect = source.partition(":")[0].partition(".")
    return (name, aspect) if ":" in source else ("", "")


def _parted(source: str) -> tuple[str, str, Path]:
    """Format, aspect and path, the first two empty where no format is named."""
    name, aspect = _named(source)
    if not name or Path(source).exists() or len(name) == 1:  # a drive
        return "", "", Path(source)
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r} in {source}; there are {', '.join(FORMATS)}.")
    if aspect and aspect not in FORMATS[name].aspects:
        known = ", ".join(f"{name}.{one}" for one in FORMATS[name].aspects if one)
        raise ValueError(f"unknown format {name}.{aspect} in {source}; there is {known or name}.")
    return name, aspect, Path(source.partition(":")[2])


class _Reading:
    """Rows that become preferences: pictures are found, and what is wrong or missing is kept account of."""

    def __init__(self, path: Path, *, strict: bool) -> None:
        self.path = path
        self.strict = strict
        self.rows: list[Preference] = []
        self.places: list[str] = []
        self.bad: list[str] = []
        self.omissions = Omissions()
        self.rated: dict[str, list[tuple[str, Rated, Picture]]] = {}
        self.stored: dict[str, Stored] = {}

    def judgements(
        self,
        found: Iterable[tuple[str, Any]],
        reader: Callable[[Mapping[str, Any], Source], Iterator[Judgement]],
        source: Source,
    ) -> None:
        """Takes in all rows."""
        for place, value in found:
            try:
                for judgement in reader(row(value), source):
                    self._take(place, judgement)
            except ValueError as error:
                self.bad.append(f"{place}: {error}")
        for images in self.rated.values():
            if len(images) == 1:
                self.omissions.add(_ALONE, images[0][0])
            for (place, one, first), (other, two, second) in combinations(images, 2):
                self._keep(f"{place} and {other}", Judged(one.prompt, first, second, share(one.rating, two.rating)))

    def _take(self, place: str, judgement: Judgement) -> None:
        if isinstance(judgement, LeftOut):
            self.omissions.add(judgement.why, place)
        elif not isinstance(judgement.prompt, str):
            raise ValueError(f"prompt must be text, got {judgement.prompt!r}")
        elif isinstance(judgement, Rated):
            picture = self._picture(place, "image", judgement.picture)
            if picture is not None:
                self.rated.setdefault(judgement.group, []).append((place, judgement, picture))
        else:
            first = self._picture(place, "first", judgement.first)
            second = first and self._picture(place, "second", judgement.second)
            if first is not None and second is not None:
                self._keep(place, judgement._replace(first=first, second=second))

    def _keep(self, place: str, judged: Judged) -> None:
        if not 0 <= judged.p_first <= 1:
            raise ValueError(f"p_first must lie in 0..1, got {judged.p_first:g}")
        if not 0 < judged.weight < float("inf"):
            raise ValueError(f"weight must be above 0, got {judged.weight:g}")
        self.rows.append(Preference(*judged))
        self.places.append(place)

    def _picture(self, place: str, column: str, value: Any) -> Picture | None:
        """The picture, or None where a published set lacks it, which is then counted."""
        if isinstance(value, Stored):
            return self.stored.setdefault(value.key, value)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{column} must be the path of an image, got {value!r}")
        if self.strict:
            if not (self.path.parent / value).is_file():
                raise ValueError(f"{column} names no file, got {value!r}")
            return self.path.parent / value
        folders = (self.path.parent, self.path.with_suffix(""), self.path.parent / "images")
        names = [value] if Path(value).suffix else [value + ending for ending in _ENDINGS]
        for candidate in chain((f / n for f in folders for n in names), [self.path.parent / Path(value).name]):
            if candidate.is_file():
                return candidate
        gone = "an address, which is not fetched" if "://" in value else "missing"
        self.omissions.add(f"an image of theirs is {gone}", f"{place}, {value}")
        return None

    def dataset(self, name: str) -> PreferenceDataset:
        """What was read; raises ValueError where any row was bad, or none is left."""
        if self.bad:
            more = f"; and {len(self.bad) - _SHOWN} more" if len(self.bad) > _SHOWN else ""
            raise ValueError(f"{self.path} has bad rows: {'; '.join(self.bad[:_SHOWN])}{more}. Correct or remove them.")
        if not self.rows:
            why = f": {self.omissions}" if self.omissions else ""
            raise ValueError(f"{self.path} must hold at least one preference, got none{why}; name another file.")
        return PreferenceDataset(self.rows, self.places, name=name, omissions=self.omissions)

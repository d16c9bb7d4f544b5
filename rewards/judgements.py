"""What a row of a file says about pictures: that one is better, how good one is, or nothing that can be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple


class Judged(NamedTuple):
    """A pair; its pictures are names of files or `Stored`."""

    prompt: str
    first: Any
    second: Any
    p_first: float
    weight: float = 1.0
    generator_first: str = ""
    generator_second: str = ""


class Rated(NamedTuple):
    """A picture alone, which makes a pair with every other one of its group."""

    group: str
    """Whose ratings can be compared, such as the prompt."""
    prompt: str
    picture: Any
    rating: float
    """Larger is better."""


class LeftOut(NamedTuple):
    """Nothing, and why."""

    why: str


Judgement = Judged | Rated | LeftOut


class Source:
    """The file that rows come from, and which of its judgements are wanted."""

    def __init__(self, path: Path, aspect: str) -> None:
        self.path = path
        self.aspect = aspect
        self._made: dict[Callable[[Path], Any], Any] = {}

    def once(self, make: Callable[[Path], Any]) -> Any:
        """What the function makes of the file's folder, made on first use."""
        if make not in self._made:
            self._made[make] = make(self.path.parent)
        return self._made[make]


def share(first: float, second: float) -> float:
    """Which of two ratings is larger, as a share that prefers the first: 1, 0, or 0.5 where they are equal."""
    return 0.5 + 0.5 * ((first > second) - (first < second))


def pairs(
    prompt: str,
    pictures: Sequence[Any],
    ratings: Sequence[float],
    *,
    weight: float = 1.0,
    generators: Sequence[str] = (),
) -> Iterator[Judged]:
    """Every two pictures of a prompt, of which the one with the larger rating is preferred.

    Args:
        generators: what drew each picture, where that is known.

    >>> [pair.p_first for pair in pairs("a dog", ["a", "b", "c"], [3, 1, 3])]
    [1.0, 0.5, 0.0]
    """
    if len(pictures) != len(ratings):
        raise ValueError(f"needs one rank or rating an image, got {len(pictures)} images and {len(ratings)} of them")
    drawn = generators or [""] * len(pictures)
    for (first, one, by), (second, two, other) in combinations(zip(pictures, ratings, drawn, strict=True), 2):
        yield Judged(prompt, first, second, share(one, two), weight, by, other)


def field(record: Mapping[str, Any], column: str) -> Any:
    """What a row must have; raises ValueError that names the column."""
    value = record.get(column)
    if value is None:
        raise ValueError(f"needs {column}, got columns {', '.join(map(str, record))}")
    return value


def number(value: Any, column: str) -> float:
    """The value as a number; raises ValueError that names the column."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{column} must be a number, got {value!r}") from None

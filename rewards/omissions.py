"""What was left out of some data, and how often."""

from __future__ import annotations

from typing import Any


class Omissions:
    """Counts by reason, each with where it first came up.

    >>> found = Omissions()
    >>> for place in ("row 3", "row 8"):
    ...     found.add("nobody judged the pair", place)
    >>> str(found)
    '2 left out as nobody judged the pair (first: row 3)'
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, why: str, place: str) -> None:
        """Counts one more."""
        count, first = self._found.get(why, (0, place))
        self._found[why] = (count + 1, first)

    def __bool__(self) -> bool:
        return bool(self._found)

    def __str__(self) -> str:
        return "; ".join(f"{count} left out as {why} (first: {first})" for why, (count, first) in self._found.items())

    def document(self) -> list[dict[str, Any]]:
        """The same for a JSON document."""
        return [{"why": why, "count": count, "first": first} for why, (count, first) in self._found.items()]

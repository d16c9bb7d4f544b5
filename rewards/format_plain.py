"""The plain format: one pair a row, in columns of our own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rwk.rewards.judgements import Judged, Judgement, Source, number


def plain(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """The pair of a row; see `PreferenceDataset` for the columns."""
    prompt = record.get("prompt")
    if not isinstance(prompt, str | None):
        raise ValueError(f"prompt must be text, got {prompt!r}")
    weight = _number(record, "weight", 1.0)
    drawn = (str(record.get(f"generator_{side}") or "") for side in ("first", "second"))
    yield Judged(prompt or "", record.get("first"), record.get("second"), voted(record), weight, *drawn)


def voted(record: Mapping[str, Any]) -> float:
    """Share that prefers the first; raises ValueError where neither it nor votes are given."""
    if record.get("p_first") not in (None, ""):
        return number(record["p_first"], "p_first")
    if record.get("votes_first") in (None, "") or record.get("votes_second") in (None, ""):
        raise ValueError(f"needs p_first, or votes_first and votes_second, got columns {', '.join(map(str, record))}")
    votes = [_number(record, column, 0) for column in ("votes_first", "votes_second", "ties")]
    if min(votes) < 0 or sum(votes) == 0:
        raise ValueError(f"votes must be counts with a sum above 0, got {', '.join(f'{v:g}' for v in votes)}")
    return (votes[0] + votes[2] / 2) / sum(votes)


def _number(record: Mapping[str, Any], column: str, default: float) -> float:
    value = record.get(column)
    return default if value in (None, "") else number(value, column)

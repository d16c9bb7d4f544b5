"""The forecast of `rwk probe` as a table and as a document."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rwk.cli.console import show, table

if TYPE_CHECKING:
    from rwk.calibration.forecast import Forecast
    from rwk.calibration.probe import Subject
    from rwk.calibration.statistics import Interval


def forecasts(subject: Subject) -> dict[str, list[Forecast]]:
    """What is forecast of the truth, by its name."""
    from rwk.calibration.forecast import forecast

    found = {"gold": forecast(subject), "all facts hold": forecast(subject, fitting=True)}
    if not any(found.values()):
        raise ValueError("--forecast needs to know the truth about the images, got none; name it with --gold.")
    return {name: of for name, of in found.items() if of}


def show_forecasts(found: dict[str, list[Forecast]]) -> None:
    """A table for each truth: what it is now, and what choosing by the reward gains, a column a domain."""
    for name, of in found.items():
        heads = (name, *(one.domain for one in of))
        lines: dict[str, list[Interval | None]] = {
            "as it is drawn": [one.now for one in of],
            "gain of the best of 4: likely": [one.likely for one in of],
            f"gain of the best of {of[0].images}: possible": [one.most for one in of],
            "best of 4, share of what the truth would gain": [one.eta for one in of],
            "that share over the one in domain": [one.retention for one in of],
        }
        show(table(heads, [[words, *map(_cell, values)] for words, values in lines.items()], numbers=heads[1:]))
    if found:
        show(
            "A forecast, with 95 % intervals by prompt: what choosing the best image by the reward gains in truth. "
            "Learning is likely to gain no more than best of 4 does, and may come to the best of all; neither is a "
            "bound."
        )


def _cell(value: Interval | None) -> str:
    if value is None or not math.isfinite(value.mean):
        return ""
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def document(found: dict[str, list[Forecast]]) -> dict[str, Any]:
    """The forecasts with their intervals as objects."""

    def plain(value: Any) -> Any:
        return value._asdict() if hasattr(value, "_asdict") else value

    return {name: [{key: plain(v) for key, v in one._asdict().items()} for one in of] for name, of in found.items()}

"""The rules of T2I-R1's detector reward (Jiang et al., 2025): how much of a prompt is among the boxes of its nouns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torchvision.ops import box_convert, nms

NEAR = ("next to", "on side of", "near")
LEFT = ("left of", "on the left of")
RIGHT = ("right of", "on the right of")
BELOW = ("below", "on the bottom of")
ABOVE = ("above", "on top of", "top of", "on the top of")
REACH = 150.0
"""Distance of centres along an axis within which two things are near."""
SIDE = 480.0
"""Pixels of a picture's longer side where `REACH` comes from, T2I-CompBench's spatial score."""
OVERLAP = 0.1
"""Intersection over union from which a direction counts less."""
SAME = 0.5
"""Intersection over union from which two boxes are one thing."""
THERE, COUNTED_WRONG, PLACED = 0.2, 0.2, 0.5
"""What each of two things is worth that is there, a wrong number of things, and the right place."""


@dataclass(frozen=True)
class Wanted:
    """What a prompt asks for: things, or numbers of them, or one placed to another."""

    nouns: tuple[str, ...]
    counts: tuple[tuple[str, int], ...] = ()
    place: tuple[str, str, str] | None = None
    """First thing, second thing, and how the first is to the second."""


class Boxes(NamedTuple):
    """The boxes of one noun."""

    boxes: Tensor
    """[N, 4] centre x, centre y, width and height as shares of the picture's sides."""
    scores: Tensor
    """[N]"""


@dataclass(frozen=True)
class Rules:
    """How the boxes are read; the defaults are what T2I-R1 means, `PUBLISHED` what its code does."""

    above: tuple[str, ...] = ABOVE
    """Words for above; in the code "above" and "on top of" are none, so their place is never right."""
    side: float | None = SIDE
    """Length of the picture's longer side in units of `REACH`; None for sides of 1, as in the code, where everything is
    near and a picture that is not square is measured as if it were."""
    corners: bool = True
    """Whether boxes are compared as corners; the code hands centres and sizes to a function that takes corners."""
    long: bool = True
    """Whether nouns of three words or more are found; the code looks for them by their first and last word alone."""


INTENDED = Rules()
PUBLISHED = Rules(above=("top of", "on the top of"), side=None, corners=False, long=False)


def read_wanted(record: Mapping[str, Any]) -> Wanted:
    """What a record of T2I-R1's prompts asks for: `nouns`, `task_type`, and with it the numbers or the place.

    Raises:
        ValueError: for what is no such record.
    """
    try:
        nouns = tuple(dict.fromkeys(noun.strip() for noun in record["nouns"] if noun.strip()))
        if record["task_type"] == "numeracy":
            counts = tuple((each["obj_name"].strip(), int(each["num"])) for each in record["numeracy_info"])
            return Wanted(tuple(dict.fromkeys([*nouns, *(noun for noun, _ in counts)])), counts)
        if record["task_type"] == "spatial":
            told = record["spatial_info"]
            first, second, place = (told[key].strip() for key in ("obj1", "obj2", "locality"))
            if place not in (*NEAR, *LEFT, *RIGHT, *BELOW, *ABOVE) or first == second:
                raise ValueError(f"a place is that of two things, in T2I-R1's words, got {record!r:.200}.")
            return Wanted(tuple(dict.fromkeys([*nouns, first, second])), place=(first, second, place))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"a record needs nouns, task_type, and numeracy_info or spatial_info for these tasks, got {record!r:.200}."
        ) from error
    return Wanted(nouns)


def score(found: Mapping[str, Boxes], wanted: Wanted, *, size: tuple[int, int], rules: Rules = INTENDED) -> float:
    """How much of what is wanted is there, 0 to 1 (0.9 at most for a place).

    Args:
        found: the boxes of each noun; a noun without boxes may be left out.
        wanted: not without nouns.
        size: width and height of the picture.
        rules: how boxes are read.
    """
    if wanted.counts:
        return sum(_counted(found.get(noun), count, rules) for noun, count in wanted.counts) / len(wanted.counts)
    if wanted.place is None:
        return sum(_there(found.get(noun)) for noun in wanted.nouns) / len(wanted.nouns)
    first, second, place = wanted.place
    seen = [found.get(first), found.get(second)]
    worth = THERE * sum(map(_there, seen))
    if not all(map(_there, seen)):
        return worth
    boxes = [surest(each, size, rules) for each in seen if each is not None]
    return worth + PLACED * placed(boxes[0], boxes[1], place, rules)


def _there(found: Boxes | None) -> bool:
    return found is not None and len(found.boxes) > 0


def _counted(found: Boxes | None, count: int, rules: Rules) -> float:
    """1 for the right number of things, less for another, 0 for none."""
    if found is None or not len(found.boxes):
        return 0.0
    boxes = box_convert(found.boxes, "cxcywh", "xyxy") if rules.corners else found.boxes
    return 1.0 if len(nms(boxes, found.scores, SAME)) == count else COUNTED_WRONG


def surest(found: Boxes, size: tuple[int, int], rules: Rules) -> list[float]:
    """Left, top, right, bottom of the surest box, in units of `REACH`."""
    corners = box_convert(found.boxes[found.scores.argmax()], "cxcywh", "xyxy").tolist()
    across, down = (1.0, 1.0) if rules.side is None else (rules.side * each / max(size) for each in size)
    return [corner * unit for corner, unit in zip(corners, (across, down, across, down), strict=True)]


def placed(first: Sequence[float], second: Sequence[float], place: str, rules: Rules = INTENDED) -> float:
    """How well the first box is placed to the second, 0 to 1.

    Near is 1 where the centres are within `REACH` along either axis, else `REACH` by the larger distance. A direction
    is 1 where the centres are farther apart along its axis than along the other, and the boxes overlap little.

    Args:
        first: left, top, right, bottom.
        second: the same.
        place: one of T2I-R1's words.
    """
    across, down = ((second[i] + second[i + 2] - first[i] - first[i + 2]) / 2 for i in (0, 1))
    if place in NEAR:
        return 1.0 if min(abs(across), abs(down)) < REACH else REACH / max(abs(across), abs(down))
    sideways = abs(across) > abs(down) and ((place in RIGHT and across < 0) or (place in LEFT and across > 0))
    upright = abs(down) > abs(across) and ((place in BELOW and down < 0) or (place in rules.above and down > 0))
    if not sideways and not upright:
        return 0.0
    shared = overlap(first, second)
    return 1.0 if shared < OVERLAP else OVERLAP / shared


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes, of which one has an area; 0 where neither has one."""
    sides = [max(0.0, min(first[i + 2], second[i + 2]) - max(first[i], second[i])) for i in (0, 1)]
    shared = sides[0] * sides[1]
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared
    return shared / union if union > 0 else 0.0

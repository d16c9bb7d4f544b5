"""GenEval's rules (Ghosh et al., 2023): which facts of a prompt hold of the things that a detector found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THINGS = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""COCO's 80 classes in their order, as GenEval names them."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six categories."""
SURE, SURE_OF_COUNTS = 0.3, 0.9
"""What a detection's score must exceed, and what it must where the category is counting."""
MOST = 16
"""Things of one class that count, the surest ones."""
MARGIN = 0.1
"""Share of the two things' sizes by which their centres must differ before it counts."""


@dataclass(frozen=True)
class Found:
    """One thing that a detector found."""

    score: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels."""
    mask: NDArray[np.bool_] | None = None
    """[H, W] of the whole picture; None where the detector has only boxes."""


@dataclass(frozen=True)
class Clause:
    """So many things of one class, perhaps of one colour, perhaps each so placed to those of an earlier clause."""

    thing: str
    count: int = 1
    colour: str | None = None
    relation: str | None = None
    target: int = 0
    """Number of the clause that `relation` is to."""


@dataclass(frozen=True)
class Facts:
    """What a prompt says: every clause of `include` must hold; of `exclude`, so many must not be there."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()


Detections = Mapping[str, Sequence[Found]]
"""What was found, by class."""
Namer = Callable[[str, Sequence[Found]], Sequence[str]]
"""The colour of each thing, given their class."""


def read_facts(record: Mapping[str, Any]) -> Facts:
    """The facts of a record of GenEval's metadata: `tag`, `include` and perhaps `exclude`.

    Raises:
        ValueError: for what is no such record.
    """
    try:
        tag, include, exclude = record["tag"], record["include"], record.get("exclude") or []
        facts = Facts(tag, tuple(map(_clause, include)), tuple(map(_clause, exclude)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a record needs tag, and include with class and count, got {record!r:.120}.") from error
    if tag not in TAGS or not facts.include:
        raise ValueError(f"a record needs a tag of {', '.join(TAGS)} and a clause to include, got {record!r:.120}.")
    for number, clause in enumerate(facts.include):
        if clause.relation is not None and not 0 <= clause.target < number:
            raise ValueError(f"a position is relative to an earlier clause, got {record!r:.120}.")
    return facts


def _clause(entry: Mapping[str, Any]) -> Clause:
    relation, target = entry.get("position") or (None, 0)
    clause = Clause(entry["class"], entry["count"], entry.get("color"), relation, target)
    known = clause.thing in THINGS and clause.colour in (None, *COLOURS) and relation in (None, *RELATIONS)
    if not known or not isinstance(clause.count, int) or not 1 <= clause.count <= MOST or not isinstance(target, int):
        raise ValueError(f"a clause is of COCO's classes, 1 to {MOST} of them, GenEval's colours, got {entry!r:.120}.")
    return clause


def sure(found: Detections, tag: str) -> dict[str, list[Found]]:
    """What counts for a prompt of that category: by class the surest first, at most `MOST`; no class is empty."""
    least = SURE_OF_COUNTS if tag == "counting" else SURE
    kept = {
        thing: sorted((each for each in group if each.score > least), key=lambda each: -each.score)[:MOST]
        for thing, group in found.items()
    }
    return {thing: group for thing, group in kept.items() if group}


def relations(first: Found, second: Found) -> set[str]:
    """How the first thing stands to the second: at most one of left and right, and one of above and below.

    Of the offset of the centres, the margin is taken off along each axis; what is left must be more than half of the
    whole offset.
    """
    moved, left = [], []
    for axis in (0, 1):
        low, high = first.box[axis], first.box[axis + 2]
        other_low, other_high = second.box[axis], second.box[axis + 2]
        moved.append((low + high - other_low - other_high) / 2)
        room = MARGIN * (abs(high - low) + abs(other_high - other_low))
        left.append(math.copysign(max(abs(moved[axis]) - room, 0), moved[axis]))
    if max(map(abs, left)) < 1e-3:
        return set()
    across, down = (step / math.hypot(*moved) for step in left)
    held = {"left of": across < -0.5, "right of": across > 0.5, "above": down < -0.5, "below": down > 0.5}
    return {relation for relation, holds in held.items() if holds}


def failures(found: Detections, facts: Facts, colour_of: Namer) -> list[str]:
    """What does not hold, a sentence each; nothing where the picture is right, as GenEval counts it.

    Of each class the surest things are looked at, as many as are asked for; more do not matter but to `exclude`. Things
    that fail their own clause are no target of a relation.

    Args:
        found: what counts, see `sure`.
    """
    told: list[str] = []
    groups: list[Sequence[Found] | None] = []
    for clause in facts.include:
        group = found.get(clause.thing, ())[: clause.count]
        wrong = _wrong(group, clause, groups, colour_of)
        told += [wrong] if wrong else []
        groups.append(None if wrong else group)
    for clause in facts.exclude:
        seen = len(found.get(clause.thing, ()))
        if seen >= clause.count:
            told.append(f"{seen} {clause.thing} found, fewer than {clause.count} wanted")
    return told


def _wrong(group: Sequence[Found], clause: Clause, groups: list[Sequence[Found] | None], colour_of: Namer) -> str:
    """Why a clause does not hold of its things, or ""."""
    if len(group) < clause.count:
        return f"{len(group)} {clause.thing} found, {clause.count} wanted"
    if clause.colour is not None:
        colours = list(colour_of(clause.thing, group))
        if colours.count(clause.colour) < clause.count:
            return f"{clause.thing} wanted {clause.colour}, found {' and '.join(dict.fromkeys(colours))}"
    if clause.relation is None:
        return ""
    targets = groups[clause.target]
    if targets is None:
        return f"nothing is there for {clause.thing} to be {clause.relation}"
    return "" if _placed(group, targets, clause.relation) else f"{clause.thing} found, not {clause.relation} its target"


def _placed(group: Sequence[Found], targets: Sequence[Found], relation: str) -> bool:
    """Whether every thing stands so to every target."""
    return all(relation in relations(each, target) for each in group for target in targets)


def partial(found: Detections, facts: Facts, colour_of: Namer, *, published: bool = False) -> float:
    """The mean over terms of how nearly each fact holds; 1 where all do, and below 0 where far too many are found.

    A clause has a term `1 - |n - wanted| / wanted` for the number n found, one of the same form for how many have the
    colour, and 1 or 0 for the relation. The last two are 0 where the number is not the one wanted. `exclude` has no
    say, as too many are a fault already.

    Args:
        found: what counts, see `sure`.
        published: as flow_grpo's server computes it, which for things of the right number that are wrongly placed adds
            a term of 1 to that of 0.
    """
    terms: list[float] = []
    groups: list[Sequence[Found] | None] = []
    for clause in facts.include:
        group = found.get(clause.thing, ())
        matched = len(group) == clause.count
        terms.append(1 - abs(clause.count - len(group)) / clause.count)
        if not matched:
            terms += [0.0] * (clause.colour is not None or clause.relation is not None)
        elif clause.colour is not None:
            right = list(colour_of(clause.thing, group)).count(clause.colour)
            terms.append(right / clause.count)
            matched = right == clause.count
        if matched and clause.relation is not None:
            targets = groups[clause.target]
            matched = targets is not None and _placed(group, targets, clause.relation)
            terms += [0.0, 1.0] if published and targets is not None and not matched else [float(matched)]
        groups.append(group if matched else None)
    return sum(terms) / len(terms)

"""Things found in pictures, and facts to check of them, on which GenEval's and flow_grpo's own code was run."""

from __future__ import annotations

import random
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
THINGS = ("dog", "cat", "wine glass")
COLOURS = ("red", "blue", "green")
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
EACH = 60
"""Cases of a category."""


class Thing(NamedTuple):
    """One thing that a detector might find."""

    thing: str
    score: float
    box: tuple[int, int, int, int]
    colour: str


class Case(NamedTuple):
    """A picture's things, and a record of GenEval's metadata."""

    record: dict[str, Any]
    things: list[Thing]


def one(draw: random.Random, options: tuple[T, ...]) -> T:
    """One of them; only `random()` is the same in every release of Python."""
    return options[int(draw.random() * len(options))]


def cases() -> list[Case]:
    """`EACH` of each category, right ones and wrong ones among them in about equal numbers."""
    draw = random.Random(20)
    return [case(draw, tag) for tag in TAGS for _ in range(EACH)]


def case(draw: random.Random, tag: str) -> Case:
    """Facts, and the things that would make them true, some of them changed."""
    first = one(draw, THINGS)
    second = one(draw, tuple(thing for thing in THINGS if thing != first))
    colours = one(draw, COLOURS), one(draw, COLOURS)
    count = 2 + int(3 * draw.random()) if tag == "counting" else 1
    record: dict[str, Any] = {"tag": tag, "prompt": tag, "include": [{"class": first, "count": count}]}
    if tag in ("two_object", "position", "color_attr"):
        record["include"].append({"class": second, "count": 1})
    if tag == "counting":
        record["exclude"] = [{"class": first, "count": count + 1}]
    if tag == "position":
        record["include"][1]["position"] = [one(draw, RELATIONS), 0]
        if draw.random() < 0.2:
            record["include"][1]["count"] = 2
    if tag in ("colors", "color_attr"):
        for entry, colour in zip(record["include"], colours, strict=False):
            entry["color"] = colour
    things = [thing for entry in record["include"] for thing in shown(draw, entry)]
    return Case(record, things + [found(draw, one(draw, THINGS)) for _ in range(int(3 * draw.random()))])


def shown(draw: random.Random, entry: dict[str, Any]) -> list[Thing]:
    """Things for a clause: mostly as many as are asked for, at times one more or less, or twenty."""
    more = one(draw, (0, 0, 0, 0, 0, 0, 1, -1, 20))
    return [found(draw, entry["class"], entry.get("color")) for _ in range(max(entry["count"] + more, 0))]


def found(draw: random.Random, thing: str, colour: str | None = None) -> Thing:
    """A thing somewhere, its score below or above what counts."""
    score = one(draw, (0.15, 0.35, 0.65, 0.95, 0.95, 0.95)) + 0.04 * draw.random()
    left, top = (int(200 * draw.random()) for _ in range(2))
    wide, high = (int(8 + 120 * draw.random()) for _ in range(2))
    wrong = colour is None or draw.random() < 0.2
    return Thing(thing, score, (left, top, left + wide, top + high), one(draw, COLOURS) if wrong else str(colour))


def pairs() -> list[tuple[Thing, Thing]]:
    """Two things each, of which some touch, some hold the other, and some are the same."""
    draw = random.Random(21)
    apart = [(found(draw, "dog"), found(draw, "cat")) for _ in range(150)]
    return apart + [(first, first) for first, _ in apart[:5]]


QUERIES, STRIDE = 12, 4
PICTURE, FITTED, FILLED = (50, 40), (80, 64), (96, 64)
"""Width and height of a picture, of the same resized, and filled up to multiples of 32."""


def answer() -> tuple[np.ndarray, np.ndarray]:
    """Logits of 81 classes [12, 81], and of masks [12, 16, 24] like blots, that a Mask2Former might give."""
    draw = np.random.RandomState(22)
    classes = draw.randn(QUERIES, 81)
    for query in range(QUERIES):
        classes[query, draw.randint(0, 80, 2)] += 6
    across, down = np.meshgrid(np.arange(FILLED[0] // STRIDE), np.arange(FILLED[1] // STRIDE))
    middle, reach = draw.rand(QUERIES, 2) * (24, 16), 2 + 4 * draw.rand(QUERIES)
    away = np.hypot(across - middle[:, 0, None, None], down - middle[:, 1, None, None])
    masks = reach[:, None, None] - away + 0.5 * draw.randn(*away.shape)
    return classes.astype(np.float32), masks.astype(np.float32)

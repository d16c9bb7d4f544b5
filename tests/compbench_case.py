"""Prompts and things found in pictures, on which T2I-CompBench's own code was run."""

from __future__ import annotations

import random
from typing import NamedTuple, TypeVar

T = TypeVar("T")
THINGS = ("dog", "cow", "key", "bowl")
PLURALS = ("dogs", "cows", "keys", "bowls")
PLACES = ("on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of")
DEPTHS = ("in front of", "behind", "hidden by")
NUMBERS = ("one", "two", "three", "four")
EACH = 150
"""Cases of a category."""


class Thing(NamedTuple):
    """One thing that a detector might find."""

    name: str
    score: float
    box: tuple[float, float, float, float]
    """Left, top, right, bottom, of a picture of 480 pixels."""


class Case(NamedTuple):
    """A prompt, and what is found, the surest first."""

    prompt: str
    things: list[Thing]


def one(draw: random.Random, options: tuple[T, ...]) -> T:
    """One of them; only `random()` is the same in every release of Python."""
    return options[int(draw.random() * len(options))]


def thing(draw: random.Random, name: str) -> Thing:
    """A thing somewhere, mostly in the middle, of a size that leaves most of them apart."""
    left, top = (400 * draw.random() for _ in range(2))
    wide, high = (20 + 180 * draw.random() ** 2 for _ in range(2))
    return Thing(name, 0.3 + 0.7 * draw.random(), (left, top, left + wide, top + high))


def spatial() -> list[Case]:
    """Two things and a place; neither, one, both or several of each are found."""
    draw, cases = random.Random(30), []
    for _ in range(EACH):
        first = one(draw, THINGS)
        second = one(draw, tuple(name for name in THINGS if name != first))
        names = [first, second] * one(draw, (1, 1, 1, 2)) + [one(draw, THINGS)]
        things = [thing(draw, name) for name in names if draw.random() < 0.9]
        if len(things) > 1 and draw.random() < 0.2:  # one in the other
            things[1] = things[1]._replace(box=things[0].box[:2] + tuple(side - 9 for side in things[0].box[2:]))
        surest = sorted(things, key=lambda each: -each.score)
        cases.append(Case(f"a {first} {one(draw, PLACES)} a {second}", surest))
    return cases


def numeracy() -> list[Case]:
    """One to three things and their numbers; as many are found, or another number, some of them twice."""
    draw, cases = random.Random(31), []
    for _ in range(EACH):
        names = list(dict.fromkeys(one(draw, THINGS) for _ in range(3)))
        words, things = [], []
        for name in names:
            count = int(4 * draw.random())
            words.append(f"{NUMBERS[count]} {(PLURALS if count else THINGS)[THINGS.index(name)]}")
            seen = [thing(draw, name) for _ in range(count + one(draw, (1, 1, 1, 0, 2)))]
            doubled = [each._replace(box=tuple(side + 4 * draw.random() for side in each.box)) for each in seen[:1]]
            things += seen + (doubled if draw.random() < 0.5 else [])
        surest = sorted(things, key=lambda each: -each.score)
        cases.append(Case(" and ".join(words), surest))
    return cases


class Scene(NamedTuple):
    """A case, and how near every pixel of its picture is."""

    case: Case
    nearness: list[list[float]]
    """Rows from top to bottom, larger is nearer; of a coarse picture whose pixels are squares of `COARSE`."""


COARSE, WIDE, HIGH = 30, 16, 12
"""A picture of 480 by 360 pixels."""


def depth() -> list[Scene]:
    """Two things that mostly overlap, and a map of nearness that has a slope and a step."""
    draw, scenes = random.Random(32), []
    for _ in range(EACH):
        first = one(draw, THINGS)
        second = one(draw, tuple(name for name in THINGS if name != first))
        left, top = 100 + 100 * draw.random(), 60 + 80 * draw.random()
        things = [Thing(first, 0.3 + 0.7 * draw.random(), (left, top, left + 150, top + 120))]
        if draw.random() < 0.9:
            across, down = 160 * draw.random() ** 2, 140 * draw.random() ** 2
            box = (left + across, top + down, left + across + 100 + 50 * draw.random(), top + down + 100)
            things.append(Thing(second, 0.3 + 0.7 * draw.random(), box))
        if draw.random() < 0.2:  # once more, and less surely
            things.append(Thing(first, 0.3 * draw.random(), (10.0, 10.0, 60.0, 60.0)))
        slope, step = draw.random() - 0.5, 8 * (draw.random() - 0.5)
        rows = [[10 + slope * (x - 2 * y) + (step if x > 8 else 0) for x in range(WIDE)] for y in range(HIGH)]
        surest = sorted(things, key=lambda each: -each.score)
        scenes.append(Scene(Case(f"a {first} {one(draw, DEPTHS)} a {second}", surest), rows))
    return scenes


COMPLEX = {
    "complex_val": (
        "The red hat was near the mug.",
        "The old ship sank in the sea.",
        "The cat sat next to the blue dog.",
        "The BLUE cup is left of a plate. It is full.",
        "The girl sang and the dog slept",
        "The tall boy ran towards the low house. ",
        "The St. Bernard lay under the table.",
        "The green pond glistened.",
    ),
    "complex_val_spatial": (
        "the red hat was near the mug.",
        "The blue cup is left of a plate.",
        "The St. Nicholas stood there.",
        "The tall boy ran towards the low house",
    ),
    "complex_val_action": (
        "The old ship sank in the sea",
        "The girl sang and the dog slept.",
        "The tall boy ran towards the low house.",
    ),
}
"""Lines of the files of complex prompts: one in each of two files, other letters, no full stop, and two of them."""
PARTS = ("attribute", "spatial", "action")
IMAGES = 10
"""Of a prompt, as the benchmark has it."""


def parts() -> dict[str, list[float]]:
    """Scores of each part, of the images of every complex prompt in turn."""
    draw = random.Random(6)
    return {part: [draw.random() for _ in range(IMAGES * len(COMPLEX["complex_val"]))] for part in PARTS}

"""GenEval's prompts: what one says, by the published templates or by a metadata file, and new ones in the same form."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from rwk.adapters.geneval_rules import COLOURS, RELATIONS, TAGS, THINGS, Clause, Facts

NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MOST_DRAWN = 4
"""Largest number that GenEval's own counting prompts ask for."""
_IRREGULAR = {"person": "people", "knife": "knives", "computer mouse": "computer mice"} | {
    thing: thing for thing in ("sheep", "skis", "scissors")
}
_THING = rf"an? (?:({'|'.join(COLOURS)}) )?({'|'.join(sorted(THINGS, key=len, reverse=True))})"
_PROMPT = re.compile(rf"a photo of {_THING}(?: (and|{'|'.join(RELATIONS)}) {_THING})?")
_COUNTED = re.compile(rf"a photo of ({'|'.join(NUMBERS)}) ([a-z ]+)")


def plural(thing: str) -> str:
    """The plural as GenEval writes it: "benchs", "buses", "persons"."""
    return thing + ("es" if thing.endswith("s") else "s")


def _english(thing: str) -> str:
    return _IRREGULAR.get(thing, thing + ("es" if thing.endswith(("s", "ch", "sh")) else "s"))


SINGULAR = {form: thing for thing in THINGS for form in (plural(thing), _english(thing))}
"""Plural, as GenEval or as English writes it -> class."""


def parse(prompt: str) -> Facts | None:
    """The facts of a prompt that has the form of one of GenEval's templates; None for any other.

    Capitals, the full stop and a wrong article are let pass; things may be two only if they are of two classes.

    >>> parse("a photo of a dog right of a teddy bear").include[1]
    Clause(thing='dog', count=1, colour=None, relation='right of', target=0)
    >>> parse("a dog in the park") is None
    True
    """
    text = " ".join(prompt.lower().rstrip(". ").split())
    if counted := _COUNTED.fullmatch(text):
        thing = SINGULAR.get(counted[2])
        return _counting(thing, NUMBERS.index(counted[1]) + 2) if thing else None
    found = _PROMPT.fullmatch(text)
    if found is None:
        return None
    colour, thing, joint, other_colour, other = found.groups()
    if joint is None:
        return Facts("colors" if colour else "single_object", (Clause(thing, colour=colour),))
    if thing == other or (colour is None) != (other_colour is None) or (colour and joint != "and"):
        return None
    if joint != "and":
        return Facts("position", (Clause(other), Clause(thing, relation=joint)))
    both = Clause(thing, colour=colour), Clause(other, colour=other_colour)
    return Facts("color_attr" if colour else "two_object", both)


def _counting(thing: str, count: int) -> Facts:
    return Facts("counting", (Clause(thing, count),), (Clause(thing, count + 1),))


def records(per_category: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """New prompts in GenEval's form with their metadata: as many of each of the six categories, none twice.

    Each is a record of `evaluation_metadata.jsonl`. As in GenEval two to four things are counted, plurals are those of
    `plural`, and persons have no colour.

    Args:
        per_category: 1 to 80, as there are 80 classes for prompts of one thing.
        seed: of the draw.

    Raises:
        ValueError: for another number.

    >>> [record["prompt"] for record in records(1, seed=1)][:3]
    ['a photo of a horse', 'a photo of a refrigerator and a boat', 'a photo of two sports balls']
    """
    if not 1 <= per_category <= len(THINGS):
        raise ValueError(f"per_category must be 1 to {len(THINGS)}, got {per_category}.")
    draw = random.Random(seed)
    found: list[dict[str, Any]] = []
    for tag in TAGS:
        drawn: dict[str, dict[str, Any]] = {}
        while len(drawn) < per_category:
            record = {"tag": tag, **_DRAW[tag](draw)}
            drawn[record["prompt"]] = record
        found += drawn.values()
    return found


def _named(*words: str) -> str:
    """The words after their article."""
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _single(draw: random.Random) -> dict[str, Any]:
    thing = draw.choice(THINGS)
    return {"include": [{"class": thing, "count": 1}], "prompt": f"a photo of {_named(thing)}"}


def _two(draw: random.Random) -> dict[str, Any]:
    things = draw.sample(THINGS, 2)
    include = [{"class": thing, "count": 1} for thing in things]
    return {"include": include, "prompt": f"a photo of {' and '.join(map(_named, things))}"}


def _several(draw: random.Random) -> dict[str, Any]:
    thing, count = draw.choice(THINGS), draw.randint(2, MOST_DRAWN)
    return {
        "include": [{"class": thing, "count": count}],
        "exclude": [{"class": thing, "count": count + 1}],
        "prompt": f"a photo of {NUMBERS[count - 2]} {plural(thing)}",
    }


def _coloured(draw: random.Random, count: int) -> dict[str, Any]:
    pairs = list(zip(draw.sample(COLOURS, count), draw.sample(THINGS[1:], count), strict=True))
    include = [{"class": thing, "count": 1, "color": colour} for colour, thing in pairs]
    return {"include": include, "prompt": f"a photo of {' and '.join(_named(*pair) for pair in pairs)}"}


def _placed(draw: random.Random) -> dict[str, Any]:
    (thing, other), relation = draw.sample(THINGS, 2), draw.choice(RELATIONS)
    return {
        "include": [{"class": other, "count": 1}, {"class": thing, "count": 1, "position": [relation, 0]}],
        "prompt": f"a photo of {_named(thing)} {relation} {_named(other)}",
    }


_DRAW: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _several,
    "colors": lambda draw: _coloured(draw, 1),
    "position": _placed,
    "color_attr": lambda draw: _coloured(draw, 2),
}

"""Prompts of the built-in world: what they say, and families of them.

A description is worded long, as T2I-CompBench's prompts are, or short, as GenEval's are.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import NamedTuple

from rwk.adapters.shapes_world import (
    COLORS,
    HELD_OUT,
    MOST_THINGS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    WITHHELD,
    Clause,
    Description,
)

_NUMBER = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
_CLAUSE = re.compile(
    rf"\b({'|'.join(_NUMBER)}) (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)})(?:e?s)?\b"
)
_RELATION = re.compile(rf"\b({'|'.join(RELATIONS)})\b")
_PLACE = re.compile(rf"\bin the ({'|'.join(PLACES)})\b")
_FRAMES = (
    "the picture shows {}",
    "an image that contains {}",
    "a drawing of {} on a plain background",
    "{} can be seen here",
    "we see {} and that is all",
)
_JOINS = ("{} and {}", "{} together with {}", "{} along with {}")
_LONG_RELATIONS = {
    "left of": "{} to the left of {}",
    "right of": "{} to the right of {}",
    "above": "{} directly above {}",
    "below": "{} directly below {}",
}
_FILLING = " ".join([*_FRAMES, *_JOINS, *_LONG_RELATIONS.values(), "a photo of", "in the corner", *PLACES])
WORDS = tuple(
    sorted(
        {*_FILLING.replace("{}", " ").split(), *_NUMBER, *SIZES, *COLORS}
        | {word for shape in SHAPES for word in (shape, Clause(2, shape).words(article=False))}
    )
)
"""Every word that a prompt of this world may hold."""


def words_of(prompt: str) -> list[str]:
    """The prompt's words in lower case, punctuation dropped."""
    return re.findall(r"[a-z0-9]+", prompt.lower())


def understand(prompt: str) -> Description:
    """What a prompt says; raises ValueError for words that the world does not know or a prompt that names nothing."""
    words = words_of(prompt)
    unknown = [word for word in words if word not in WORDS]
    if unknown:
        raise ValueError(f"the world of shapes knows no {unknown[0]!r}")
    text = " ".join(words)
    clauses = tuple(
        Clause(_NUMBER[n], shape, color or None, size or None) for n, size, color, shape in _CLAUSE.findall(text)
    )
    if not clauses:
        raise ValueError("the prompt names no shape")
    relation, place = _RELATION.search(text), _PLACE.search(text)
    if relation and len(clauses) < 2:
        raise ValueError(f"{relation[1]!r} needs two things, the prompt names one")
    return Description(clauses, relation[1] if relation else None, place[1] if place else None)


FAMILIES = {
    "shapes.long": ("color", "shape", "size", "numeracy", "spatial", "complex"),
    "shapes.short": ("single_object", "two_object", "counting", "colors", "position", "color_attr"),
}
"""Prompt families and their categories, named after T2I-CompBench's and GenEval's."""
NARROW = "shapes.narrow"
"""The family of those prompts of `shapes.long` that name nothing in `WITHHELD`."""
PARTS = ("short", *WITHHELD)
"""What stands behind `shapes.narrow.`; see `prompts`."""


class Prompt(NamedTuple):
    """A prompt and the category that it belongs to."""

    text: str
    category: str


def prompts(family: str, count: int, *, seed: int, held_out: bool = False) -> list[Prompt]:
    """Different prompts of a family, categories in turn.

    Args:
        family: `shapes.long`, `shapes.short` or `shapes.narrow`; with `.test` behind it, prompts that the family itself
            never yields. `shapes.narrow.short` is worded short and names as little of `WITHHELD`;
            `shapes.narrow.color`, `.shape`, `.number` and `.relation` name that value of it and no other.
        count: how many.
        seed: of the draw.
        held_out: every prompt names a pair of colour and shape of `HELD_OUT`; otherwise none does.

    Raises:
        ValueError: for an unknown family, or where there are not as many.
    """
    kind = _kind(family)
    rng = random.Random(f"{family}/{seed}")
    found: dict[str, Prompt] = {}
    categories = list(FAMILIES[kind.wording])
    while len(found) < count and categories:
        for category in list(categories):
            drawn = (_draw_prompt(kind, category, rng, held_out) for _ in range(_TRIES))
            text = next((t for t in drawn if t and t not in found and kind.test in (None, _is_test(t))), None)
            if text is None:
                categories.remove(category)  # there are no more of its kind
            elif len(found) < count:
                found[text] = Prompt(text, category)
    if len(found) < count:
        raise ValueError(f"{family} holds no {count} different prompts, found {len(found)}; ask for fewer.")
    return list(found.values())


class _Kind(NamedTuple):
    """What the name of a family asks for."""

    wording: str
    """A family of `FAMILIES`."""
    withheld: frozenset[str] | None
    """The factors whose value of `WITHHELD` every prompt names; None for any."""
    test: bool | None
    """Whether prompts are of those kept for tests; None for any."""


def _kind(family: str) -> _Kind:
    name = family.removesuffix(".test")
    if name in FAMILIES:
        return _Kind(name, None, family != name)
    if name == NARROW:
        return _Kind("shapes.long", frozenset(), family != name)
    part = family.removeprefix(f"{NARROW}.")
    if family == part or part not in PARTS:
        raise ValueError(
            f"prompt family must be one of {', '.join([*FAMILIES, NARROW])}, or that with .test, or {NARROW} with "
            f"{', '.join('.' + part for part in PARTS)}, got {family!r}."
        )
    return _Kind(*("shapes.short", frozenset()) if part == "short" else ("shapes.long", frozenset({part})), test=None)


_TRIES = 100
"""Draws without a new prompt after which a category counts as exhausted."""


def _draw_prompt(kind: _Kind, category: str, rng: random.Random, held_out: bool) -> str:
    """A prompt, or "" where it names a held-out pair or a withheld value though it should not, or none as it should."""
    description = describe(category, rng, held_out=held_out)
    named = any((clause.color, clause.shape) in HELD_OUT for clause in description.clauses)
    fits = named == held_out and kind.withheld in (None, withheld(description))
    return word(description, kind.wording, rng) if fits else ""


def withheld(description: Description) -> frozenset[str]:
    """The factors of `WITHHELD` whose value the description names."""
    named = {
        factor
        for factor in ("color", "shape", "number")
        for clause in description.clauses
        if getattr(clause, factor) == WITHHELD[factor]
    }
    return frozenset(named | ({"relation"} if description.relation == WITHHELD["relation"] else set()))


def _is_test(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % 4 == 0


def describe(category: str, rng: random.Random, *, held_out: bool = False) -> Description:
    """A description drawn from a category of either family."""
    shapes = rng.sample(SHAPES, 3)
    colors = rng.sample(list(COLORS), 3)
    if held_out:
        colors[0], shapes[0] = rng.choice(sorted(HELD_OUT))
        shapes[1:] = rng.sample([s for s in SHAPES if s != shapes[0]], 2)
    sizes = rng.choices(list(SIZES), k=2)
    plain = [Clause(1, shape, color if held_out else None) for shape, color in zip(shapes, colors, strict=True)]
    coloured = [Clause(1, shape, color) for shape, color in zip(shapes, colors, strict=True)]
    relation = rng.choice(list(RELATIONS))
    match category:
        case "color" | "color_attr":
            return Description(tuple(coloured[:2]))
        case "shape" | "two_object":
            return Description(tuple(plain[:2]))
        case "single_object":
            return Description((plain[0],))
        case "colors":
            return Description((coloured[0],))
        case "size":
            return Description(tuple(c._replace(size=s) for c, s in zip(coloured[:2], sizes, strict=True)))
        case "counting":
            return Description((plain[0]._replace(number=rng.randint(2, MOST_THINGS)),))
        case "numeracy":
            first = coloured[0]._replace(number=rng.randint(2, MOST_THINGS))
            if first.number == MOST_THINGS or rng.random() < 0.4:
                return Description((first,))
            return Description((first, coloured[1]._replace(number=rng.randint(1, MOST_THINGS - first.number))))
        case "position":
            return Description(tuple(plain[:2]), relation=relation)
        case "spatial":
            if rng.random() < 0.3:
                return Description((coloured[0],), place=rng.choice(list(PLACES)))
            return Description(tuple(coloured[:2]), relation=relation)
        case "complex":
            if rng.random() < 0.5:
                return Description(tuple(coloured))
            sized = [c._replace(size=s) for c, s in zip(coloured[:2], sizes, strict=True)]
            return Description(tuple(sized), relation=relation)
    raise ValueError(f"unknown category {category!r}")


def word(description: Description, family: str, rng: random.Random) -> str:
    """The description in the family's words."""
    parts = [clause.words() for clause in description.clauses]
    if description.place:
        parts[0] += f" in the {description.place} corner"
    if family == "shapes.short":
        joined = f" {description.relation} ".join(parts) if description.relation else " and ".join(parts)
        return f"a photo of {joined}"
    if description.relation:
        text = _LONG_RELATIONS[description.relation].format(*parts)
    elif len(parts) == 1:
        text = parts[0]
    else:
        text = rng.choice(_JOINS).format(", ".join(parts[:-1]), parts[-1])
    return rng.choice(_FRAMES).format(text)

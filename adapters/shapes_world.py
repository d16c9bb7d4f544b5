"""The built-in world: scenes of coloured shapes, what can be said of them, and their pictures.

A scene is up to four things, each in a quadrant of its own. A description names some of them (`Clause`), and perhaps
a relation or a place; it is worded long, as T2I-CompBench's prompts are, or short, as GenEval's are. `facts` says what
a description claims, so a scene can be judged exactly. Nothing here is learned.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from typing import NamedTuple

SIZE = 48
"""Height and width of a picture in pixels."""
CELL = 24
"""Height and width of a quadrant in pixels."""
BACKGROUND = (236, 234, 228)
COLORS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 215, 50),
    "green": (44, 150, 60),
    "cyan": (60, 200, 215),
    "blue": (40, 70, 200),
    "purple": (150, 60, 175),
    "black": (30, 30, 34),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIZES = {"small": 11, "large": 19}
"""Height and width of a thing in pixels."""
OFFSETS = {"small": (-3, 0, 3), "large": (0,)}
"""Distances in pixels that the centre of a thing may have from that of its quadrant, along each axis."""
COUNTS = ("a", "two", "three", "four")
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
"""Where the first thing's quadrant lies from the second's: rows, columns."""
PLACES = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
HELD_OUT = frozenset(
    {
        ("red", "cross"),
        ("yellow", "square"),
        ("green", "ring"),
        ("blue", "triangle"),
        ("purple", "circle"),
        ("orange", "cross"),
    }
)
"""Pairs of colour and shape that no prompt of `shapes.long` or `shapes.short` holds."""
MOST_THINGS = 4


class Thing(NamedTuple):
    """One thing in a scene; None where a picture does not show clearly what it is."""

    shape: str | None
    color: str | None
    size: str | None
    row: int
    column: int
    dy: int = 0
    dx: int = 0


Scene = tuple[Thing, ...]


class Clause(NamedTuple):
    """So many things that have all these properties; None leaves a property open."""

    number: int
    shape: str
    color: str | None = None
    size: str | None = None

    def fits(self, thing: Thing) -> bool:
        return thing.shape == self.shape and self.color in (None, thing.color) and self.size in (None, thing.size)

    def words(self, *, article: bool = True) -> str:
        """The clause in English, such as "two small red circles"."""
        noun = self.shape if self.number == 1 else self.shape + ("es" if self.shape == "cross" else "s")
        words = [word for word in (self.size, self.color) if word] + [noun]
        if not article:
            return " ".join(words)
        first = "an" if self.number == 1 and words[0] == "orange" else COUNTS[self.number - 1]
        return " ".join([first, *words])


@dataclass(frozen=True)
class Description:
    """What a prompt says."""

    clauses: tuple[Clause, ...]
    relation: str | None = None
    """Where the first clause's thing lies, seen from the second's."""
    place: str | None = None
    """The quadrant of the first clause's thing."""


class Fact(NamedTuple):
    """One claim of a description, and whether a scene bears it out."""

    claim: str
    holds: bool


def facts(description: Description, scene: Scene) -> list[Fact]:
    """Every claim of the description, from coarse to fine, and whether it holds in the scene."""
    found: list[Fact] = []
    for clause in description.clauses:
        for part in dict.fromkeys([Clause(1, clause.shape), Clause(1, clause.shape, clause.color), clause]):
            shown = any(part.fits(thing) for thing in scene)
            found.append(Fact(f"shows {part._replace(number=1).words()}", shown))
        fitting = sum(clause.fits(thing) for thing in scene)
        amount = "one" if clause.number == 1 else COUNTS[clause.number - 1]
        found.append(Fact(f"exactly {amount} {clause.words(article=False)}", fitting == clause.number))
    if description.relation:
        dy, dx = RELATIONS[description.relation]
        first, second = description.clauses[:2]
        pairs = [(a, b) for a in scene for b in scene if first.fits(a) and second.fits(b)]
        holds = any((a.row - b.row, a.column - b.column) == (dy, dx) for a, b in pairs)
        found.append(Fact(f"{first.words()} {description.relation} {second.words()}", holds))
    if description.place:
        cell = PLACES[description.place]
        holds = any(description.clauses[0].fits(thing) and (thing.row, thing.column) == cell for thing in scene)
        found.append(Fact(f"{description.clauses[0].words()} in the {description.place}", holds))
    total = sum(clause.number for clause in description.clauses)
    found.append(Fact("nothing else", len(scene) == total))
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------------------------------------------- reading a prompt

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


# ------------------------------------------------------------------------------------------------------ making prompts

FAMILIES = {
    "shapes.long": ("color", "shape", "size", "numeracy", "spatial", "complex"),
    "shapes.short": ("single_object", "two_object", "counting", "colors", "position", "color_attr"),
}
"""Prompt families and their categories, named after T2I-CompBench's and GenEval's."""


class Prompt(NamedTuple):
    """A prompt and the category that it belongs to."""

    text: str
    category: str


def prompts(family: str, count: int, *, seed: int, held_out: bool = False) -> list[Prompt]:
    """Different prompts of a family, categories in turn.

    Args:
        family: `shapes.long` or `shapes.short`; with `.test` behind it, prompts that the family itself never yields.
        count: how many.
        seed: of the draw.
        held_out: every prompt names a pair of colour and shape of `HELD_OUT`; otherwise none does.

    Raises:
        ValueError: for an unknown family, or where there are not as many.
    """
    name, _, part = family.partition(".test")
    if name not in FAMILIES or part or (family != name and not family.endswith(".test")):
        raise ValueError(f"prompt family must be one of {', '.join(FAMILIES)}, or that with .test, got {family!r}.")
    rng = random.Random(f"{family}/{seed}")
    found: dict[str, Prompt] = {}
    categories = list(FAMILIES[name])
    while len(found) < count and categories:
        for category in list(categories):
            drawn = (_draw_prompt(name, category, rng, held_out) for _ in range(_TRIES))
            text = next((t for t in drawn if t and t not in found and _is_test(t) == family.endswith(".test")), None)
            if text is None:
                categories.remove(category)  # there are no more of its kind
            elif len(found) < count:
                found[text] = Prompt(text, category)
    if len(found) < count:
        raise ValueError(f"{family} holds no {count} different prompts, found {len(found)}; ask for fewer.")
    return list(found.values())


_TRIES = 100
"""Draws without a new prompt after which a category counts as exhausted."""


def _draw_prompt(family: str, category: str, rng: random.Random, held_out: bool) -> str:
    """A prompt, or "" where it names a held-out pair though it should not, or none though it should."""
    description = describe(category, rng, held_out=held_out)
    named = any((clause.color, clause.shape) in HELD_OUT for clause in description.clauses)
    return word(description, family, rng) if named == held_out else ""


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


# ------------------------------------------------------------------------------------------------------- making scenes


def draw_scene(description: Description, rng: random.Random) -> Scene:
    """A scene in which every fact of the description holds; what it leaves open is drawn at random.

    Where neither a relation nor a place says otherwise, things lie in the order in which they are named, row by row.
    """
    cells = sorted(rng.sample(list(PLACES.values()), sum(clause.number for clause in description.clauses)))
    if description.place:
        cells = [PLACES[description.place]]
    if description.relation:
        first, second = rng.choice(_neighbours(description.relation))
        cells = [first, second]
    scene: list[Thing] = []
    for clause in description.clauses:
        for _ in range(clause.number):
            row, column = cells[len(scene)]
            color = clause.color or rng.choice(list(COLORS))
            scene.append(place(clause.shape, color, clause.size or rng.choice(list(SIZES)), row, column, rng))
    return tuple(scene)


def place(shape: str, color: str, size: str, row: int, column: int, rng: random.Random) -> Thing:
    """A thing somewhere in its quadrant."""
    return Thing(shape, color, size, row, column, rng.choice(OFFSETS[size]), rng.choice(OFFSETS[size]))


def _neighbours(relation: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    dy, dx = RELATIONS[relation]
    cells = list(PLACES.values())
    return [(a, b) for a in cells for b in cells if (a[0] - b[0], a[1] - b[1]) == (dy, dx)]


def spoil(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one thing changed, added, taken away or moved: what a careless caption would not notice."""
    things = list(scene)
    index = rng.randrange(len(things))
    thing = things[index]
    free = [cell for cell in PLACES.values() if cell not in [(t.row, t.column) for t in things]]
    change = rng.choice(["shape", "color", "size", "add", "drop", "move"])
    if change == "add" and free:
        row, column = rng.choice(free)
        things.append(place(rng.choice(SHAPES), rng.choice(list(COLORS)), rng.choice(list(SIZES)), row, column, rng))
    elif change == "drop" and len(things) > 1:
        things.pop(index)
    elif change == "move" and free:
        row, column = rng.choice(free)
        things[index] = thing._replace(row=row, column=column)
    elif change == "size":
        size = next(s for s in SIZES if s != thing.size)
        things[index] = place(thing.shape or "", thing.color or "", size, thing.row, thing.column, rng)
    elif change == "shape":
        things[index] = thing._replace(shape=rng.choice([s for s in SHAPES if s != thing.shape]))
    else:
        things[index] = thing._replace(color=rng.choice([c for c in COLORS if c != thing.color]))
    return tuple(things)

"""The built-in world: scenes of coloured shapes, and what can be said of them.

A scene is up to four things, each in a quadrant of its own. A description names some of them (`Clause`), and perhaps
a relation or a place. `facts` says what a description claims, so a scene can be judged exactly. Nothing is learned.
"""

from __future__ import annotations

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
WITHHELD = {"color": "cyan", "shape": "ring", "number": 4, "relation": "below"}
"""One value of each factor that no prompt of `shapes.narrow` names."""
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

"""Scenes of the built-in world: such as fit a description, and such as fit it no longer."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image
from torchvision.transforms.functional import to_pil_image

from rwk.adapters.shapes_prompts import understand
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_world import COLORS, OFFSETS, PLACES, RELATIONS, SHAPES, SIZES, Description, Scene, Thing


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


def pictures(prompts: Sequence[str], *, seed: int) -> list[Image.Image]:
    """A rendered picture for each prompt in which every fact of it holds."""
    rng = random.Random(f"pictures/{seed}")
    return [to_pil_image(pixels) for pixels in render([draw_scene(understand(prompt), rng) for prompt in prompts])]


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

"""Pictures of the built-in world that differ in one known thing: a fact of the prompt, what it leaves open, or finish.

The truth of each is exact: an edit makes a fact false, a group is a colour or size that the prompt does not
name, and detail is a finish of the same scene, shade, hatching and grain, of which the verifier still reads all facts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from rwk.adapters.shapes_prompts import understand
from rwk.adapters.shapes_render import background, render
from rwk.adapters.shapes_scenes import draw_scene, place
from rwk.adapters.shapes_world import COLORS, PLACES, SHAPES, SIZES, Clause, Description, Scene, Thing

Alteration = Callable[[Scene, Description, random.Random], Scene | None]
"""A scene in which one fact of the description does not hold any more; None where there is no such fact."""
Edited = tuple[str, Image.Image, Image.Image, str]
"""A prompt, a picture that fits it, one that does not, and what was changed."""
Grouped = tuple[str, Image.Image, Image.Image, str, str, str]
"""A prompt, two pictures that fit it alike, the group of each, and what the groups are of."""
Detailed = tuple[str, Image.Image, Image.Image, float]
"""A prompt, a plain picture, one with more detail, and how much more."""
PER_EDIT, PER_ATTRIBUTE, DETAILED = 48, 24, 40
"""Prompts at most."""
SHADE, HATCH, GRAIN = 0.06, 0.08, 0.02
"""How much lighter and darker, of 1, detail makes pixels."""


def counterparts(prompts: Sequence[str], *, seed: int) -> tuple[list[Edited], list[Grouped], list[Detailed]]:
    """For each prompt its edited pictures, those of other groups, and those with more detail.

    Args:
        prompts: of the world's families.
        seed: of the scenes and of what is changed.
    """
    rng = random.Random(f"counterparts/{seed}")
    scenes = [draw_scene(understand(prompt), rng) for prompt in prompts]
    plain = pictures(scenes)
    edited: list[Edited] = []
    for kind, alter in ALTERATIONS.items():
        held = [
            (prompt, image, changed)
            for prompt, image, scene in zip(prompts, plain, scenes, strict=True)
            if (changed := alter(scene, understand(prompt), rng)) is not None
        ][:PER_EDIT]
        made = pictures([changed for _, _, changed in held])
        edited += [(prompt, image, after, kind) for (prompt, image, _), after in zip(held, made, strict=True)]
    grouped = [*_by_colour(prompts, scenes), *_by_size(prompts, scenes, rng)]
    detailed = [
        (prompt, image, after, float(level))
        for prompt, image, scene in list(zip(prompts, plain, scenes, strict=True))[:DETAILED]
        for level, after in enumerate(finished(scene), 1)
    ]
    return edited, grouped, detailed


def pictures(scenes: Sequence[Scene]) -> list[Image.Image]:
    """A picture of each scene."""
    return [to_pil_image(pixels) for pixels in render(scenes)]


def finished(scene: Scene) -> list[Image.Image]:
    """The scene with shade on its things, then with hatching too, and then with grain on the ground."""
    pixels = render([scene])[0]  # [3, H, W]
    ground = (pixels - background()[:, None, None]).abs().amax(0) < 1e-6  # [H, W]
    y, x = torch.meshgrid(torch.arange(pixels.shape[1]), torch.arange(pixels.shape[2]), indexing="ij")
    shade = SHADE * (1 - (x % 24 + y % 24) / 23)
    hatch = HATCH * torch.where((x + y) % 3 == 0, 1.0, -0.5)
    grain = GRAIN * (2 * torch.rand(ground.shape, generator=torch.Generator().manual_seed(0)) - 1)
    steps: list[Tensor] = [shade * ~ground, hatch * ~ground, grain * ground]
    made = [(pixels + sum(steps[: count + 1])).clamp(0, 1) for count in range(len(steps))]
    return [to_pil_image(one) for one in made]


def _owners(said: Description) -> list[Clause]:
    """The clause that each thing of a drawn scene was drawn for."""
    return [clause for clause in said.clauses for _ in range(clause.number)]


def _put(scene: Scene, index: int, thing: Thing) -> Scene:
    return (*scene[:index], thing, *scene[index + 1 :])


def _colour(scene: Scene, said: Description, rng: random.Random) -> Scene | None:
    named = {clause.color for clause in said.clauses}
    held = [index for index, clause in enumerate(_owners(said)) if clause.color]
    if not held:
        return None
    index = rng.choice(held)
    return _put(scene, index, scene[index]._replace(color=rng.choice([c for c in COLORS if c not in named])))


def _object(scene: Scene, said: Description, rng: random.Random) -> Scene | None:
    named, index = {clause.shape for clause in said.clauses}, rng.randrange(len(scene))
    return _put(scene, index, scene[index]._replace(shape=rng.choice([s for s in SHAPES if s not in named])))


def _number(scene: Scene, said: Description, rng: random.Random) -> Scene | None:
    """One thing of several that are named together taken away, or one more of them put in."""
    held = [index for index, clause in enumerate(_owners(said)) if clause.number > 1]
    if not held:
        return None
    index = rng.choice(held)
    free = [cell for cell in PLACES.values() if cell not in [(t.row, t.column) for t in scene]]
    if free and rng.random() < 0.5:
        row, column = rng.choice(free)
        return (*scene, scene[index]._replace(row=row, column=column))
    return scene[:index] + scene[index + 1 :]


def _relation(scene: Scene, said: Description, rng: random.Random) -> Scene | None:
    """Two related things that change places, or one that leaves its named place."""
    if said.relation:
        one, two = scene[:2]
        moved = (one._replace(row=two.row, column=two.column), two._replace(row=one.row, column=one.column))
        return moved + scene[2:]
    if said.place:
        row, column = rng.choice([cell for cell in PLACES.values() if cell != PLACES[said.place or ""]])
        return _put(scene, 0, scene[0]._replace(row=row, column=column))
    return None


def _attributes(scene: Scene, said: Description, rng: random.Random) -> Scene | None:
    """Two things of different named colours that change them."""
    owners = _owners(said)
    held = [(i, j) for i in range(len(scene)) for j in range(i) if None not in (owners[i].color, owners[j].color)]
    held = [(i, j) for i, j in held if owners[i].color != owners[j].color]
    if not held:
        return None
    i, j = rng.choice(held)
    return _put(_put(scene, i, scene[i]._replace(color=scene[j].color)), j, scene[j]._replace(color=scene[i].color))


def _size(scene: Scene, said: Description, rng: random.Random) -> Scene | None:
    held = [index for index, clause in enumerate(_owners(said)) if clause.size]
    return _sized(scene, rng.choice(held), rng) if held else None


def _sized(scene: Scene, index: int, rng: random.Random) -> Scene:
    thing = scene[index]
    other = next(size for size in SIZES if size != thing.size)
    return _put(scene, index, place(thing.shape or "", thing.color or "", other, thing.row, thing.column, rng))


ALTERATIONS: Mapping[str, Alteration] = {
    "colour": _colour,
    "object": _object,
    "number": _number,
    "relation": _relation,
    "attributes": _attributes,
    "size": _size,
}


def _by_colour(prompts: Sequence[str], scenes: Sequence[Scene]) -> list[Grouped]:
    """The first thing in every colour, where its prompt names none: every two of these pictures."""
    found: list[Grouped] = []
    held = [(p, s) for p, s in zip(prompts, scenes, strict=True) if understand(p).clauses[0].color is None]
    for prompt, scene in held[:PER_ATTRIBUTE]:
        made = dict(zip(COLORS, pictures([_put(scene, 0, scene[0]._replace(color=c)) for c in COLORS]), strict=True))
        found += [(prompt, made[a], made[b], a, b, "colour") for a in COLORS for b in COLORS if a < b]
    return found


def _by_size(prompts: Sequence[str], scenes: Sequence[Scene], rng: random.Random) -> list[Grouped]:
    """The first thing large and small, where its prompt does not say."""
    found: list[Grouped] = []
    held = [(p, s) for p, s in zip(prompts, scenes, strict=True) if understand(p).clauses[0].size is None]
    for prompt, scene in held[: 2 * PER_ATTRIBUTE]:
        one, two = scene, _sized(scene, 0, rng)
        first, second = pictures([one, two])
        found.append((prompt, first, second, str(one[0].size), str(two[0].size), "size"))
    return found

"""The gold reward of the built-in world: which facts of a prompt a picture bears out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.shapes_prompts import prompts, understand
from rwk.adapters.shapes_render import background, palette, stencils
from rwk.adapters.shapes_world import CELL, COLORS, PLACES, SIZE, Scene, Thing, facts
from rwk.rewards.base import Reward, RewardSpec, Scores

_SEEN = 0.012
"""Mean squared distance from the background, in a quadrant, from which on something is there."""
_CLEAR = 0.30
"""Share of that distance which the best stencil may leave unexplained, up to which the thing is recognised."""


def recognise(pixels: Tensor) -> list[Scene]:
    """The scene of every picture [B, 3, SIZE, SIZE] in 0..1: in each quadrant the best of all stencils and colours.

    Least squares over every shape, size, place and colour. A quadrant that holds something which no stencil explains
    holds a thing without properties: it counts, and fits no clause.
    """
    kinds, masks = stencils()
    cells = pixels.unfold(2, CELL, CELL).unfold(3, CELL, CELL)  # [B, 3, 2, 2, CELL, CELL]
    offset = cells.permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(3) - background()[:, None]  # [B, 4, 3, CELL^2]
    shades = palette() - background()  # [C, 3]
    flat = masks.flatten(1)  # [N, CELL^2]
    match = torch.einsum("bqcn,kc->bqnk", offset @ flat.T, shades)  # [B, 4, N, C]
    energy = flat.square().sum(1)[:, None] * shades.square().sum(1)  # [N, C]
    present = offset.square().sum((2, 3))  # [B, 4]
    left, best = (energy - 2 * match).flatten(2).min(2)  # [B, 4]
    colors = list(COLORS)
    scenes = []
    for row_present, row_left, row_best in zip(present.tolist(), left.tolist(), best.tolist(), strict=True):
        scene = []
        for cell, there, explained, index in zip(PLACES.values(), row_present, row_left, row_best, strict=True):
            if there / (3 * CELL * CELL) < _SEEN:
                continue
            kind = kinds[index // len(colors)]
            if there + explained > _CLEAR * there:
                scene.append(Thing(None, None, None, *cell))
            else:
                scene.append(Thing(kind.shape, colors[index % len(colors)], kind.size, *cell, kind.dy, kind.dx))
        scenes.append(tuple(scene))
    return scenes


class Verifier(Reward):
    """Share of a prompt's facts that a picture bears out; the note names those that it does not.

    1 means that all holds, which is what gold accuracy counts. A prompt that is not of this world gets no score.
    """

    spec = RewardSpec("shapes.verifier", "share of facts", 0, 1, "n/a", "rwk.adapters.shapes_world")
    example_prompts = tuple(prompt.text for prompt in prompts("shapes.long", 12, seed=0))

    @classmethod
    def tiny(cls) -> Verifier:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        scenes = recognise(torch.stack([pixels_of(image) for image in images]))
        values, notes = torch.full([len(images)], math.nan), []
        for index, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
            try:
                found = facts(understand(prompt), scene)
            except ValueError as error:
                notes.append(f"no fact to check: {error}")
                continue
            values[index] = sum(fact.holds for fact in found) / len(found)
            notes.append("; ".join(f"not: {fact.claim}" for fact in found if not fact.holds))
        return Scores(values, notes)


def pixels_of(image: Image.Image) -> Tensor:
    """An image as the world draws it: [3, SIZE, SIZE] in 0..1."""
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels: Tensor = pil_to_tensor(image)
    return pixels / 255


def gold_accuracy(scores: Sequence[float]) -> float:
    """Share of pictures of which every fact holds."""
    return sum(score == 1 for score in scores) / len(scores)

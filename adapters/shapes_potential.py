"""What an unfinished picture of the built-in world may still become: the truth that a judge of potential can learn."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.shapes_prompts import understand
from rwk.adapters.shapes_verifier import recognise
from rwk.adapters.shapes_vq import GRID
from rwk.adapters.shapes_world import PLACES, Scene, Thing, facts


def potential(images: Sequence[Image.Image], prompts: Sequence[str], drawn: int) -> Tensor:
    """[B] the highest share of the prompt's facts that any completion of the finished quadrants bears out.

    1 means that everything may still come true. NaN where no quadrant is finished, or the prompt is not of this world.

    Args:
        images: of `ShapesLlama.decode_partial`.
        prompts: one each.
        drawn: codes of each that are drawn, row by row.
    """
    shut = [cell for cell in PLACES.values() if drawn > _last_code(cell)]
    values = torch.full([len(images)], math.nan)
    if not shut or not images:
        return values
    scenes = recognise(torch.stack([pil_to_tensor(image) for image in images]) / 255)
    for index, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        known = tuple(thing._replace(dy=0, dx=0) for thing in scene if (thing.row, thing.column) in shut)
        try:
            values[index] = _best(prompt, known, len(shut))
        except ValueError:  # a prompt of another world
            continue
    return values


def _last_code(cell: tuple[int, int]) -> int:
    """Index of the last code of a quadrant."""
    half = GRID // 2
    return ((cell[0] + 1) * half - 1) * GRID + (cell[1] + 1) * half - 1


@functools.lru_cache(maxsize=1 << 16)
def _best(prompt: str, known: Scene, shut: int) -> float:
    """The highest share of facts over every way to fill the other quadrants with what the prompt names, or nothing."""
    description = understand(prompt)
    ways: list[list[Scene]] = [
        [(), *((Thing(clause.shape, clause.color, clause.size, *cell),) for clause in description.clauses)]
        for cell in list(PLACES.values())[shut:]
    ]
    shares = []
    for filled in itertools.product(*ways):
        found = facts(description, known + tuple(thing for part in filled for thing in part))
        shares.append(sum(fact.holds for fact in found) / len(found))
    return max(shares)

"""What is wrong with a picture of the built-in world, said in its own words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.shapes_prompts import understand
from rwk.adapters.shapes_verifier import recognise
from rwk.adapters.shapes_world import RELATIONS, Description, Scene, facts


def remarks(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
    """[B] a sentence of what the prompt says and the picture does not bear out, "" where that is nothing.

    The sentence names the things that are wrong, and where they should lie; where all things are there and something
    else is too, it names them all and says that this is all. A prompt of another world gets no remark.

    Args:
        images: of the world's size.
        prompts: one each.
    """
    if not images:
        return []
    scenes = recognise(torch.stack([pil_to_tensor(image) for image in images]) / 255)
    found = []
    for scene, prompt in zip(scenes, prompts, strict=True):
        try:
            found.append(remark(understand(prompt), scene))
        except ValueError:  # a prompt of another world
            found.append("")
    return found


def remark(description: Description, scene: Scene) -> str:
    """The sentence for one picture."""
    failed = {fact.claim for fact in facts(description, scene) if not fact.holds}
    if not failed:
        return ""
    wrong = [
        clause.words()
        for clause in description.clauses
        if any(fact.claim in failed for fact in facts(Description((clause,)), scene) if fact.claim != "nothing else")
    ]
    named = [clause.words() for clause in description.clauses]
    if description.relation and any(f" {description.relation} " in claim for claim in failed):
        wrong = [f"{named[0]} {_LONG[description.relation]} {named[1]}"]
    if description.place and any(claim.endswith(f"in the {description.place}") for claim in failed):
        wrong = [f"{named[0]} in the {description.place} corner"]
    return f"we see {' and '.join(wrong or named)}{'' if wrong else ' and that is all'}"


_LONG = {name: f"to the {name}" if name in ("left of", "right of") else f"directly {name}" for name in RELATIONS}

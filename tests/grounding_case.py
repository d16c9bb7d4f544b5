"""Boxes and scores of a detector, records of prompts, and pictures, on which T2I-R1's own code was run."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

BLIP: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("blip_case.py")))
NOUNS = ("dog", "teddy bear", "toy train set", "TV", "Frisbee", "red cube", "bench")
PLACES = ("next to", "near", "on side of", "left of", "right of", "on the left of", "on the right of")
HEIGHTS = ("below", "on the bottom of", "on the top of", "above", "on top of")
QUERIES, TOKENS, EACH = 12, 256, 60
SIZES = ((384, 384), (300, 700), (40, 30), (1000, 300))


class Case(NamedTuple):
    """What a network makes of a picture and a prompt, and the prompt's record."""

    record: dict[str, Any]
    logits: np.ndarray
    """[12, 256] float32"""
    boxes: np.ndarray
    """[12, 4] float32: centre, width and height in shares of the sides."""


def cases() -> list[Case]:
    """`EACH` of each task: things, numbers, places."""
    draw = np.random.RandomState(7)
    found = []
    for task in ("object", "numeracy", "spatial"):
        for number in range(EACH):
            nouns = [str(noun) for noun in draw.permutation(NOUNS)[: 2 if task == "spatial" else 1 + draw.randint(3)]]
            record: dict[str, Any] = {"prompt": f"{task} {number}", "nouns": nouns, "task_type": task}
            if task == "numeracy":
                record["numeracy_info"] = [{"obj_name": noun, "num": 1 + draw.randint(4)} for noun in nouns]
            if task == "spatial":
                place = str(draw.choice(PLACES + HEIGHTS))
                record["spatial_info"] = {"obj1": nouns[0], "obj2": nouns[1], "locality": place}
            logits = (4 * draw.randn(QUERIES, TOKENS) - 4).astype(np.float32)
            spread = draw.rand(QUERIES, 1) < 0.5  # half of the boxes lie near one another
            middle = np.where(spread, draw.rand(QUERIES, 2), 0.5 + 0.05 * draw.randn(QUERIES, 2))
            boxes = np.concatenate([middle, 0.2 + 0.6 * draw.rand(QUERIES, 2)], 1).astype(np.float32)
            found.append(Case(record, logits, boxes))
    return found


def pictures() -> list[Image.Image]:
    """One of each of `SIZES`."""
    return [BLIP["picture"](f"grounding {size}", *size) for size in SIZES]

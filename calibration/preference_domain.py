"""Preferences as a domain to probe: their images, which of them are known to fit, and their pairs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.probe import Domain
from rwk.rewards.base import UNREADABLE, to_rgb
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.pictures import Picture, identity, opened


def preference_domain(name: str, data: PreferenceDataset) -> Domain:
    """The images of all readable pairs, each once for each of its prompts.

    An image counts as fitting its prompt where it is preferred in a pair and in none the other is.
    """
    rows: dict[tuple[str, str], int] = {}
    images: list[Image.Image] = []
    prompts: list[str] = []
    kept, places = [], []
    seen: dict[str, Image.Image | None] = {}

    def place(picture: Picture, prompt: str) -> int | None:
        key = identity(picture)
        if key not in seen:
            seen[key] = _opened(picture)
        image = seen[key]
        if image is None:
            return None
        if (key, prompt) not in rows:
            rows[key, prompt] = len(images)
            images.append(image)
            prompts.append(prompt)
        return rows[key, prompt]

    for index, row in enumerate(data):
        one, two = place(row.first, row.prompt), place(row.second, row.prompt)
        if one is not None and two is not None:
            kept.append(index)
            places.append((one, two))
    if not places:
        raise ValueError(f"{data.name} must hold pairs whose images can be read, got none among {len(data)}.")
    held, at = data.take(kept), np.array(places)  # [K, 2]
    share = np.array([row.p_first for row in held])
    fits = np.zeros(len(images), dtype=bool)
    fits[np.r_[at[share > 0.5, 0], at[share < 0.5, 1]]] = True
    fits[np.r_[at[share > 0.5, 1], at[share < 0.5, 0]]] = False

    def pairs(scores: Floats) -> PairTable:
        return PairTable.from_preferences(held, scores[at[:, 0]], scores[at[:, 1]])

    return Domain(name, images, prompts, fits=fits, preferences=pairs, places=at)


def _opened(picture: Picture) -> Image.Image | None:
    try:
        return to_rgb(opened(picture))
    except UNREADABLE:
        return None

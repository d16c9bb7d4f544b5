"""Pairs of a domain's images: of preferences, or of gold."""

from __future__ import annotations

from typing import Any

import numpy as np

from rwk.calibration.domain import Domain
from rwk.calibration.pairs import Floats, PairTable, Strings


def judged(domain: Domain, scores: Floats) -> PairTable:
    """The pairs of a domain whose images have scores; of gold, see `gold_pairs`, where no preferences are given."""
    return domain.preferences(scores) if domain.preferences else gold_pairs(domain, scores)


def judged_rows(domain: Domain, scores: Floats) -> Any:
    """[K, 2] rows of the images of each pair of `judged`, in its order."""
    if domain.preferences is None:
        return _gold_rows(domain, scores)
    places = np.asarray(domain.places)
    return places[np.isfinite(scores[places]).all(1)]


def gold_pairs(domain: Domain, scores: Floats) -> PairTable:
    """All pairs of a prompt whose gold differs, the better image first; the slice `category` where it is known."""
    first, second = _gold_rows(domain, scores).T
    prompts: Strings = np.asarray(domain.prompts, dtype=np.str_)[first]
    slices = {"category": np.asarray(domain.categories, dtype=np.str_)[first]} if len(domain.categories) else None
    return PairTable(scores[first] - scores[second], np.ones(len(first)), prompt=prompts, slices=slices)


def _gold_rows(domain: Domain, scores: Floats) -> Any:
    found = [np.empty((0, 2), dtype=np.intp)]
    if domain.gold is not None:
        for group in range(int(domain.groups.max(initial=-1)) + 1):
            rows = np.flatnonzero((domain.groups == group) & np.isfinite(scores) & np.isfinite(domain.gold))
            better, worse = np.nonzero(domain.gold[rows][:, None] > domain.gold[rows][None, :])
            found.append(np.stack([rows[better], rows[worse]], 1))
    return np.concatenate(found)

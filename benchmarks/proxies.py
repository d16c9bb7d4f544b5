"""More rewards of the built-in world that know part of its truth, so that how good each is is known beforehand.

Named as `proxies:NoColors` where this folder is on the path. Each gives the share of the claims that it looks at which
a picture bears out, as `shapes.verifier` does of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from rwk.adapters.pixels import Colorfulness
from rwk.adapters.shapes_proxies import Noisy
from rwk.adapters.shapes_world import Description, Fact
from rwk.rewards.base import Scores


class NoRelations(Noisy):
    """Does not look where things lie."""

    noise = 0.0

    def seen(self, description: Description) -> Description:
        return replace(description, relation=None, place=None)


class NoColors(Noisy):
    """Takes every colour for the right one."""

    noise = 0.0

    def seen(self, description: Description) -> Description:
        return replace(description, clauses=tuple(clause._replace(color=None) for clause in description.clauses))


class FirstClause(Noisy):
    """Reads no further than to the first thing that a prompt names."""

    noise = 0.0

    def seen(self, description: Description) -> Description:
        return Description(description.clauses[:1])

    def counted(self, fact: Fact) -> bool:
        return fact.claim != "nothing else"


class Garish(Noisy):
    """The truth, and as much again for colourfulness."""

    noise = 0.0

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        scores = super()._score(images, prompts)
        return scores._replace(values=scores.values + Colorfulness().score(images).values / 60)


NAMES: Sequence[str] = (
    "shapes.noisy",
    "proxies:NoRelations",
    "shapes.no_counts",
    *(f"proxies:{kind.__name__}" for kind in (NoColors, FirstClause)),
    "shapes.long_only",
    "proxies:Garish",
    "shapes.clip",
    "colorfulness",
)
"""Rewards from good to useless, no two of one defect."""

"""Wordings of a prompt that mean the same, its things in another order; and a reward that is asked under all of them.

"a red cube and a green ball" is also "a green ball and a red cube", and "a dog left of a cat" is also "a cat right of a
dog". Rewritten are prompts that consist of two or three things, in one of the frames of `_FRAME` or none; all others
keep their one wording, since where a phrase ends cannot be told from its words alone. PeRL (2025), arXiv:2506.14907,
permutes the images of a question likewise.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.combine import Named, arguments, lower_bound_low, number

_PAIRS = (
    ("to the left of", "to the right of"),
    ("on the left of", "on the right of"),
    ("left of", "right of"),
    ("directly above", "directly below"),
    ("above", "below"),
    ("on the top of", "on the bottom of"),
    ("in front of", "behind"),
    ("next to", "next to"),
    ("near", "near"),
    ("beside", "beside"),
)
INVERSE = dict(_PAIRS) | {second: first for first, second in _PAIRS}
"""Relation -> what holds the other way round."""
_DETERMINERS = "a|an|the|one|two|three|four|five|six|seven|eight|nine|ten"
_ENDS = (
    f"and|or|but|with|without|of|in|on|at|to|by|from|into|for|under|over|along|together|is|are|was|has|have|that|which|"
    f"who|while|left|right|above|below|behind|near|beside|next|its|his|her|their|not|no|each|all|both|{_DETERMINERS}"
)
_WORD = rf"(?!(?:{_ENDS})\b)[a-z][a-z'-]*"
_THING = rf"(?:{_DETERMINERS})(?: {_WORD}){{1,4}}(?<![a-z]{2}ing)(?! ?[a-z])"
_KIND = "photo|picture|image|drawing|painting|illustration|photograph"
_FRAME = re.compile(
    rf"(?P<before>(?:(?:a|an|the) (?:{_KIND}) (?:of|shows|showing|that contains|that shows) |we see )?)(?P<things>.+?)"
    r"(?P<after>(?: on a plain background| can be seen here| and that is all)?[.!]?)",
    re.IGNORECASE,
)
_JOIN = re.compile(r"(, and | and | together with | along with |, )")
_RELATION = re.compile(rf" ({'|'.join(sorted(INVERSE, key=len, reverse=True))}) ")
_ONE_THING = re.compile(_THING, re.IGNORECASE)


def wordings(prompt: str) -> list[str]:
    """The prompt as it is, and then each other order of its things in which it means the same.

    >>> wordings("a red cube to the left of a green ball")
    ['a red cube to the left of a green ball', 'a green ball to the right of a red cube']
    >>> wordings("a dog and its owner")
    ['a dog and its owner']
    """
    found = _FRAME.fullmatch(prompt)
    if found is None:
        return [prompt]
    return list(
        dict.fromkeys([prompt, *(found["before"] + text + found["after"] for text in _orders(found["things"]))])
    )


def _orders(text: str) -> list[str]:
    """Every order of the things that a text consists of, its own first; none where it does not consist of things."""
    parts = _RELATION.split(text)
    if len(parts) == 3 and _are_things(parts[::2]):
        return [text, _capital(text, f"{parts[2]} {INVERSE[parts[1]]} {_small(parts[0])}")]
    things, joins = _JOIN.split(text)[::2], _JOIN.split(text)[1::2]
    if not (2 <= len(things) <= 3 and joins[-1] != ", " and _are_things(things)):
        return []
    orders = itertools.permutations([_small(thing) for thing in things])
    ends = [*joins, ""]
    return [_capital(text, "".join(a + b for a, b in zip(order, ends, strict=True))) for order in orders]


def _are_things(parts: list[str]) -> bool:
    return all(_ONE_THING.fullmatch(part) for part in parts)


def _small(text: str) -> str:
    return text[0].lower() + text[1:]


def _capital(original: str, text: str) -> str:
    """The text with a capital where the original has one."""
    return text[0].upper() + text[1:] if original[0].isupper() else text


class Permuted(Named):
    """The mean of a reward's scores under all wordings of the prompt, less k of their standard deviations (over n).

    An image has a score where it has one under every wording; under one alone, that is the reward's own.
    """

    def __init__(self, parts: Mapping[str, Reward], k: float = 1.0) -> None:
        name = f"permuted({arguments(parts)},k={number(k)})"
        if len(parts) != 1:
            raise ValueError(f"{name} needs one part, got {len(parts)}; permute each by itself.")
        if not (math.isfinite(k) and k >= 0):
            raise ValueError(f"{name} needs a k that is finite and at least 0, got {k}.")
        self._part, self.k = next(iter(parts.values())), k
        super().__init__(device=str(self._part.device))
        self.casts, self.precision_note = self._part.casts, self._part.precision_note
        spec = self._part.spec
        self.example_prompts = self._part.example_prompts
        self.spec = RewardSpec(
            name=name,
            unit=spec.unit,
            low=lower_bound_low(spec.low, spec.high, k),
            high=spec.high,
            licence=spec.licence,
            source=spec.source,
            needs_prompt=spec.needs_prompt,
            deterministic=spec.deterministic,
        )

    @classmethod
    def tiny(cls) -> Permuted:
        from rwk.rewards.registry import REWARDS  # reads expressions, so knows this module

        return cls({"dual_encoder": REWARDS.target("dual_encoder").tiny()})

    def example_images(self) -> list[Image.Image]:
        return self._part.example_images()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        if not prompts:
            return self._part.score(images, batch_size=len(images))
        asked = [wordings(prompt) for prompt in prompts]
        rows = [row for row, texts in enumerate(asked) for _ in texts]
        texts = [text for texts in asked for text in texts]
        found = self._part.score([images[row] for row in rows], texts, batch_size=len(images))
        parts = found.values.double().split([len(texts) for texts in asked])
        notes = [
            "; ".join(dict.fromkeys(note for note, of in zip(found.notes, rows, strict=True) if of == row and note))
            for row in range(len(images))
        ]
        return Scores(torch.stack([self._agreed(values) for values in parts]).float(), notes)

    def _agreed(self, values: Tensor) -> Tensor:
        """[] of the scores under every wording [n]."""
        return values.mean() - self.k * values.std(correction=0)

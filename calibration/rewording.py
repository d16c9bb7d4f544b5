"""Prompts said otherwise: changed in one fact, so that an image no longer fits, or in nothing but their manner."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

Rewording = Callable[[str], str | None]
"""The prompt in other words, or None where it holds nothing to change."""

COLOURS = (("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black"), ("pink", "brown", "white", "gray"))
"""A word is replaced by another of its own line."""
NUMBERS = ("one", "two", "three", "four", "five", "six")
RELATIONS = {
    "left": "right",
    "above": "below",
    "over": "under",
    "on top of": "underneath",
    "in front of": "behind",
    "inside": "outside",
}
OBJECTS = (
    ("circle", "square", "triangle", "cross", "ring"),
    ("cube", "sphere", "cone", "pyramid"),
    ("dog", "cat", "bird", "horse", "cow", "sheep", "bear", "elephant", "zebra", "giraffe"),
    ("car", "bus", "train", "boat", "bicycle", "truck", "airplane", "motorcycle"),
    ("chair", "bench", "couch", "bed", "table"),
    ("bottle", "cup", "bowl", "vase", "fork", "knife", "spoon"),
    ("apple", "banana", "carrot", "broccoli", "sandwich", "cake", "pizza", "donut"),
)


def colour(prompt: str) -> str | None:
    """The first colour replaced by one that the prompt does not name."""
    return _replaced(prompt, COLOURS)


def thing(prompt: str) -> str | None:
    """The first thing replaced by another of its kind that the prompt does not name."""
    return _replaced(prompt, OBJECTS)


def number(prompt: str) -> str | None:
    """The first number above one made smaller by one, or two made three."""
    found = _first(prompt, NUMBERS[1:])
    if not found:
        return None
    at = NUMBERS.index(found[0].lower())
    return _put(prompt, found, NUMBERS[at - 1] if at > 1 else NUMBERS[2])


def relation(prompt: str) -> str | None:
    """The first relation or side turned round."""
    both = RELATIONS | {back: forth for forth, back in RELATIONS.items()}
    found = _first(prompt, sorted(both, key=len, reverse=True))
    return _put(prompt, found, both[found[0].lower()]) if found else None


def attributes(prompt: str) -> str | None:
    """The first two different colours exchanged."""
    found = list(_pattern([word for line in COLOURS for word in line]).finditer(prompt))
    pair = next(((found[0], other) for other in found[1:] if other[0].lower() != found[0][0].lower()), None)
    if pair is None:
        return None
    first, second = pair
    return _put(_put(prompt, second, first[0]), first, second[0])


COUNTERFACTUALS: Mapping[str, Rewording] = {
    "colour": colour,
    "object": thing,
    "number": number,
    "relation": relation,
    "attributes": attributes,
}
"""Changes of a prompt's facts."""


def _upper(prompt: str) -> str | None:
    return prompt.upper()


def _full_stop(prompt: str) -> str | None:
    return prompt.rstrip(" .!?") + "."


def _polite(prompt: str) -> str | None:
    return f"please draw {prompt}"


def _spaces(prompt: str) -> str | None:
    return re.sub(r" +", "  ", prompt) if " " in prompt else None


MANNERS: Mapping[str, tuple[str, Rewording]] = {
    "case": ("in capital letters", _upper),
    "punctuation": ("with a full stop", _full_stop),
    "spaces": ("with double spaces", _spaces),
    "politeness": ("after 'please draw'", _polite),
}
"""Changes that leave a prompt's meaning as it is, with what they are called."""


def sentence(prompt: str) -> str | None:
    """The prompt and behind it a sentence that no image can bear out or deny."""
    return f"{prompt.rstrip(' .!?')}. The meeting was moved to Tuesday."


PRAISE = (
    "masterpiece",
    "best quality",
    "highly detailed",
    "sharp focus",
    "award winning",
    "professional",
    "stunning",
    "trending",
)
"""What people write behind a prompt to have a better image, the most usual first."""


def praised(prompt: str, count: int) -> str:
    """The prompt with so many phrases of praise behind it.

    >>> praised("a red ring.", 2)
    'a red ring, masterpiece, best quality'
    """
    return ", ".join([prompt.rstrip(" .!?"), *PRAISE[:count]])


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"\b({'|'.join(map(re.escape, words))})(?=(?:e?s)?\b)", re.IGNORECASE)


def _first(prompt: str, words: Sequence[str]) -> re.Match[str] | None:
    return _pattern(words).search(prompt)


def _put(prompt: str, found: re.Match[str], word: str) -> str:
    return prompt[: found.start()] + word + prompt[found.end() :]


def _replaced(prompt: str, lines: Sequence[Sequence[str]]) -> str | None:
    every = [word for line in lines for word in line]
    found = _first(prompt, every)
    if not found:
        return None
    named = {match[0].lower() for match in _pattern(every).finditer(prompt)}
    line = next(line for line in lines if found[0].lower() in line)
    at = line.index(found[0].lower())
    free = next((word for word in [*line[at + 1 :], *line[:at]] if word not in named), None)
    if free is None:
        return None
    many = re.match(r"e?s\b", prompt[found.end() :])
    if not many:
        return _put(prompt, found, free)
    plural = free + ("es" if free.endswith(("s", "ch", "sh", "x")) else "s")
    return prompt[: found.start()] + plural + prompt[found.end() + many.end() :]

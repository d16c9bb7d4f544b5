"""T2I-CompBench++'s rules for places and numbers (Huang et al., 2025): what a prompt says, and what that is worth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from rwk.adapters.grounding_rules import Wanted, overlap, placed
from rwk.adapters.noun_phrases import noun_phrases

Box = Sequence[float]
"""Left, top, right, bottom, of a picture whose longer side is 480."""
THERE, PLACED = 0.25, 0.5
"""What the surest box of each of two things is worth for a score of 1, and the right place."""
LEAST = 0.5
"""A score for places below it is 0."""
OVER = 0.5
"""Intersection over union from which one thing is as much in front of another as it can be."""
SAME = 0.9
"""Share above which two boxes of one name are one thing: of their union, or of either box."""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
OBJECTS = (
    "airplane apple backpack bag balloon banana bear bee bicycle bird boat book bottle bowl boy bread butterfly cake "
    "camel camera candle car cat chair chicken clock computer couch cow cup deer desk dog drum duck egg fish flag frog "
    "giraffe girl goldfish guitar hamburger helicopter helmet horse key kite knife lamp lemon man microphone microwave "
    "mouse paddle painting peach pear pen person phone pig pillow plate printer rabbit refrigerator sheep ship shrimp "
    "sink sofa stool strawberry suitcase swan table television tent tomato toy train truck turtle vase woman"
).split()
"""What the benchmark counts; other words after a number are passed over."""
_IRREGULAR = {"knife": "knives", "man": "men", "mouse": "mice", "person": "people", "tomato": "tomatoes"} | {
    "woman": "women"
}
_UNCHANGED = ("deer", "fish", "goldfish", "sheep", "shrimp")
_PLACE = re.compile(r"\b(on side of|next to|near|on the (?:left|right|top|bottom) of|on top of)\b")
_DEPTH = re.compile(r"\b(in front of|behind|hidden by|hidden)\b")
_BE = re.compile(r"\b(?:was|were|is|are)\b")
_PARTICLES = ("up", "down", "tall", "out")


def plural(thing: str) -> str:
    """The plural as the benchmark writes it.

    >>> [plural(word) for word in ("toy", "butterfly", "peach", "sheep", "mouse")]
    ['toys', 'butterflies', 'peaches', 'sheep', 'mice']
    """
    if thing in _UNCHANGED:
        return thing
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return thing[:-1] + "ies"
    return _IRREGULAR.get(thing, thing + ("es" if thing.endswith(("ch", "sh")) else "s"))


SINGULAR = {form: thing for thing in OBJECTS for form in (thing, plural(thing))}
_COUNTED = re.compile(rf"\b(an?|{'|'.join(NUMBERS)}) ({'|'.join(sorted(SINGULAR, key=len, reverse=True))})\b")


def read_place(prompt: str) -> Wanted:
    """The two things of a prompt and how the first is placed to the second; without nouns where it tells no place.

    A thing is the last word of its noun phrase. The first phrase ends before the verb, which is "was" and its like, or
    else the word before the place: the benchmark's own code asks spaCy for the nearest noun.

    >>> read_place("a dog on the left of a key").place
    ('dog', 'key', 'on the left of')
    >>> read_place("The fluffy white cat snuggled up next to the warm brown blanket.").place
    ('cat', 'blanket', 'next to')
    """
    return _read(prompt, _PLACE)


def read_depth(prompt: str) -> Wanted:
    """The two things of a prompt and whether the first is in front, as `read_place` reads a place.

    >>> read_depth("a chair hidden by a mouse").place
    ('chair', 'mouse', 'hidden by')
    """
    return _read(prompt, _DEPTH)


def _read(prompt: str, places: re.Pattern[str]) -> Wanted:
    text = prompt.lower().strip()
    found = places.search(text)
    behind = noun_phrases(text[found.end() :]) if found else []
    if found is None or not behind:
        return Wanted(())
    before = _BE.split(text[: found.start()])
    words = before[0].split()
    while words and words[-1] in _PARTICLES:
        words.pop()
    if len(before) == 1 and len(words) > 2:  # "a dog" has no verb
        words.pop()
    if not words:
        return Wanted(())
    first, second = words[-1], behind[0].split()[-1]
    return Wanted(tuple(dict.fromkeys((first, second))), place=(first, second, found[1]))


def read_counts(prompt: str) -> Wanted:
    """The benchmark's objects that stand behind an article or a number up to eight; without nouns where none does.

    >>> read_counts("four trains carried two people and a lively tune").counts
    (('train', 4), ('person', 2))
    """
    counts = tuple(
        (SINGULAR[word], NUMBERS.index(number) + 1 if number in NUMBERS else 1)
        for number, word in _COUNTED.findall(prompt.lower())
    )
    return Wanted(tuple(dict.fromkeys(noun for noun, _ in counts)), counts)


def spatial(surest: Sequence[tuple[float, Box] | None], place: str) -> float:
    """The score of a place, 0 to 1: a quarter of each thing's score, and half of how well the first is placed.

    What is below `LEAST` becomes 0, and so does a picture without both things.

    Args:
        surest: score and box of the first and of the second thing; None for one that is not there.
        place: how the first is to the second.
    """
    worth = sum(THERE * thing[0] for thing in surest if thing is not None)
    first, second = surest
    if first is not None and second is not None:
        worth += PLACED * placed(first[1], second[1], place)
    return worth if worth >= LEAST else 0.0


def spatial_3d(surest: Sequence[tuple[float, Box] | None], place: str, nearness: Tensor | None) -> float:
    """The score of a depth, 0 to 1: a quarter of each thing's score, and half of how well the first is placed.

    Args:
        surest: as in `spatial`.
        place: "in front of", or else the first is to be behind.
        nearness: [H, W] of the picture whose pixels the boxes count, larger is nearer; not asked for unless both are
            there.
    """
    worth = sum(THERE * thing[0] for thing in surest if thing is not None)
    first, second = surest
    if first is None or second is None or nearness is None:
        return worth
    ahead = _nearness(nearness, first[1]) - _nearness(nearness, second[1])
    right = ahead > 0 if place == "in front of" else ahead < 0  # neither for a box without a pixel, where it is NaN
    return worth + PLACED * min(1.0, overlap(first[1], second[1]) / OVER) * right


def _nearness(nearness: Tensor, box: Box) -> float:
    """The mean in a box, whose corners are cut to whole pixels."""
    left, top, right, bottom = (max(0, int(side)) for side in box)
    return nearness[top:bottom, left:right].mean().item()


def numeracy(found: Mapping[str, Sequence[Box]], counts: Sequence[tuple[str, int]]) -> float:
    """The score of numbers, 0 to 1: of each thing half for being there, and half for the right number; the mean.

    Args:
        found: the boxes of each thing, the surest first.
        counts: each thing, and how many are asked for.
    """
    seen = [(len(distinct(found.get(thing, ()))), count) for thing, count in counts]
    return sum(0.5 * (number > 0) + 0.5 * (number == count) for number, count in seen) / len(counts)


def distinct(boxes: Sequence[Box]) -> list[Box]:
    """The boxes but for those that are nearly one with an earlier one, or lie nearly within it, or hold it."""
    kept: list[Box] = []
    for box in boxes:
        if not any(_same(box, other) for other in kept):
            kept.append(box)
    return kept


def _same(first: Box, second: Box) -> bool:
    """Whether the shared area is above `SAME` of any of the three; sides count their last pixel."""
    sides = [max(0.0, min(first[i + 2], second[i + 2]) - max(first[i], second[i]) + 1) for i in (0, 1)]
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second)]
    shared = sides[0] * sides[1]
    return max(shared / (sum(areas) - shared), *(shared / area for area in areas)) > SAME

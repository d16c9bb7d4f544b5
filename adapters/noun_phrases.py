"""Noun phrases of a prompt by a list of small words, where a parser is not at hand."""

from __future__ import annotations

import re

_JOINTS = frozenset(
    "and or but of on in at by to with from for into onto over under above below near behind beside between inside "
    "outside against around across through along next front while as than that which who whose where when it".split()
)
_VERBS = frozenset("is are was were be been being has have had".split())
DETERMINERS = frozenset(
    "a an the his her their its my your our this these those some two three four five six seven eight nine ten "
    "several many".split()
)
_TOKEN = re.compile(r"[\w'’-]+|[^\w\s]")


def noun_phrases(prompt: str) -> list[str]:
    """The stretches of words between small words and marks, each from its determiner on, in the prompt's spelling.

    A stretch ends at a preposition, a conjunction, a form of "be" or "have", or a mark, and another begins at every
    determiner; after "is", "has" and their like nothing counts up to the next of them. Other verbs are not known: they
    stay with the words before them.

    >>> noun_phrases("The red hat was hung on top of a small coat rack, and two dogs")
    ['The red hat', 'top', 'a small coat rack', 'two dogs']
    """
    stretches: list[list[str]] = [[]]
    skipping = False
    for word in _TOKEN.findall(prompt):
        small = word.lower()
        if small in DETERMINERS:
            stretches.append([word])
            skipping = False
        elif small in _JOINTS or small in _VERBS or not word[0].isalnum():
            stretches.append([])
            skipping = small in _VERBS
        elif not skipping:
            stretches[-1].append(word)
    return [" ".join(words) for words in stretches if words and " ".join(words).lower() not in DETERMINERS]

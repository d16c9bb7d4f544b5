"""Sampling recipes as texts, such as `guidance=2,top_p=0.95`; loads no torch."""

from __future__ import annotations

from dataclasses import fields

from rwk.policy_opt.experiment import Recipe


def changes(text: str) -> dict[str, float | int]:
    """What a recipe sets.

    Raises:
        ValueError: for a text that is no recipe.

    >>> changes("temperature=0.7,top_k=50")
    {'temperature': 0.7, 'top_k': 50}
    """
    known = [item.name for item in fields(Recipe)]
    found: dict[str, float | int] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            found[name] = int(value) if name == "top_k" else float(value)
        except ValueError:
            name = ""
        if name not in known:
            raise ValueError(f"a recipe must be of NAME=NUMBER, NAME one of {', '.join(known)}, got {text!r}.")
    return found

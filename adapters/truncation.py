"""What a user is told of a prompt that is longer than a network reads."""

from __future__ import annotations

import warnings


def tell_of_cut(name: str, prompt: str, length: int, reads: int, unit: str = "tokens") -> None:
    """Warns that of this prompt, so many units long, the reward of that name reads the first ones alone."""
    warnings.warn(
        f"{name} reads {reads} {unit} of a prompt, got {length} in {prompt[:60]!r}; "
        f"what stands after them has no say in the score.",
        stacklevel=3,
    )

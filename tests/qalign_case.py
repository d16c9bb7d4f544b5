"""Logits of level words, given to Q-Align's scorers and to ours."""

from __future__ import annotations

import numpy as np

LEVELS = ("excellent", "good", "fair", "poor", "bad")
OTHERS = ("How", "quality", "image", "fine", "high", "low")
"""Words that are not levels; the largest logit may be one of theirs."""


def logits() -> np.ndarray:
    """[24, 11] float32 logits of levels and others, from nearly equal to all but certain."""
    draw = np.random.RandomState(8)
    spread = np.repeat([0.01, 1.0, 4.0, 12.0], 6)[:, None]
    return (draw.standard_normal((24, len(LEVELS) + len(OTHERS))) * spread + 3).astype(np.float32)

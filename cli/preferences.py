"""Preferences as commands take them: what was left out is told, and without a name they are the built-in world's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rwk.cli.console import note

if TYPE_CHECKING:
    from rwk.rewards.data import PreferenceDataset

WORLD = "shapes.preferences"
"""Data that is taken where none is named."""


def preferences(source: Path | None, seed: int) -> PreferenceDataset:
    """The preferences of a file, of FORMAT:FILE, or of a name in `rewards.data.BUILT_IN`; by default the world's."""
    from rwk.rewards.data import BUILT_IN, PreferenceDataset, built_in

    if source is None:
        note(f"no DATA is named: taking {WORLD}, which is made on first use")
    name = WORLD if source is None else str(source)
    data = PreferenceDataset.read(built_in(name, seed=seed) if name in BUILT_IN else name)
    if data.omissions:
        note(f"{data.name} gives {len(data)} pairs; {data.omissions}")
    return data

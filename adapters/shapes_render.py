"""Pictures of scenes, and the stencils that both draw and recognise them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from rwk.adapters.shapes_world import BACKGROUND, CELL, COLORS, OFFSETS, SHAPES, SIZE, SIZES, Scene

_FINE = 8
"""Samples per pixel along each axis."""


class Stencil(NamedTuple):
    """A shape of a size at a place in its quadrant."""

    shape: str
    size: str
    dy: int
    dx: int


def _inside(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Where the shape covers the plane; x and y run from -1 to 1 over its bounding box, y downwards."""
    radius = (x**2 + y**2).sqrt()
    match shape:
        case "circle":
            return radius <= 1
        case "square":
            return (x.abs() <= 0.92) & (y.abs() <= 0.92)
        case "triangle":
            return (y <= 1) & (x.abs() <= (y + 1) / 2)
        case "cross":
            return ((x.abs() <= 0.32) | (y.abs() <= 0.32)) & (x.abs() <= 1) & (y.abs() <= 1)
        case "ring":
            return (radius <= 1) & (radius >= 0.52)
    raise ValueError(f"unknown shape {shape!r}")


@cache
def stencils() -> tuple[tuple[Stencil, ...], Tensor]:
    """Every stencil, and how much of each pixel of a quadrant it covers, [N, CELL, CELL] in 0..1."""
    kinds = [
        Stencil(shape, size, dy, dx)
        for shape in SHAPES
        for size, offsets in OFFSETS.items()
        for dy in offsets
        for dx in offsets
    ]
    fine = (torch.arange(CELL * _FINE) + 0.5) / _FINE - CELL / 2  # pixels from the quadrant's centre
    masks = []
    for kind in kinds:
        half = SIZES[kind.size] / 2
        y, x = torch.meshgrid((fine - kind.dy) / half, (fine - kind.dx) / half, indexing="ij")
        covered = _inside(kind.shape, x, y).float().reshape(CELL, _FINE, CELL, _FINE)
        masks.append(covered.mean((1, 3)))
    return tuple(kinds), torch.stack(masks)


@cache
def _index() -> dict[Stencil, int]:
    return {kind: index for index, kind in enumerate(stencils()[0])}


def palette() -> Tensor:
    """[8, 3] the colours in 0..1, in the order of `COLORS`."""
    return torch.tensor(list(COLORS.values())) / 255


def background() -> Tensor:
    """[3] the background in 0..1."""
    return torch.tensor(BACKGROUND) / 255


def render(scenes: Sequence[Scene]) -> Tensor:
    """Pictures [B, 3, SIZE, SIZE] in 0..1 of the scenes."""
    _, masks = stencils()
    colors, ground = palette(), background()
    pixels = ground[None, :, None, None].repeat(len(scenes), 1, SIZE, SIZE)  # [B, 3, H, W]
    names = list(COLORS)
    for picture, scene in zip(pixels, scenes, strict=True):
        for thing in scene:
            mask = masks[_index()[Stencil(thing.shape or "", thing.size or "", thing.dy, thing.dx)]]
            rows = slice(thing.row * CELL, (thing.row + 1) * CELL)
            columns = slice(thing.column * CELL, (thing.column + 1) * CELL)
            shade = (colors[names.index(thing.color or "")] - ground)[:, None, None]
            picture[:, rows, columns] += mask * shade
    return pixels

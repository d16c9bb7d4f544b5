"""How alike the images of a prompt are to the eye, without a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor

FEATURE = "Pearson correlation of two images' mean RGB over an 8x8 grid, each channel about its own mean"
"""What `similarity` means; 1 for equal images."""
_GRID = 8


def features(images: Sequence[Image.Image]) -> Tensor:
    """[B, 192] what `FEATURE` compares: mean RGB over an 8x8 grid, less each channel's mean over the image."""
    rows = [functional.adaptive_avg_pool2d(pil_to_tensor(image.convert("RGB")).float(), _GRID) for image in images]
    cells = torch.stack(rows).flatten(2)  # [B, 3, 64]
    return (cells - cells.mean(2, keepdim=True)).flatten(1)


def similarity(looks: Tensor) -> Tensor:
    """[P] mean cosine over all pairs of a group's features [P, n, D]; NaN for groups of one.

    Images without any contrast are alike to each other (1) and unlike all others (0).
    """
    groups, n, _ = looks.shape
    if n < 2:
        return torch.full([groups], math.nan)
    norm = looks.norm(dim=2, keepdim=True)
    flat = (norm < 1e-3).float()  # [P, n, 1], in steps of 8 bits
    unit = torch.cat([looks / norm.clamp(min=1e-3) * (1 - flat), flat], 2)
    cosine = unit @ unit.transpose(1, 2)  # [P, n, n]
    above = torch.ones(n, n).triu(1).bool()
    return cosine[:, above].mean(1)

"""The image tokenizer of the built-in world: 48x48 pixels to 64 codes of a 512-entry book, and back.

A convolutional autoencoder around finite scalar quantisation (Mentzer et al., arXiv 2309.15505): three channels of
eight levels each make the book, so that no entry can die.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 8
CHANNELS = 3
CODES = LEVELS**CHANNELS
GRID = 8
"""Codes along each axis of a picture."""


class Residual(nn.Module):
    """Two 3x3 convolutions round which the input goes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.second(functional.gelu(self.first(functional.gelu(self.norm(x)))))
        return x + changed


def encoder(width: int, channels: int) -> nn.Sequential:
    """From pixels [B, 3, 48, 48] to [B, channels, 8, 8]; `width` is a multiple of 32."""
    fine = width // 2
    return nn.Sequential(
        nn.Conv2d(3, fine, 4, stride=2, padding=1),  # [B, fine, 24, 24]
        Residual(fine),
        nn.Conv2d(fine, width, 3, stride=3),  # [B, width, 8, 8]
        Residual(width),
        Residual(width),
        nn.Conv2d(width, channels, 1),
    )


def decoder(width: int, channels: int) -> nn.Sequential:
    """From [B, channels, 8, 8] to pixels [B, 3, 48, 48]; `width` is a multiple of 32."""
    fine = width // 2
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        Residual(width),
        Residual(width),
        Residual(width),
        nn.Conv2d(width, fine * 9, 1),
        nn.PixelShuffle(3),  # [B, fine, 24, 24]
        Residual(fine),
        nn.Conv2d(fine, fine // 2 * 4, 1),
        nn.PixelShuffle(2),  # [B, fine / 2, 48, 48]
        nn.GELU(),
        nn.Conv2d(fine // 2, 3, 3, padding=1),
    )


class ShapesVQ(nn.Module):
    """Encoder, quantiser and decoder."""

    def __init__(self, width: int = 128) -> None:
        """
        Args:
            width: channels at the code grid; a multiple of 32.
        """
        super().__init__()
        self.encoder, self.decoder = encoder(width, CHANNELS), decoder(width, CHANNELS)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] what is left of pixels [B, 3, H, W] after quantisation, with a straight-through gradient."""
        levels = self._levels(pixels)
        return self._paint(levels + (levels.round() - levels).detach())

    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens [B, 64] long of pixels [B, 3, 48, 48] in 0..1, row by row."""
        digits = self._levels(pixels).round().long().flatten(2)  # [B, 3, 64] in 0..7
        place = torch.tensor([1, LEVELS, LEVELS**2], device=digits.device)
        return (digits * place[:, None]).sum(1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Pixels [B, 3, 48, 48] in 0..1 of tokens [B, 64]."""
        place = torch.tensor([1, LEVELS, LEVELS**2], device=tokens.device)
        digits = tokens[:, None] // place[:, None] % LEVELS  # [B, 3, 64]
        weight: Any = next(self.parameters())
        return self._paint(digits.to(weight.dtype).unflatten(2, (GRID, GRID))).float().clamp(0, 1)

    @staticmethod
    def code_embeddings() -> Tensor:
        """[CODES, CHANNELS] in -1..1 what the decoder is given of each code."""
        digits = torch.arange(CODES)[:, None] // torch.tensor([1, LEVELS, LEVELS**2]) % LEVELS
        return digits * (2 / (LEVELS - 1)) - 1

    def _levels(self, pixels: Tensor) -> Tensor:
        """[B, 3, 8, 8] in 0..LEVELS - 1, not yet rounded."""
        weight: Any = next(self.parameters())
        return torch.sigmoid(self.encoder(pixels.to(weight.dtype) * 2 - 1).float()) * (LEVELS - 1)

    def decode_soft(self, embeddings: Tensor) -> Tensor:
        """Pixels [B, 3, 48, 48] in 0..1, with gradient, of embeddings [B, 64, CHANNELS]."""
        return self._paint((embeddings.mT + 1).unflatten(2, (GRID, GRID)) * ((LEVELS - 1) / 2)).clamp(0, 1)

    def _paint(self, levels: Tensor) -> Tensor:
        weight: Any = next(self.parameters())
        painted: Tensor = self.decoder((levels * (2 / (LEVELS - 1)) - 1).to(weight.dtype)).float()
        return painted * 0.5 + 0.5

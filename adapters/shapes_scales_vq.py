"""The image tokenizer of `shapes.scales`: 48x48 pixels to maps of codes, from coarse to fine, and back.

A picture is a sum of maps, each blown up to the side of the last. A code is nine signs, the value of which is fixed, so
no entry of the book can die: residual quantisation over scales is after VAR (Tian et al., 2024, arXiv:2404.02905), and
its codes of signs after Infinity (Han et al., 2024, arXiv:2412.04431).
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rwk.adapters.shapes_vq import decoder, encoder

SIDES = (1, 2, 4, 8)
"""Of the maps of codes."""
STEPS = tuple(side**2 for side in SIDES)
"""Codes of every map."""
BITS = 9
CODES = 1 << BITS
SIGN = BITS**-0.5
"""What a sign stands for: a code is a vector of length 1."""
MOST = len(SIDES) * SIGN
"""What the signs of all maps come to at most."""
ENDS = tuple(accumulate(STEPS))


class ScalesVQ(nn.Module):
    """Encoder, quantiser and decoder."""

    def __init__(self, width: int = 128) -> None:
        """
        Args:
            width: channels at the finest map; a multiple of 32.
        """
        super().__init__()
        self.encoder, self.decoder = encoder(width, BITS), decoder(width, BITS)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] what is left of pixels [B, 3, H, W] after quantisation, with a straight-through gradient.

        In training every second picture lacks some of its last maps, so that the first ones hold what matters most.
        """
        latents = self._latents(pixels)
        vectors = code_embeddings(latents.device)[self.codes_of(latents)]
        sums = torch.stack([self.sum_of(vectors[:, :end]) for end in ENDS])  # [maps, B, 9, 8, 8]
        last = torch.full([len(pixels)], len(ENDS) - 1, device=latents.device)
        if self.training:
            last[::2] = torch.randint(len(ENDS), last[::2].shape, device=latents.device)
        total = sums[last, torch.arange(len(pixels), device=latents.device)]
        return self._paint(latents + (total - latents).detach())

    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens [B, 85] long of pixels [B, 3, 48, 48] in 0..1, map by map, each row by row."""
        return self.codes_of(self._latents(pixels))

    def decode(self, tokens: Tensor) -> Tensor:
        """Pixels [B, 3, 48, 48] in 0..1 of tokens [B, k]; maps that are not whole are left out."""
        return self.decode_soft(code_embeddings(tokens.device)[tokens])

    def decode_soft(self, vectors: Tensor) -> Tensor:
        """Pixels [B, 3, 48, 48] in 0..1, with gradient, of vectors [B, k, 9]; maps that are not whole are left out."""
        return self._paint(self.sum_of(vectors)).clamp(0, 1)

    def sum_of(self, vectors: Tensor) -> Tensor:
        """[B, 9, 8, 8] the sum of the maps that are whole in vectors [B, k, 9]."""
        total = vectors.new_zeros([len(vectors), BITS, SIDES[-1], SIDES[-1]])
        for start, end, side in zip((0, *ENDS), ENDS, SIDES, strict=False):
            if end <= vectors.shape[1]:
                total = total + _blown_up(vectors[:, start:end].mT.unflatten(2, (side, side)))
        return total

    def outlook(self, codes: Tensor, scale: int) -> Tensor:
        """[B, s * s, 9] the picture so far at the side of this scale, of the codes [B, k] of the scales before it."""
        total = self.sum_of(code_embeddings(codes.device)[codes])
        return functional.adaptive_avg_pool2d(total, SIDES[scale]).flatten(2).mT

    def codes_of(self, latents: Tensor) -> Tensor:
        """Codes [B, 85] long of latents [B, 9, 8, 8]: map by map the signs of what is left of them at its side."""
        rest, codes = latents.detach(), []
        for side in SIDES:
            bits = functional.adaptive_avg_pool2d(rest, side) > 0  # [B, 9, s, s]
            rest = rest - _blown_up((bits * 2.0 - 1) * SIGN)
            place = 2 ** torch.arange(BITS, device=bits.device)
            codes.append((bits.flatten(2) * place[:, None]).sum(1))
        return torch.cat(codes, 1)

    def _latents(self, pixels: Tensor) -> Tensor:
        weight: Any = next(self.parameters())
        return MOST * torch.tanh(self.encoder(pixels.to(weight.dtype) * 2 - 1).float())  # type: ignore[no-any-return]

    def _paint(self, latents: Tensor) -> Tensor:
        weight: Any = next(self.parameters())
        painted: Tensor = self.decoder(latents.to(weight.dtype)).float()
        return painted * 0.5 + 0.5


def code_embeddings(device: torch.device | str = "cpu") -> Tensor:
    """[CODES, BITS] the signs of each code, over the length of the whole."""
    bits = torch.arange(CODES, device=device)[:, None] >> torch.arange(BITS, device=device) & 1
    signs: Tensor = (bits * 2.0 - 1) * SIGN
    return signs


def _blown_up(picture: Tensor) -> Tensor:
    """[B, C, 8, 8] of [B, C, s, s]."""
    return functional.interpolate(picture, size=(SIDES[-1], SIDES[-1]), mode="nearest")

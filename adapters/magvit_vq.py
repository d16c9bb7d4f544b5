"""The image tokenizer of Show-o (Xie et al., 2024), after MAGVIT-v2: pixels to codes of 13 signs and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rwk.adapters import taming_vq


@dataclass(frozen=True)
class MagvitConfig:
    """Sizes of a tokenizer; by default those of the published one. Levels are from the finest on."""

    bits: int = 13
    width: int = 128
    multiples: tuple[int, ...] = (1, 2, 2, 4, 4)
    """Of `width`, of the levels that encode; each but the last halves the picture."""
    blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_multiples: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)

    @property
    def patch(self) -> int:
        """Side in pixels of what one code stands for."""
        return 1 << (len(self.multiples) - 1)


class Magvit(nn.Module):
    """Under the keys of the published checkpoint. The bits of a code, highest first, are the signs of its vector."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.config = config
        widths, decoder_widths = (
            [config.width * multiple for multiple in multiples]
            for multiples in (config.multiples, config.decoder_multiples)
        )
        self.encoder = Encoder(widths, config.blocks, config.bits)
        self.decoder = Decoder(decoder_widths, config.decoder_blocks, config.bits)

    @property
    def codebook(self) -> Tensor:
        """[K, D] the vectors of the codes, of 1 and -1."""
        codes = torch.arange(1 << self.config.bits, device=self.decoder.conv_in.weight.device)
        return 2.0 * (codes[:, None] >> self._places & 1) - 1

    @property
    def _places(self) -> Tensor:
        """[D] the place of the bit of each number of a vector."""
        return torch.arange(self.config.bits - 1, -1, -1, device=self.decoder.conv_in.weight.device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes [B, L], row by row, of pixels [B, 3, S, S] in 0..1."""
        vectors: Tensor = self.encoder(2 * pixels - 1).flatten(2).mT  # [B, L, D]
        return ((vectors > 0) << self._places).sum(2)

    def decode(self, vectors: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] in 0..1 of the vectors [B, L, D] of a square picture."""
        side = round(vectors.shape[1] ** 0.5)
        made: Tensor = self.decoder(vectors.mT.unflatten(2, (side, side)))
        return (made.clamp(-1, 1) + 1) / 2


class Encoder(taming_vq.Encoder):
    """Ends in the layer before the signs are taken."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], bits: int) -> None:
        super().__init__(widths, blocks, bits)
        self.quant_conv = nn.Conv2d(bits, bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        made: Tensor = self.quant_conv(super().forward(pixels))
        return made


class Decoder(taming_vq.Decoder):
    """Begins with the layer behind the signs."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], bits: int) -> None:
        super().__init__(widths, blocks, bits)
        self.post_quant_conv = nn.Conv2d(bits, bits, 1)

    def forward(self, latents: Tensor) -> Tensor:
        return super().forward(self.post_quant_conv(latents))

"""VAR's image tokenizer (Tian et al., 2024), as far as it decodes: maps of codes, from coarse to fine, to pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwk.adapters.llamagen_vq import norm
from rwk.adapters.taming_vq import Decoder


@dataclass(frozen=True)
class VarVqConfig:
    """Sizes of a tokenizer; by default those of the published one."""

    sides: tuple[int, ...]
    """Of the maps of codes, from the coarsest on."""
    codes: int = 4096
    latent: int = 32
    width: int = 160
    multiples: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Of `width`, from the finest level to the coarsest; each but the last doubles the picture."""
    mixers: int = 4

    @property
    def image_size(self) -> int:
        """Side of a picture in pixels."""
        return self.sides[-1] << (len(self.multiples) - 1)


class VarVq(nn.Module):
    """Under the keys of the published checkpoint, without what encodes.

    Every map of vectors is blown up to the side of the last one and mixed by a convolution; a picture is the sum.
    """

    def __init__(self, config: VarVqConfig) -> None:
        super().__init__()
        self.config = config
        self.quantize = Quantizer(config)
        self.post_quant_conv = nn.Conv2d(config.latent, config.latent, 3, padding=1)
        widths = [config.width * multiple for multiple in config.multiples]
        self.decoder = Decoder(widths, [3] * len(widths), config.latent, FusedAttention, attends=True)

    @property
    def codebook(self) -> Tensor:
        """[K, D] the vectors of the codes."""
        return self.quantize.embedding.weight

    def latents(self, vectors: Tensor) -> Tensor:
        """[B, D, S, S] the sum over the maps that are whole in the vectors [B, k, D], one map after another."""
        side, start = self.config.sides[-1], 0
        total = vectors.new_zeros([len(vectors), vectors.shape[2], side, side])
        for scale, each in enumerate(self.config.sides):
            if start + each**2 > vectors.shape[1]:
                break
            drawn = vectors[:, start : start + each**2].mT.unflatten(2, (each, each))
            total = total + self.quantize.mixer(scale)(F.interpolate(drawn, size=(side, side), mode="bicubic"))
            start += each**2
        return total

    def outlook(self, codes: Tensor, scale: int) -> Tensor:
        """[B, s * s, D] the picture so far at the side of this scale, of the codes [B, k] of the scales before it."""
        side = self.config.sides[scale]
        return F.interpolate(self.latents(self.codebook[codes]), size=(side, side), mode="area").flatten(2).mT

    def decode(self, vectors: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] in 0..1 of vectors [B, k, D]; the details of the maps that are not whole are left out."""
        made: Tensor = self.decoder(self.post_quant_conv(self.latents(vectors)))
        return (made.clamp(-1, 1) + 1) / 2


class Quantizer(nn.Module):
    """The vectors of the codes, and the convolutions, each of which several scales share."""

    def __init__(self, config: VarVqConfig) -> None:
        super().__init__()
        self.last = len(config.sides) - 1
        self.embedding = nn.Embedding(config.codes, config.latent)
        self.quant_resi = nn.ModuleDict({"qresi_ls": nn.ModuleList(Mixer(config.latent) for _ in range(config.mixers))})
        margin = 1 / ((3 if config.mixers == 4 else 2) * config.mixers)
        self.ticks = torch.linspace(margin, 1 - margin, config.mixers, dtype=torch.float64, device="cpu")

    def mixer(self, scale: int) -> nn.Module:
        """The convolution whose tick is nearest to the scale's place between first and last."""
        nearest = int((self.ticks - scale / self.last).abs().argmin())
        return self.quant_resi.get_submodule(f"qresi_ls.{nearest}")


class Mixer(nn.Conv2d):
    """The mean of what comes in and its convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return (hidden + super().forward(hidden)) / 2


class FusedAttention(nn.Module):
    """Of every place to every place, with one head, queries, keys and values from one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(hidden)).flatten(2).mT.chunk(3, 2)  # [B, L, C]
        seen = F.scaled_dot_product_attention(q, k, v).mT.unflatten(2, hidden.shape[2:])
        made: Tensor = self.proj_out(seen)
        return hidden + made

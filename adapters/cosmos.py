"""Cosmos' discrete tokenizer of videos (NVIDIA, 2024), as far as it turns the codes of one picture into pixels.

A picture is a video of one frame. What came before a frame is taken to be the same as it, so a convolution over time
is one by the sum of its weights, attention over time sees itself alone, and steps that double the time do nothing.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rwk.adapters.llamagen_vq import Attention
from rwk.adapters.published import Origin, fill, read
from rwk.adapters.torchscript import read_torchscript

ORIGIN = Origin("nvidia/Cosmos-1.0-Tokenizer-DV8x16x16", "decoder.jit", "NVIDIA Open Model License", 132)
PATCH = 4
"""Side in pixels of what two inverse Haar transforms make of one vector."""


@dataclass(frozen=True)
class CosmosConfig:
    """Sizes of a decoder; by default those of DV8x16x16."""

    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """Of each number of a code."""
    latent: int = 16
    width: int = 128
    multiples: tuple[int, ...] = (2, 4, 4)
    """Of `width`, from the finest stage to the coarsest; each stage but the finest doubles the picture."""

    @property
    def codes(self) -> int:
        return math.prod(self.levels)

    @property
    def patch(self) -> int:
        """Side in pixels of what one code stands for."""
        return PATCH << (len(self.multiples) - 1)


class Cosmos(nn.Module):
    """The decoder, under the published keys but for what wraps a single layer."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.config = config
        self.post_quant_conv = nn.Conv2d(len(config.levels), config.latent, 1)
        self.decoder = Decoder(config)

    def forward(self, codes: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in 0..1 of codes [B, h, w]."""
        levels = torch.tensor(self.config.levels, device=codes.device)
        basis = levels.cumprod(0) // levels
        digits = codes[..., None] // basis % levels  # [B, h, w, numbers]
        vectors = (digits / (levels // 2) - 1).movedim(3, 1)
        made: Tensor = self.decoder(self.post_quant_conv(vectors.to(self.post_quant_conv.weight)))
        return (made.clamp(-1, 1) + 1) / 2

    @classmethod
    def load(cls, name: str, path: Path, config: CosmosConfig) -> Self:
        """The published decoder in float32: `decoder.jit`, whose code is not run, or its tensors in another file.

        Raises:
            ValueError: for a file that is not this decoder.
        """
        self = cls(config)
        tensors = read_torchscript(path) if path.suffix == ".jit" else read(path)
        fill(name, self, of_one_frame(tensors))
        return self

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """What `save` wrote."""
        held = json.loads((folder / "decoder.json").read_text())
        self = cls(CosmosConfig(**held | {key: tuple(held[key]) for key in ("levels", "multiples")}))
        fill(str(folder), self, load_file(folder / "decoder.safetensors"))
        return self

    def save(self, folder: Path) -> None:
        save_file({k: v.cpu().contiguous() for k, v in self.state_dict().items()}, folder / "decoder.safetensors")
        (folder / "decoder.json").write_text(json.dumps(asdict(self.config)) + "\n")


def of_one_frame(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under the keys of `Cosmos`, weights summed over time; tables of constants are left out."""
    found = {}
    for key, value in tensors.items():
        if not key.startswith(("inv_quant.", "decoder.unpatcher3d.")):
            plain = re.sub(r"\.(conv3d|norm)(?=\.(weight|bias)$)", "", key)
            found[plain] = value.float().sum(2) if value.ndim == 5 else value.float()
    return found


class Decoder(nn.Module):
    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        widths = [config.width * multiple for multiple in config.multiples]
        coarsest = widths[-1]
        self.conv_in = factorised(config.latent, coarsest)
        self.mid = nn.ModuleDict(
            {
                "block_1": Block(coarsest, coarsest),
                "attn_1": nn.Sequential(Attention(coarsest, groups=1), OverTime(coarsest, groups=1)),
                "block_2": Block(coarsest, coarsest),
            }
        )
        before = [*widths[1:], coarsest]
        last = len(widths) - 1
        self.up = nn.ModuleList(
            Stage(before[i], width, Up(width, over_time=i < last) if i else nn.Identity())
            for i, width in enumerate(widths)
        )
        self.norm_out = norm(widths[0])
        self.conv_out = factorised(widths[0], 3 * PATCH**3)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.conv_in(latents)
        for part in (*self.mid.values(), *reversed(self.up)):
            hidden = part(hidden)
        hidden = self.conv_out(F.silu(self.norm_out(hidden)))
        for _ in range(PATCH.bit_length() - 1):
            hidden = inverse_haar(hidden)
        made: Tensor = hidden
        return made


class Stage(nn.Module):
    """Blocks of one resolution, then the step to the next."""

    def __init__(self, before: int, width: int, upsample: nn.Module) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(width if i else before, width) for i in range(3))
        self.upsample = upsample

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.block:
            hidden = block(hidden)
        made: Tensor = self.upsample(hidden)
        return made


class Block(nn.Module):
    """Two convolutions and what came in."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), factorised(before, width)
        self.norm2, self.conv2 = norm(width), factorised(width, width)
        self.nin_shortcut = nn.Conv2d(before, width, 1) if before != width else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(hidden)))
        made: Tensor = self.nin_shortcut(hidden) + self.conv2(F.silu(self.norm2(inner)))
        return made


class OverTime(Attention):
    """Of a frame to those before it, which are none; so queries and keys are not asked."""

    def seen(self, normed: Tensor) -> Tensor:
        made: Tensor = self.v(normed)
        return made


class Up(nn.Module):
    """Twice the side, after a convolution over time where the time is doubled too, as it is by all steps but one."""

    def __init__(self, width: int, *, over_time: bool) -> None:
        super().__init__()
        self.over_time = over_time
        self.conv1, self.conv3 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.over_time:
            hidden = hidden + self.conv1(hidden)
        hidden = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
        made: Tensor = self.conv3(hidden + self.conv2(hidden))
        return made


def factorised(before: int, width: int) -> nn.Sequential:
    """A convolution over the picture, and one over time."""
    return nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.Conv2d(width, width, 1))


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, width, eps=1e-6)


def inverse_haar(parts: Tensor) -> Tensor:
    """[B, C / 8, 2 H, 2 W] the last frame of what parts [B, C, H, W], low and high in time, height, width, are of."""
    low, high = parts.chunk(2, 1)
    ll, lh, hl, hh = (low - high).chunk(4, 1)  # of the last frame; height before width
    upper = torch.stack([ll + hl + lh + hh, ll + hl - lh - hh], -1)  # [B, C / 8, H, W, 2]
    lower = torch.stack([ll - hl + lh - hh, ll - hl - lh + hh], -1)
    return torch.stack([upper, lower], -3).flatten(-4, -3).flatten(-2)

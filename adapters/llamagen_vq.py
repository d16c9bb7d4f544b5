"""LlamaGen's image tokenizer (Sun et al., 2024): pictures to codes of 16 by 16 pixels and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class VqConfig:
    """Sizes of a tokenizer; by default those of the published VQ-16."""

    codes: int = 16384
    code_width: int = 8
    width: int = 128
    latent: int = 256
    multiples: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Of `width`, from the finest stage to the coarsest; each stage but the last halves the picture."""
    attends: bool = True
    """Whether attention follows every block of the coarsest stage, or the middle has it alone."""
    unit: bool = True
    """Whether codes are compared and decoded as vectors of length 1."""

    @property
    def patch(self) -> int:
        """Side in pixels of what one code stands for."""
        return 1 << (len(self.multiples) - 1)


class Vq(nn.Module):
    """Under the keys of LlamaGen's published checkpoint."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * multiple for multiple in config.multiples]
        self.encoder = Encoder(widths, config.latent, config.attends)
        self.decoder = Decoder(widths[::-1], config.latent, config.attends)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.codes, config.code_width)})
        self.quant_conv = nn.Conv2d(config.latent, config.code_width, 1)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.latent, 1)

    @property
    def codebook(self) -> Tensor:
        """[K, D] the vectors of the codes."""
        vectors: Tensor = self.quantize.get_parameter("embedding.weight")
        return F.normalize(vectors, dim=1) if self.config.unit else vectors

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes [B, L], row by row, of pixels [B, 3, S, S] in 0..1."""
        vectors = self.quant_conv(self.encoder(2 * pixels - 1)).flatten(2).mT  # [B, L, D]
        if self.config.unit:
            vectors = F.normalize(vectors, dim=2)
        nearest: Tensor = (vectors @ self.codebook.T - self.codebook.square().sum(1) / 2).argmax(2)
        return nearest

    def decode(self, codes: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] in 0..1 of codes [B, L] of a square picture."""
        side = round(codes.shape[1] ** 0.5)
        vectors = self.codebook[codes].mT.unflatten(2, (side, side))  # [B, D, side, side]
        made: Tensor = self.decoder(self.post_quant_conv(vectors))
        return (made.clamp(-1, 1) + 1) / 2


class Encoder(nn.Module):
    """Latents [B, latent, S / patch, S / patch] of pixels in -1..1."""

    def __init__(self, widths: list[int], latent: int, attends: bool) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], width, 2, attends=attends and i == last, down=True if i < last else None)
            for i, width in enumerate(widths)
        )
        self.mid = middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.conv_in(pixels)
        for part in (*self.conv_blocks, *self.mid):
            hidden = part(hidden)
        made: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return made


class Decoder(nn.Module):
    """Pixels in about -1..1 of latents."""

    def __init__(self, widths: list[int], latent: int, attends: bool) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(latent, widths[0], 3, padding=1)
        self.mid = middle(widths[0])
        self.conv_blocks = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], width, 3, attends=attends and i == 0, down=False if i < last else None)
            for i, width in enumerate(widths)
        )
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.conv_in(latents)
        for part in (*self.mid, *self.conv_blocks):
            hidden = part(hidden)
        made: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return made


class Stage(nn.Module):
    """Blocks of one resolution, then the step to the next."""

    def __init__(self, before: int, width: int, blocks: int, *, attends: bool, down: bool | None) -> None:
        """
        Args:
            before: channels that come in.
            blocks: how many there are.
            attends: whether attention follows each of them.
            down: halve the picture at the end, or else double it; None for neither.
        """
        super().__init__()
        self.res = nn.ModuleList(Block(width if i else before, width) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(width) for _ in range(blocks if attends else 0))
        if down is not None:
            kind = "downsample" if down else "upsample"
            self.add_module(kind, Down(width) if down else Up(width))

    def forward(self, hidden: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            hidden = block(hidden)
            if len(self.attn):
                hidden = self.attn[i](hidden)
        for kind, part in self.named_children():
            if kind in ("downsample", "upsample"):
                hidden = part(hidden)
        return hidden


class Block(nn.Module):
    """Two convolutions and what came in."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, width, 3, padding=1)
        self.norm2, self.conv2 = norm(width), nn.Conv2d(width, width, 3, padding=1)
        if before != width:
            self.nin_shortcut = nn.Conv2d(before, width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(hidden)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        made: Tensor = inner + (self.nin_shortcut(hidden) if hasattr(self, "nin_shortcut") else hidden)
        return made


class Attention(nn.Module):
    """Of every place to every place, with one head."""

    def __init__(self, width: int, *, groups: int = 32) -> None:
        """
        Args:
            groups: of channels, which are normalised together.
        """
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = hidden + self.proj_out(self.seen(self.norm(hidden)))
        return made

    def seen(self, normed: Tensor) -> Tensor:
        """What every place takes from the others."""
        q, k, v = (part(normed).flatten(2).mT for part in (self.q, self.k, self.v))  # [B, L, C]
        made: Tensor = F.scaled_dot_product_attention(q, k, v).mT.unflatten(2, normed.shape[2:])
        return made


class Down(nn.Module):
    """Half the side; a border of zeros is added to the right and below alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.conv(F.pad(hidden, (0, 1, 0, 1)))
        return made


class Up(nn.Module):
    """Twice the side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return made


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


def middle(width: int) -> nn.ModuleList:
    return nn.ModuleList([Block(width, width), Attention(width), Block(width, width)])

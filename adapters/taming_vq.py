"""The convolutions of VQGAN (Esser et al., 2021), under the keys of taming-transformers, which others took over."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from rwk.adapters.llamagen_vq import Attention, Block, Down, Up, norm


class Encoder(nn.Module):
    """Latents [B, latent, S / 2^n, S / 2^n] of pixels in -1..1, over n + 1 levels."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], latent: int) -> None:
        """
        Args:
            widths: channels of each level, from the finest on.
            blocks: how many each has.
            latent: channels that come out.
        """
        super().__init__()
        before = [widths[0], *widths]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Level(before[i], width, blocks[i]) for i, width in enumerate(widths))
        for level, width in zip(self.down[:-1], widths, strict=False):
            level.downsample = Down(width)
        self.mid = Middle(widths[-1], Attention)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.conv_in(pixels)
        for part in (*self.down, self.mid):
            hidden = part(hidden)
        made: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return made


class Decoder(nn.Module):
    """Pixels in about -1..1 of latents."""

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        latent: int,
        attention: type[nn.Module] = Attention,
        *,
        attends: bool = False,
    ) -> None:
        """
        Args:
            widths: channels of each level, from the finest on.
            blocks: how many each has.
            latent: channels that come in.
            attention: its class, made of a width.
            attends: whether it follows the blocks of the coarsest level too.
        """
        super().__init__()
        before = [*widths[1:], widths[-1]]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], attention)
        self.up = nn.ModuleList(
            Level(before[i], width, blocks[i], attention if attends and i == last else None)
            for i, width in enumerate(widths)
        )
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level.upsample = Up(width)
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.mid(self.conv_in(latents))
        for level in [*self.up][::-1]:
            hidden = level(hidden)
        made: Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return made


class Level(nn.Module):
    """Blocks of one resolution, then the step to the next, if one is set."""

    def __init__(self, before: int, width: int, blocks: int, attention: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(width if i else before, width) for i in range(blocks))
        self.attn = nn.ModuleList([attention(width) for _ in range(blocks)] if attention else [])
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            hidden = block(hidden)
            if len(self.attn):
                hidden = self.attn[i](hidden)
        made: Tensor = self.upsample(self.downsample(hidden))
        return made


class Middle(nn.Module):
    """Two blocks with attention between them."""

    def __init__(self, width: int, attention: type[nn.Module]) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = Block(width, width), attention(width), Block(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.block_2(self.attn_1(self.block_1(hidden)))
        return made

"""VAR's transformer (Tian et al., 2024): states of maps of codes, each of which sees itself and the coarser ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Cache = list[list[Tensor]]
"""Of every layer the keys and values [B, heads, length, size] of all maps that it has seen, in one list each."""


@dataclass(frozen=True)
class VarConfig:
    """Sizes of a network, named as transformers does; the published ones are as many heads of 64 wide as deep."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    sides: tuple[int, ...]
    """Of the maps of codes, from the coarsest on."""
    shared: bool = False
    """One modulation for all layers, to which each adds its own constants."""
    codes: int = 4096
    latent: int = 32
    classes: int = 1000

    @property
    def steps(self) -> tuple[int, ...]:
        """Codes of every map."""
        return tuple(side**2 for side in self.sides)


class VarTransformer(nn.Module):
    """Under the keys of the published checkpoint; without dropout, which neither sampling nor its probabilities use."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.config = config
        width, length = config.hidden_size, sum(config.steps)
        self.word_embed = nn.Linear(config.latent, width)
        self.class_emb = nn.Embedding(config.classes + 1, width)  # the last stands for none
        self.pos_start = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.pos_1LC = nn.Parameter(torch.randn(1, length, width) * width**-0.5)
        self.lvl_embed = nn.Embedding(len(config.sides), width)
        if config.shared:
            self.shared_ada_lin = modulation(width, 6)
        self.blocks = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.head_nm = Last(width)
        self.head = nn.Linear(width, config.codes)
        self.gradient_checkpointing = False
        """Compute each layer again in the backward pass, in place of keeping what it made."""

    @property
    def once(self) -> list[nn.Module]:
        """What sees the class alone, so once for a picture and not for each of its codes."""
        shared = [self.shared_ada_lin] if self.config.shared else [block.ada_lin for block in self.blocks]
        return [*shared, self.head_nm]

    @property
    def scales(self) -> Tensor:
        """[L] long: the scale of every code."""
        return torch.arange(len(self.config.sides)).repeat_interleave(torch.tensor(self.config.steps))

    def forward(self, embeds: Tensor, classes: Tensor, start: int = 0, cache: Cache | None = None) -> Tensor:
        """[B, n, D] states, ready for the head, of the codes from `start` on.

        Args:
            embeds: [B, n, D] what is known of each code from the scales before; whole maps.
            classes: [B] long.
            start: of how many codes the cache knows.
            cache: to be added to.
        """
        scales = self.scales[: start + embeds.shape[1]].to(embeds.device)
        cond = self.class_emb(classes)  # [B, D]
        hidden = embeds + self.lvl_embed(scales[start:]) + self.pos_1LC[:, start : len(scales)]
        blind = scales[start:, None] < scales[None]
        mask = hidden.new_zeros(blind.shape).masked_fill(blind, -math.inf) if start == 0 else None
        changes = self.shared_ada_lin(cond) if self.config.shared else cond
        for index, block in enumerate(self.blocks):
            if self.gradient_checkpointing and self.training and cache is None:
                hidden = checkpoint(block, hidden, changes, mask, None, use_reentrant=False)
            else:
                hidden = block(hidden, changes, mask, None if cache is None else cache[index])
        made: Tensor = self.head_nm(hidden, cond)
        return made


class Layer(nn.Module):
    """Attention and a feed-forward part, each added to what came in; the class scales and shifts both."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.attn = Attention(config)
        self.ffn = nn.Sequential()
        self.ffn.add_module("fc1", nn.Linear(width, 4 * width))
        self.ffn.add_module("act", nn.GELU("tanh"))
        self.ffn.add_module("fc2", nn.Linear(4 * width, width))
        if config.shared:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) * width**-0.5)
        else:
            self.ada_lin = modulation(width, 6)

    def forward(self, hidden: Tensor, changes: Tensor, mask: Tensor | None, cache: list[Tensor] | None) -> Tensor:
        """
        Args:
            changes: [B, D] of the class, or [B, 6 D] where the layers share their modulation.
        """
        six = self.ada_lin(changes) if hasattr(self, "ada_lin") else changes + self.ada_gss.flatten(2)[0]
        gain, gain_ffn, scale, scale_ffn, shift, shift_ffn = six[:, None].chunk(6, 2)  # [B, 1, D]
        hidden = hidden + self.attn(normed(hidden, scale, shift), mask, cache) * gain
        made: Tensor = hidden + self.ffn(normed(hidden, scale_ffn, shift_ffn)) * gain_ffn
        return made


class Attention(nn.Module):
    """Of queries and keys of length 1, the queries times a learnt number of at most 100."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.scale_mul_1H11 = nn.Parameter(torch.full([1, self.heads, 1, 1], 4.0).log())
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None, cache: list[Tensor] | None) -> Tensor:
        q, k, v = self.mat_qkv(hidden).chunk(3, 2)
        parts = (q + self.q_bias, k, v + self.v_bias)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)  # [B, heads, n, size]
        q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp(max=math.log(100)).exp()
        k = F.normalize(k, dim=-1)
        if cache is not None:
            cache[:] = [torch.cat(pair, 2) for pair in zip(cache, (k, v), strict=True)] if cache else [k, v]
            k, v = cache
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        made: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return made


class Last(nn.Module):
    """What the class makes of the states before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = modulation(width, 2)

    def forward(self, hidden: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.ada_lin(cond)[:, None].chunk(2, 2)
        return normed(hidden, scale, shift)


def modulation(width: int, parts: int) -> nn.Sequential:
    """From a class [B, D] to scales and shifts [B, parts * D]."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def normed(hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:], eps=1e-6) * (1 + scale) + shift

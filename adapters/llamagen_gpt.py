"""LlamaGen's transformer (Sun et al., 2024): hidden states of a condition and the codes of a picture behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class GptConfig:
    """Sizes of a network."""

    layers: int
    heads: int
    width: int
    grid: int
    """Codes on a side of the picture."""
    caption_width: int = 0
    """Width of the features that a text is given by; 0 where a class is the condition."""
    codes: int = 16384
    classes: int = 1000
    caption_tokens: int = 120

    @property
    def inner(self) -> int:
        """Width inside the feed-forward layers: two thirds of four times the width, up to a multiple of 256."""
        return -(-int(8 * self.width / 3) // 256) * 256


class Gpt(nn.Module):
    """Under the keys of the published checkpoint; without dropout, which neither sampling nor its probabilities use."""

    shares_prefix = True
    """Its attention asks layers of the cache that have it; see `policy_opt.shared_prefix`."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = Caption(config) if config.caption_width else ClassLabel(config)
        self.tok_embeddings = nn.Embedding(config.codes, config.width)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.output = nn.Linear(config.width, config.codes, bias=False)
        self.gradient_checkpointing = False
        """Compute each layer again in the backward pass, in place of keeping what it made."""

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor | None = None, cache: Any = None) -> Tensor:
        """[B, S, D] states, normalised, of embeddings [B, S, D].

        Args:
            positions: [B, S] long: which code of the picture each is, row by row; negative for the condition.
            mask: [B, 1, S, filled] to add to the attention scores, or None where every row sees all before it.
            cache: transformers' `Cache`, or None.
        """
        turns = rotation(positions, self.config.grid, self.config.width // self.config.heads)
        hidden = embeds
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, turns, mask, cache, use_reentrant=False)
            else:
                hidden = layer(hidden, turns, mask, cache)
        made: Tensor = self.norm(hidden)
        return made


class ClassLabel(nn.Module):
    """Embeddings of classes; the one after the last stands for none."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.classes + 1, config.width)


class Caption(nn.Module):
    """What makes embeddings of a text's features, and the features that stand for no text."""

    uncond_embedding: Tensor

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.cap_proj = nn.Sequential()
        self.cap_proj.add_module("fc1", nn.Linear(config.caption_width, config.width, bias=False))
        self.cap_proj.add_module("act", nn.GELU("tanh"))
        self.cap_proj.add_module("fc2", nn.Linear(config.width, config.width, bias=False))
        none = torch.randn(config.caption_tokens, config.caption_width) * config.caption_width**-0.5
        self.register_buffer("uncond_embedding", none)


class Layer(nn.Module):
    """Attention and a gated feed-forward part, each added to what came in."""

    def __init__(self, config: GptConfig, index: int) -> None:
        super().__init__()
        self.attention = Attention(config, index)
        self.feed_forward = FeedForward(config)
        self.attention_norm, self.ffn_norm = RMSNorm(config.width), RMSNorm(config.width)

    def forward(self, hidden: Tensor, turns: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), turns, mask, cache)
        made: Tensor = hidden + self.feed_forward(self.ffn_norm(hidden))
        return made


class Attention(nn.Module):
    def __init__(self, config: GptConfig, index: int) -> None:
        super().__init__()
        self.heads, self.index = config.heads, index
        self.wqkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)

    def forward(self, hidden: Tensor, turns: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)) for part in self.wqkv(hidden).chunk(3, 2))  # [B, S, heads, size]
        q, k, v = (part.transpose(1, 2) for part in (turned(q, turns), turned(k, turns), v))
        if cache is not None:
            k, v = cache.update(k, v, self.index)
        if hasattr(k, "attended"):
            seen = k.attended(q, q.shape[3] ** -0.5)
        else:
            causal = mask is None and q.shape[2] > 1
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        made: Tensor = self.wo(seen.transpose(1, 2).flatten(2))
        return made


class FeedForward(nn.Module):
    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(config.width, config.inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = self.w2(F.silu(self.w1(hidden)) * self.w3(hidden))
        return made


class RMSNorm(nn.Module):
    """In float32, but for the weight: torch's own rounds later, which differs in half precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden.float(), hidden.shape[-1:], eps=1e-5).type_as(hidden) * self.weight


def rotation(positions: Tensor, grid: int, size: int) -> Tensor:
    """[B, S, 1, size / 2] complex64: how far each pair of numbers of a head is turned.

    The first half of them by the row of the code, the second by its column. The condition is not left unturned but
    multiplied by 0: its queries and keys vanish, so it is seen by where it stands in the order alone, every part of it
    with the same weight, and by what it says.
    """
    rates = 1 / 10000 ** (torch.arange(0, size // 2, 2, device=positions.device) / (size // 2))  # [size / 4]
    place = torch.stack([positions // grid, positions % grid], -1)  # [B, S, 2]
    angles = (place[..., None] * rates).flatten(2)  # [B, S, size / 2]
    length = (positions >= 0).float()[..., None].expand_as(angles)
    return torch.polar(length, angles)[:, :, None]


def turned(heads: Tensor, turns: Tensor) -> Tensor:
    """Queries or keys [B, S, heads, size] turned, computed in float32."""
    pairs = torch.view_as_complex(heads.float().unflatten(3, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns).flatten(3).type_as(heads)

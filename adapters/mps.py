"""MPS (Zhang et al., 2024), its overall score: CLIP-H whose picture attends to the words of a prompt that matter."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, silu

from rwk.adapters import pickscore
from rwk.adapters.blip_towers import randomised
from rwk.adapters.clip_towers import seeded
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.published import Origin, PublishedReward
from rwk.rewards.base import RewardSpec
from rwk.rewards.precision import wide

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""Words of the overall condition; a token of the prompt counts by how close it comes to one of them."""
HEAD = 64
"""Width of an attention head in the layers over CLIP."""


class SwiGlu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return silu(gate) * value


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | float = 0.0) -> Tensor:
    """[B, N, H * HEAD] for queries [B, N, H * HEAD] of many heads, and keys and values [B, M, HEAD] of one."""
    rows, length, _ = query.shape
    heads = query.view(rows, length, -1, HEAD).transpose(1, 2)  # [B, H, N, HEAD]
    weight = (heads @ key[:, None].transpose(2, 3) + mask).softmax(-1)  # [B, H, N, M]
    return (weight @ value[:, None]).transpose(1, 2).reshape(rows, length, -1)


class CrossAttention(nn.Module):
    """Attention of a picture's tokens to those of a text, with a feed-forward network beside it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * HEAD, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD, bias=False)
        self.to_out = nn.Linear(heads * HEAD, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 8 * width, bias=False), SwiGlu(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x)
        key, value = self.to_kv(text).chunk(2, dim=-1)
        out: Tensor = self.to_out(_attended(self.to_q(x) * HEAD**-0.5, key, value, mask)) + self.ff(x)
        return out


class SelfAttention(nn.Module):
    """Attention of a picture's tokens to each other, rotated by their places, with a feed-forward network beside it."""

    inv_freq: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.parts = (heads * HEAD, HEAD, HEAD, 8 * width)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * HEAD, width, bias=False)
        self.ff_out = nn.Sequential(SwiGlu(), nn.Linear(4 * width, width, bias=False))
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, HEAD, 2) / HEAD))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value, forth = self.fused_attn_ff_proj(self.norm(x)).split(self.parts, dim=-1)
        query = self.rotated(query.unflatten(2, (-1, HEAD))).flatten(2)
        key = self.rotated(key[:, :, None]).flatten(2)
        out: Tensor = self.attn_out(_attended(query * HEAD**-0.5, key, value)) + self.ff_out(forth)
        return out

    def rotated(self, x: Tensor) -> Tensor:
        """x [B, N, H, HEAD] with each pair of numbers half a head apart turned by its place times a frequency."""
        place = torch.arange(x.shape[1], device=x.device)  # the angles are float32 in half precision too
        angle = (place[:, None] * self.inv_freq).repeat(1, 2)[:, None]  # [N, 1, HEAD]
        first, second = x.chunk(2, dim=-1)
        return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()


class CrossModel(nn.Module):
    """Layers in which a picture's tokens read a text and then each other."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        pairs = [[CrossAttention(width, heads), SelfAttention(width, heads)] for _ in range(layers)]
        self.layers = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def forward(self, picture: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            cross, among = layer.children()
            picture = picture + cross(picture, text, mask)
            picture = picture + among(picture)
        return picture


class MpsNetwork(nn.Module):
    """A CLIP model of transformers, and the layers over it."""

    def __init__(self, clip: nn.Module, cross: nn.Module) -> None:
        super().__init__()
        self.model: Any = clip
        self.cross_model = cross

    def texts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Projected states [B, L, E] of every token, the filling ones too, and [B, E] of the first end of text."""
        out = self.model.text_model(ids)
        project = self.model.text_projection
        return project(out.last_hidden_state), project(out.pooler_output)

    def forward(self, pixels: Tensor, ids: Tensor, condition: Tensor, threshold: float) -> Tensor:
        """[B] scores of pixels [B, 3, size, size] for ids [B, L] under the condition [1, L]."""
        states, text = self.texts(ids)
        asked, _ = self.texts(condition)
        closeness = (states @ asked[0].T).amax(2)  # [B, L]
        closeness = closeness / closeness.amax(1, keepdim=True)
        mask = torch.zeros_like(closeness).masked_fill(closeness <= threshold, -math.inf)[:, None, None]
        picture = self.model.visual_projection(self.model.vision_model(pixels).last_hidden_state)
        seen = self.cross_model(picture, states, mask)[:, 0]
        cosine: Tensor = (normalize(wide(seen), dim=1) * normalize(wide(text), dim=1)).sum(1)
        scale: Tensor = self.model.logit_scale.exp()
        return scale * cosine


class Mps(PublishedReward):
    """MPS under its overall condition: `exp(scale) * cos(t, v)`, as the authors' evaluation scripts compute it.

    t is CLIP-H's text embedding. v is the first token of the picture after four layers that attend to the states of the
    prompt's tokens, all 77 of them with the filling, as far as they matter: a token is left out where its largest
    product with a token of the condition is at most `threshold` times that of the prompt's closest token. Scores of
    trained weights lie about 9.

    The authors take that largest product over the batch, so their score depends on the neighbours wherever more than
    one prompt is scored at once; here it is each prompt's own, which is what their scripts get, as they score one by
    one. They run in half precision, this in single. The vision tower's tokens come without its last norm.

    The authors publish a pickled module; this reads its tensors as imscore keeps them on the hub, and as
    `torch.save(module.state_dict(), ...)` writes them. `score_pixels` stands from `score` as far as float32 bicubic
    stands from Pillow's on 8 bits.
    """

    spec = RewardSpec(
        "mps.overall",
        "learned scale times cosine",
        -math.inf,
        math.inf,
        "MIT",
        "arXiv:2405.14705",
        differentiable=True,
    )
    origin = Origin("RE-N-Y/mpsv1", "model.safetensors", "MIT", 4420)
    preprocess = Preprocess(224, rounding="floor")
    drift = {"bfloat16": 4.7e-2}
    context = 77
    tolerance = 0.02
    threshold = 0.3
    """Share of the closest token's product from which on a token of the prompt is read."""

    @classmethod
    def build(cls) -> nn.Module:
        return MpsNetwork(pickscore.network(pickscore.HUGE), CrossModel(1024, 4, 16))

    @classmethod
    def family(cls) -> Hashable:
        return Mps

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {key.removeprefix("mps."): value for key, value in tensors.items() if not key.endswith("position_ids")}
        return {key.replace(".fn.", ".").replace("rotary_emb.", ""): value for key, value in named.items()}

    @classmethod
    def tiny(cls) -> Mps:
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        with seeded():
            vision = {**small, "patch_size": 14, "image_size": 28}
            clip = pickscore.network({"projection_dim": 32, "vision_config": vision, "text_config": small})
            network = MpsNetwork(clip, CrossModel(32, 2, 2))
        return cls.of(randomised(network), preprocess=Preprocess(28, rounding="floor"))

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        ids = self.tokens(prompts)
        scores: Tensor = self.network(pixels, ids, self.tokens([CONDITION]), self.threshold)
        return scores

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """[B, 77] ids, cut and filled up with the end of text."""
        tokenizer = pickscore.tokenizer()
        self.warn_of_cut(texts, [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]])
        read = tokenizer(list(texts), padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        ids: Tensor = read["input_ids"].to(self.device)
        return ids


class MpsLoose(Mps):
    """MPS under its overall condition with the threshold of 0.01 instead of 0.3.

    That is the threshold in the authors' `forward`, and so the one it was trained with as far as their code tells, and
    the one in imscore. Nearly every token of a prompt is read.
    """

    spec = RewardSpec(
        "mps.overall_t001",
        "learned scale times cosine",
        -math.inf,
        math.inf,
        "MIT",
        "arXiv:2405.14705",
        differentiable=True,
    )
    threshold = 0.01

"""SigLIP 2 NaFlex (Tschannen et al., 2025): pictures keep their shape, as a grid of up to 256 patches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rwk.adapters.clip_towers import seeded
from rwk.adapters.preprocess import HALF, Preprocess
from rwk.adapters.published import Origin
from rwk.adapters.siglip import SO400M, TINY, Siglip2, small_tokenizer
from rwk.rewards.base import Reward, RewardSpec


def network(shape: dict[str, int], places: int, patch: int, words: int) -> nn.Module:
    """SigLIP 2 for grids of patches of transformers, its weights random.

    Args:
        shape: of the layers of both towers, in the terms of transformers.
        places: patches of a square that have a place of their own; other grids have theirs interpolated.
        patch: side of a patch in pixels.
        words: pieces in the vocabulary.
    """
    from transformers import Siglip2Config, Siglip2Model

    ends = {"bos_token_id": None, "eos_token_id": 1}
    text = {**shape, **ends, "vocab_size": words, "projection_size": shape["hidden_size"]}
    return Siglip2Model(
        Siglip2Config(text_config=text, vision_config={**shape, "num_patches": places, "patch_size": patch})
    )


class Naflex(Siglip2):
    """SigLIP 2 NaFlex ViT-B/16: the formula and the prompts of `siglip2.b16_224`, for pictures that keep their shape.

    A picture is resized, bilinear, to whole patches of 16 by 16 pixels, at most 256 of them, its sides about in
    proportion; it is enlarged at most 100 times. transformers fills every grid up to 256 patches and masks what it
    filled in. Here pictures with the same grid go through the network together and nothing is filled up, which makes
    the same scores. `score_pixels` stands from `score` as far as float32 bilinear stands from Pillow's on 8 bits.
    """

    spec = RewardSpec(
        "siglip2.b16_naflex", "log-odds", -math.inf, math.inf, "Apache-2.0", "arXiv:2502.14786", differentiable=True
    )
    origin = Origin("google/siglip2-base-patch16-naflex", "model.safetensors", "Apache-2.0", 1501)
    drift = {"bfloat16": 0.1}
    preprocess = Preprocess(256, fit="patches", interpolation="bilinear", mean=HALF, std=HALF)
    tolerance = 0.05

    @classmethod
    def build(cls) -> nn.Module:
        places = (cls.preprocess.size // cls.preprocess.patch) ** 2
        return network(cls.shape, places, cls.preprocess.patch, cls.words)

    @classmethod
    def tiny(cls) -> Naflex:
        words = small_tokenizer(Reward.example_prompts, cls.pad)
        with seeded():
            made = network(TINY, 16, 8, len(words))
        return cls.of(made, preprocess=replace(cls.preprocess, size=32, patch=8), tokenizer=words)

    def image_features(self, pixels: Tensor) -> Tensor:
        towers: Any = self.network
        side = self.preprocess.patch
        grid = pixels.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [B, 3, down, side, across, side]
        shapes = pixels.new_tensor([grid.shape[2:5:2]] * len(pixels), dtype=torch.long)
        patches = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [B, down * across, side * side * 3]
        features: Tensor = towers.vision_model(patches, None, shapes).pooler_output
        return features


class NaflexLarge(Naflex):
    """SigLIP 2 NaFlex SoViT-400M/16; the formula and the traps of `siglip2.b16_naflex`."""

    spec = RewardSpec(
        "siglip2.so400m_16_naflex",
        "log-odds",
        -math.inf,
        math.inf,
        "Apache-2.0",
        "arXiv:2502.14786",
        differentiable=True,
    )
    origin = Origin("google/siglip2-so400m-patch16-naflex", "model.safetensors", "Apache-2.0", 4543)
    drift = {"bfloat16": 5.7e-2}
    shape = SO400M

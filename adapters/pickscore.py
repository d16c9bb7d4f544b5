"""PickScore (Kirstain et al., 2023): CLIP ViT-H/14 trained on which of two pictures people picked."""

from __future__ import annotations

import math
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rwk.adapters import clip_towers
from rwk.adapters.clip_towers import SMALL, TowersReward, bucketed, cosine, seeded, small
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.published import Origin
from rwk.rewards.base import RewardSpec

HUGE: dict[str, Any] = {
    "projection_dim": 1024,
    "vision_config": {
        "image_size": 224,
        "patch_size": 14,
        "num_hidden_layers": 32,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
    },
    "text_config": {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
    },
}
"""CLIP ViT-H/14 in the terms of transformers."""


@cache
def tokenizer() -> Any:
    """CLIP's tokenizer as transformers runs it, which neither mends text nor unescapes HTML.

    Its vocabulary is OpenAI's, so it is made of what open_clip ships. Curly quotes, ligatures or `&amp;` give other
    tokens than in open_clip.
    """
    from transformers import CLIPTokenizer

    pairs = clip_towers.tokenizer()
    marks = {pairs.sot_token_id: "<|startoftext|>", pairs.eot_token_id: "<|endoftext|>"}
    vocabulary = {marks.get(index, piece): index for piece, index in pairs.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(pairs.bpe_ranks))


def network(config: dict[str, Any]) -> nn.Module:
    """CLIP of transformers with the exact GELU, its weights random."""
    from transformers import CLIPConfig, CLIPModel

    towers = {name: {"hidden_act": "gelu", **config[name]} for name in ("vision_config", "text_config")}
    return CLIPModel(CLIPConfig(**{**config, **towers}))


class TransformersTowers(TowersReward):
    """Towers of transformers' `CLIPModel`, whose prompts are cut by leaving out what stands before the end of text."""

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return tokenizer()

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors less the position numbers that transformers wrote into files of its time."""
        return {key: value for key, value in tensors.items() if not key.endswith("position_ids")}

    def image_features(self, pixels: Tensor) -> Tensor:
        towers: Any = self.network
        features: Tensor = towers.visual_projection(towers.vision_model(pixel_values=pixels).pooler_output)
        return features

    def text_features(self, prompts: list[str]) -> Tensor:
        whole = self.tokenizer(prompts, verbose=False)["input_ids"]
        self.warn_of_cut(prompts, [len(ids) for ids in whole])
        read = [[*ids[: self.context - 1], ids[-1]] if len(ids) > self.context else ids for ids in whole]
        return bucketed(self._texts, read)

    def _texts(self, ids: list[list[int]]) -> Tensor:
        """[B, E] of ids that end with the end of text; it looks back only, so what fills a row up has no say."""
        rows = [torch.tensor(row, device=self.device) for row in ids]
        filled = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        towers: Any = self.network
        features: Tensor = towers.text_projection(towers.text_model(input_ids=filled).pooler_output)
        return features


class PickScore(TransformersTowers):
    """PickScore v1: `scale * cos(image, prompt)`, where the scale is part of the weights and about 100.

    A difference of two scores for one prompt is the log-odds that people pick the first. Scores lie around 18 to 24.
    Some trainers divide by 26; this is the authors' score as it stands.

    Pictures are cropped as transformers crops (the margin is rounded down), and prompts cut after 77 tokens. Half
    precision is in wide use for this model; here all is float32. `score_pixels` stands from `score` as far as float32
    bicubic from Pillow's on 8 bits.
    """

    spec = RewardSpec(
        "pickscore.v1",
        "scale times cosine (log-odds in a difference)",
        -math.inf,
        math.inf,
        "MIT",
        "arXiv:2305.01569",
        differentiable=True,
    )
    origin = Origin("yuvalkirstain/PickScore_v1", "model.safetensors", "MIT", 3944)
    preprocess = Preprocess(224, rounding="floor")
    tolerance = 0.1
    drift = {"bfloat16": 3.1e-2}

    @classmethod
    def build(cls) -> nn.Module:
        return network(HUGE)

    @classmethod
    def tiny(cls) -> PickScore:
        vision, text = SMALL["vision_cfg"], SMALL["text_cfg"]
        with seeded():
            made = network(
                {
                    "projection_dim": SMALL["embed_dim"],
                    "vision_config": {
                        "image_size": vision["image_size"],
                        "patch_size": vision["patch_size"],
                        **_layers(vision["width"]),
                    },
                    "text_config": _layers(text["width"]),
                }
            )
        return cls.of(made, preprocess=small(cls.preprocess))

    def score_features(self, image: Tensor, text: Tensor | None) -> Tensor:
        scale: Tensor = self.network.get_parameter("logit_scale").exp()
        return scale * cosine(image, text)


def _layers(width: int) -> dict[str, int]:
    return {
        "num_hidden_layers": 2,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 16,
    }

"""CLIPScore (Hessel et al., 2021): how near OpenAI's CLIP embeds a picture and its caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from rwk.adapters.clip_towers import OPENAI, OpenClipReward, TowersReward, cosine
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.published import Origin
from rwk.rewards.base import RewardSpec

MEASURED_ON = "the most of ViT-B/32, ViT-L/14 and ViT-H/14; that of another model may differ"
"""`precision_note` of formulas on any CLIP, whose `drift` it is of."""


def _spec(variant: str, unit: str, low: float, high: float) -> RewardSpec:
    return RewardSpec(f"clipscore.{variant}", unit, low, high, "MIT", "arXiv:2104.08718", differentiable=True)


class PublishedFormula(TowersReward):
    """The formula of the paper on any towers: `2.5 * max(cos(image, prefix + prompt), 0)`."""

    prefix: ClassVar[str] = "A photo depicts "
    """Stands before every prompt."""
    drift = {"bfloat16": 3e-3}
    precision_note = MEASURED_ON

    def texts(self, prompts: Sequence[str]) -> list[str]:
        return [self.prefix + prompt for prompt in prompts]

    def score_features(self, image: Tensor, text: Tensor | None) -> Tensor:
        return 2.5 * cosine(image, text).clamp(min=0)


class ClipScore(PublishedFormula, OpenClipReward):
    """CLIPScore as published: `2.5 * max(cos(image, "A photo depicts " + prompt), 0)`, by ViT-B/32.

    Scores lie around 0.6 to 0.9. Where the cosine is below 0 the score is flat and has no gradient;
    `clipscore.b32_cosine` goes on.

    The published numbers were computed in half precision on a GPU; here all is float32, as the authors' code runs on a
    CPU. OpenAI's networks were trained with an approximate GELU, which open_clip leaves out unless it is asked for.
    The prefix counts among the 77 tokens. `score_pixels` stands from `score` as far as float32 bicubic from Pillow's on
    8 bits.

    `clipscore.b32@PATH` takes OpenAI's file, open_clip's, or the file or folder of transformers. Other models have this
    formula as `open_clip.clipscore:MODEL` and `transformers.clipscore:FOLDER`.
    """

    spec = _spec("b32", "2.5 times cosine, 0 where negative", 0, 2.5)
    architecture = "ViT-B-32-quickgelu"
    origin = OPENAI[architecture]
    preprocess = Preprocess(224)
    tolerance = 0.0125
    drift = {"bfloat16": 3e-3, "float16": 1.9e-4}  # 2.5 times the cosine's
    precision_note = ""


class ClipScoreNoPrefix(ClipScore):
    """CLIPScore without the published prefix, as many ports compute it: `2.5 * max(cos(image, prompt), 0)`."""

    spec = _spec("b32_noprefix", "2.5 times cosine, 0 where negative", 0, 2.5)
    prefix = ""


class ClipCosine(ClipScoreNoPrefix):
    """`cos(image, prompt)` by ViT-B/32, neither prefixed, scaled nor cut off; torchmetrics' CLIPScore is 100 times it.

    That one crops as transformers does, though, and of a prompt of more than 77 tokens it loses the end of text.
    """

    spec = _spec("b32_cosine", "cosine", -1, 1)
    tolerance = 0.005
    drift = {"bfloat16": 1.2e-3, "float16": 7.5e-5}

    def score_features(self, image: Tensor, text: Tensor | None) -> Tensor:
        return cosine(image, text)


class ClipScoreLarge(ClipScore):
    """CLIPScore's formula, prefix and all, by ViT-L/14; the paper has ViT-B/32."""

    spec = _spec("l14", "2.5 times cosine, 0 where negative", 0, 2.5)
    architecture = "ViT-L-14-quickgelu"
    origin = OPENAI[architecture]
    drift = {"bfloat16": 1.9e-3, "float16": 1.8e-4}


class ClipScoreLargeNoPrefix(ClipScoreLarge):
    """CLIPScore's formula without the prefix, by ViT-L/14: `2.5 * max(cos(image, prompt), 0)`."""

    spec = _spec("l14_noprefix", "2.5 times cosine, 0 where negative", 0, 2.5)
    prefix = ""


class ClipCosineLarge(ClipCosine):
    """`cos(image, prompt)` by ViT-L/14, neither prefixed, scaled nor cut off; torchmetrics' default model."""

    spec = _spec("l14_cosine", "cosine", -1, 1)
    architecture = "ViT-L-14-quickgelu"
    origin = OPENAI[architecture]
    drift = {"bfloat16": 7.5e-4, "float16": 6.9e-5}


class ClipCosineHuge(ClipCosine):
    """`cos(image, prompt)` by LAION's ViT-H/14, whose GELU is exact; the reward of SimpleAR (Wang et al., 2025)."""

    spec = replace(_spec("h14_cosine", "cosine", -1, 1), source="arXiv:2504.11455")
    architecture = "ViT-H-14"
    origin = Origin("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "open_clip_model.safetensors", "MIT", 3944)
    drift = {"bfloat16": 7.9e-4}

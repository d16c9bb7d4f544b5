"""ImageReward (Xu et al., 2023): BLIP-large trained on rankings of pictures for one prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from rwk.adapters.blip_towers import BlipReward, Head
from rwk.adapters.published import Origin
from rwk.rewards.base import RewardSpec

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's output over the authors' test set; a score is in standard deviations from that mean."""


class ImageReward(BlipReward):
    """ImageReward v1.0: `(head(h) - 0.1672) / 1.0333`, where h is what BLIP makes of the prompt over the picture.

    h is the state of [CLS] after twelve layers that look at the picture. The head is five linear maps without anything
    between them, so the score is one affine function of h. Three in five pictures of Stable Diffusion 1.4 score within
    -1 and 1.

    The network reads 35 word pieces of a prompt; BLIP reads text in small letters without accents. `score_pixels`
    stands from `score` as far as float32 bicubic stands from Pillow's on 8 bits.
    """

    spec = RewardSpec(
        "imagereward.v1",
        "standard deviations over the authors' test set",
        -math.inf,
        math.inf,
        "Apache-2.0",
        "arXiv:2304.05977",
        differentiable=True,
    )
    origin = Origin("THUDM/ImageReward", "ImageReward.pt", "Apache-2.0; BLIP: BSD-3-Clause", 1790)
    context = 35
    drift = {"bfloat16": 5.7e-3}

    @classmethod
    def head(cls, width: int) -> nn.Module:
        return Head((0, 2, 4, 6, 7), (width, 1024, 128, 64, 16, 1), None)

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return (super().score_prepared(pixels, prompts) - MEAN) / STD

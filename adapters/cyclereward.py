"""CycleReward (Bahng et al., 2025): BLIP-large trained on how well a picture or a text can be got back."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from rwk.adapters.blip_towers import BlipReward, Head
from rwk.adapters.published import Origin
from rwk.adapters.released import released
from rwk.rewards.base import RewardSpec

RELEASE = "https://github.com/hjbahng/cyclereward/releases/download/v1.0.0"


def _origin(variant: str) -> Origin:
    return Origin("github.com/hjbahng/cyclereward", f"CycleReward-{variant}.pth", "MIT; BLIP: BSD-3-Clause", 1790)


def _spec(variant: str) -> RewardSpec:
    unit = "log-odds in a difference"
    return RewardSpec(
        f"cyclereward.{variant}", unit, -math.inf, math.inf, "MIT", "arXiv:2506.02095", differentiable=True
    )


class CycleCombo(BlipReward):
    """CycleReward-Combo: `head(h)`, where h is what BLIP makes of the text over the picture.

    h is the state of [CLS] after twelve layers that look at the picture; the head is five linear maps with GELU between
    them. Trained on pairs of pictures for a text and on pairs of texts for a picture; the authors recommend this one.
    The file is that of their release 1.0.0 on GitHub.

    The network reads 128 word pieces, so that long captions fit. The authors' loader fetches BLIP's pretraining too and
    leaves out keys that do not fit; here the file must fit whole. Preprocessing is that of ImageReward.
    """

    spec = _spec("combo")
    origin = _origin("Combo")
    drift = {"bfloat16": 4.8e-4}
    context = 128

    def __init__(
        self, *, weights: str | Path | None = None, tokenizer: str | Path | None = None, device: str = "cpu"
    ) -> None:
        """
        Args:
            weights: the published file, or a folder that holds it; by default it comes from the authors' release.
            tokenizer: hub repository or folder of BERT's uncased vocabulary; by default see `vocabulary`.
            device: where the network runs.
        """
        if weights is None:
            weights = released(self.spec.name, f"{RELEASE}/{self.origin.file}", self.origin.megabytes)
        super().__init__(weights=weights, tokenizer=tokenizer, device=device)

    @classmethod
    def head(cls, width: int) -> nn.Module:
        return Head((0, 2, 4, 6, 8), (width, 1024, 128, 64, 16, 1), nn.GELU)


class CycleT2I(CycleCombo):
    """CycleReward-T2I: the network of CycleReward-Combo, trained on pairs of pictures for a text alone."""

    spec = _spec("t2i")
    origin = _origin("T2I")


class CycleI2T(CycleCombo):
    """CycleReward-I2T: the network of CycleReward-Combo, trained on pairs of texts for a picture alone."""

    spec = _spec("i2t")
    origin = _origin("I2T")

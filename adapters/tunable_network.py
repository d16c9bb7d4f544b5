"""How a reward with a network, one preprocessing and `score_prepared` is trained further."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters.preprocess import Preprocess
from rwk.rewards.base import PixelReward
from rwk.rewards.tunable import HeadKind, ScaledHead, Tunable, own_head


class TunableNetwork(Tunable, PixelReward):
    """A base whose one feature is its own score, so that there is no head to train but a scale.

    A subclass that has a head gives it away in `take_head`, and makes the states that it saw in `features`.
    """

    network: nn.Module
    preprocess: ClassVar[Preprocess]

    def trunk(self) -> nn.Module:
        return self.network

    def take_head(self, kind: HeadKind, *, probe: bool) -> nn.Module:
        own_head(self.spec.name, kind)
        return ScaledHead(nn.Identity())

    def prepare(self, image: Image.Image) -> Tensor | str:
        return self.preprocess.refusal(image) or kept(self.preprocess, self.preprocess.exact([image])[0])

    def prepared(self, ready: Sequence[Tensor]) -> Tensor:
        return normalised(self.preprocess, torch.stack(list(ready)).to(self.device))

    def prepared_pixels(self, pixels: Tensor) -> Tensor:
        return self.preprocess.differentiable(pixels)

    def features(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:
        scores: Tensor = self.score_prepared(prepared, prompts)  # type: ignore[attr-defined]
        return scores.float()[:, None]


def kept(preprocess: Preprocess, pixels: Tensor) -> Tensor:
    """Normalised pixels [..., 3, H, W] as whole grey levels where that is what they were made of, else as they are."""
    if preprocess.backend != "pil":
        return pixels
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    return ((pixels * std + mean) * 255).round().to(torch.uint8)


def normalised(preprocess: Preprocess, pixels: Tensor) -> Tensor:
    """The pixels that `kept` was given."""
    if preprocess.backend != "pil":
        return pixels
    mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (preprocess.mean, preprocess.std))
    return (pixels.float() / 255 - mean) / std

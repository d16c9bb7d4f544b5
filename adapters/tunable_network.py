"""How a reward with a network, one preprocessing and `score_prepared` is trained further."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from rwk.adapters.preprocess import Preprocess
from rwk.rewards.staged import PreparedReward
from rwk.rewards.tunable import HeadKind, ScaledHead, Tunable, own_head


class TunableNetwork(PreparedReward, Tunable):
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

    def prepared(self, ready: Sequence[Tensor]) -> Tensor:
        return self.preprocess.normalised(torch.stack(list(ready)).to(self.device))

    def prepared_pixels(self, pixels: Tensor) -> Tensor:
        return self.preprocess.differentiable(pixels)

    def features(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:
        scores: Tensor = self.score_prepared(prepared, prompts)  # type: ignore[attr-defined]
        return scores.float()[:, None]

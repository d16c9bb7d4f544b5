"""Margins of pairs under a reward in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rwk.rewards.trainable import Trainable


class Margin(nn.Module):
    """Margins of pairs; what accelerate wraps, so that gradients are averaged over processes."""

    def __init__(self, reward: Trainable, *, cached: bool, autocast: bool) -> None:
        super().__init__()
        self.module = reward.module
        self.reward, self.cached, self.autocast = reward, cached, autocast

    def forward(self, inputs: Any, prompts: Sequence[str]) -> Tensor:
        """[B] margins of [2B] features where they are cached, else of [2B] prepared images; first ones first."""
        features = inputs if self.cached else self.features(inputs, prompts)
        with torch.autocast(features.device.type, enabled=False):  # of a launcher: bfloat16 would round the margins
            first, second = self.reward.head(features).chunk(2)
        return first - second

    def features(self, prepared: Any, prompts: Sequence[str]) -> Tensor:
        with torch.autocast(self.reward.device.type, torch.bfloat16, enabled=self.autocast):
            return self.reward.features(prepared, [*prompts, *prompts]).float()

    def freeze_idle(self, inputs: Any, prompts: Sequence[str]) -> None:
        """Freezes what has no part in the margin of a pair, such as a scale that the head has now.

        Several processes would wait for its gradient, and a saved reward would hold it.

        Raises:
            ValueError: where the margin has no gradient at all.
        """
        margin = self(inputs, prompts)
        if not margin.requires_grad:
            name = self.reward.spec.name
            raise ValueError(f"{name} is no differentiable function of its weights; take another base.")
        margin.sum().backward()
        for parameter in self.module.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

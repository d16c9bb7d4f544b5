"""What a reward with published weights gives, so that preferences can move it: its network, its inputs, its head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

HeadKind = Literal["own", "likelihood", "scalar"]
"""What makes a score of a network's states; a reward that is no judge has its own alone."""


class ScaledHead(nn.Module):
    """[B] first outputs of a part, times a learned scale; the part may be the identity, of features [B, 1]."""

    def __init__(self, part: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.part = part
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def rescale(self, factor: float) -> None:
        """Multiplies every score."""
        self.log_scale.data.add_(torch.tensor(factor).log())

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.part(features)[:, 0] * self.log_scale.exp()
        return scores


class Tunable(ABC):
    """A reward that can be the base of training. A subclass writes all of this but `refusal`.

    What is trained are log-odds, `head(features)`: of two images of one prompt the difference is how sure the reward is
    that people prefer the first. `rewards.tuned.Tuned` holds the pair, trains it and saves what training moved.
    """

    @abstractmethod
    def trunk(self) -> nn.Module:
        """The network, without what `take_head` took out of it."""

    @abstractmethod
    def take_head(self, kind: HeadKind, *, probe: bool) -> nn.Module:
        """What makes [B] log-odds of features [B, D], with `rescale(factor)`; called once, before `features`.

        Args:
            kind: which head.
            probe: whether the head alone will be trained, so that it should have more to train than a scale.

        Raises:
            ValueError: where there is no such head.
        """

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor | str:
        """An RGB image as it is kept between two passes, uint8 or float32 of any shape; or why it gets no score."""

    @abstractmethod
    def prepared(self, ready: Sequence[Tensor]) -> Any:
        """What `features` takes, of a batch of what `prepare` made."""

    @abstractmethod
    def features(self, prepared: Any, prompts: Sequence[str]) -> Tensor:
        """[B, D] float32, with gradient, what the head sees of images and their prompts."""

    @abstractmethod
    def prepared_pixels(self, pixels: Tensor) -> Any:
        """What `features` takes, with gradient, of pixels [B, 3, H, W] in 0..1."""

    def refusal(self, prompt: str) -> str:
        """Why a prompt gets no score, or ""."""
        return ""


def own_head(name: str, kind: HeadKind) -> None:
    """Raises ValueError where a reward that is no judge is asked for a judge's head."""
    if kind != "own":
        raise ValueError(f"{name} has one head, got --head {kind}, which is for judges; leave it out.")

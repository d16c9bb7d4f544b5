"""Features of images by the network of a reward, and how far an image lies from others in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor

from rwk.calibration.pairs import Floats
from rwk.rewards.base import to_rgb

NEIGHBOURS = 10


@runtime_checkable
class Embedding(Protocol):
    """A reward that gives features of images; `TrainableReward` and published rewards with an image tower do."""

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """[B, D] features of RGB images alone, without gradient."""


def embedded(reward: Embedding, images: Sequence[Image.Image], *, batch_size: int) -> Floats:
    """[N, D] features of images of any mode."""
    parts = [
        reward.embed([to_rgb(image) for image in images[start : start + batch_size]]).double().cpu().numpy()
        for start in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)


def mahalanobis(cloud: Floats, features: Floats) -> Floats:
    """[N] Mahalanobis distance of features [N, D] from a cloud [M, D], its covariance shrunk after Ledoit and Wolf."""
    from sklearn.covariance import LedoitWolf

    found: Floats = np.sqrt(LedoitWolf().fit(cloud).mahalanobis(features))
    return found


def neighbour_distance(cloud: Floats, features: Floats, *, count: int = NEIGHBOURS) -> Floats:
    """[N] distance of features [N, D] to the `count`-th nearest of a cloud [M, D], all scaled to length 1."""
    one, other = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (features, cloud))
    near = np.sort(one @ other.T, axis=1)[:, ::-1]  # cosines
    found: Floats = np.sqrt(np.maximum(2 - 2 * near[:, min(count, len(cloud)) - 1], 0))
    return found

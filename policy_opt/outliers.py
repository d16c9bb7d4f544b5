"""How many images lie outside the cloud of those that a reward was used to: a sign of over-optimisation without gold.

After InfoRM (Miao et al. 2025, arXiv:2510.13694): the squared Mahalanobis distance of a reward's features to their
cloud under the policy as it began, and the share beyond the 0.99 quantile of chi-square. The covariance is shrunk after
Ledoit and Wolf (2004), which makes distances of few samples in many dimensions far smaller than chi-square of so many
degrees has them: of 256 images and the 128 features of `shapes.clip` 47 in the mean, and none beyond the quantile even
at twice the temperature. So scale and degrees of freedom are those of the cloud's own distances, each measured without
its fold (Satterthwaite 1946).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rwk.calibration.embedding import Embedding
from rwk.calibration.pairs import Floats
from rwk.rewards.base import Reward

QUANTILE = 0.99
FOLDS = 4
_FEWEST = 2 * FOLDS
_AT_ONCE = 64
"""Images that go through a network at once."""


def embedding(rewards: Sequence[Reward], images: Sequence[Image.Image]) -> Tensor | None:
    """[B, D] what the first of these rewards, or of their parts, that has features sees in images; None where none."""
    for reward in rewards:
        for one in (reward, *reward.parts().values()):
            if isinstance(one, Embedding):
                found = [one.embed(images[start : start + _AT_ONCE]) for start in range(0, len(images), _AT_ONCE)]
                return torch.cat(found).float().cpu()
    return None


def outlier_share(cloud: Any, samples: Any) -> float:
    """Share of the samples [M, D] that lie beyond 99 % of what the cloud [N, D] is like; NaN where N is below 8.

    A row of the cloud belongs to the fold of its number modulo 4, so rows of one prompt should be adjacent.
    """
    base, seen = np.asarray(cloud, np.float64), np.asarray(samples, np.float64)
    if len(base) < _FEWEST:
        return math.nan
    fold = np.arange(len(base)) % FOLDS
    own = np.concatenate([distances(base[fold != k], base[fold == k]) for k in range(FOLDS)])
    return float((distances(base, seen) > _threshold(own)).mean())


def distances(cloud: Floats, samples: Floats) -> Floats:
    """[M] squared Mahalanobis distances of samples [M, D] to a cloud [N, D]."""
    from sklearn.covariance import LedoitWolf

    found: Floats = LedoitWolf().fit(cloud).mahalanobis(samples)
    return found


def _threshold(own: Floats) -> float:
    """The 0.99 quantile of the chi-square, scaled, that has the mean and the variance of these distances."""
    from scipy.stats import chi2

    mean, variance = own.mean(), own.var()
    if not variance > 0:
        return float(mean)
    scale = variance / (2 * mean)
    return float(scale * chi2.ppf(QUANTILE, mean / scale))

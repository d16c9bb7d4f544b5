"""Draws with their scores, which may be computed while the next images are drawn.

What is overlapped: the rewards score the images of one draw, on a thread of their own, while the generator draws and
decodes the next of the same update or round. Nothing of the algorithm changes. No image is drawn by older weights than
it would be, each reward is asked for the same images in the same order and by one thread, and at the last draw its
scores are waited for. So there is something to gain where a reward works elsewhere than the generator: behind `rwk
serve`, on another device, or on processor cores that the generator leaves free; and where there are several draws.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from rwk.policy_opt.advantage import Weighted, score_all
from rwk.policy_opt.generator import Rollout


class Scored(NamedTuple):
    """A draw and what the rewards say of it."""

    rollout: Rollout
    images: list[Image.Image]
    scores: Tensor
    """[B, R] as in `score_all`."""
    waited: float
    """Seconds that were spent on nothing else than its scores."""


def scored(
    drawn: Iterable[tuple[Rollout, list[Image.Image]]], rewards: Sequence[Weighted], *, meanwhile: bool
) -> Iterator[Scored]:
    """Each draw with its scores, in order.

    Args:
        drawn: draws when it is asked for the next.
        meanwhile: ask it for the next while the one before is scored.
    """
    behind = 1 if meanwhile else 0
    with ThreadPoolExecutor(1, "rewards") as pool:
        held: deque[tuple[Rollout, list[Image.Image], Future[Tensor]]] = deque()
        for rollout, images in drawn:
            held.append((rollout, images, pool.submit(score_all, rewards, images, rollout.prompts)))
            while len(held) > behind:
                yield _waited(*held.popleft())
        while held:
            yield _waited(*held.popleft())


def _waited(rollout: Rollout, images: list[Image.Image], coming: Future[Tensor]) -> Scored:
    began = time.perf_counter()
    return Scored(rollout, images, coming.result(), time.perf_counter() - began)

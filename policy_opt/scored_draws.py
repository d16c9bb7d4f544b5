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

import torch
from torch import Tensor

from rwk.policy_opt.advantage import Columns, Weighted, score_all
from rwk.policy_opt.generator import Rollout


class Scored(NamedTuple):
    """A draw and what the rewards say of it."""

    rollout: Rollout
    levels: Tensor
    """[B, 3, H, W] uint8, its images."""
    scores: Tensor
    """[B, R] as in `Columns`."""
    orders: Tensor
    """[B, J, 2] likewise."""
    waited: float
    """Seconds that were spent on nothing else than its scores."""

    @staticmethod
    def joined(parts: Sequence[Scored]) -> Scored:
        """Parts of a draw in one."""
        return Scored(
            Rollout.joined([part.rollout for part in parts]),
            torch.cat([part.levels for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.orders for part in parts]),
            sum(part.waited for part in parts),
        )


def scored(
    drawn: Iterable[tuple[Rollout, Tensor]],
    rewards: Sequence[Weighted],
    *,
    meanwhile: bool,
    seed: int = 0,
    from_pixels: bool = False,
) -> Iterator[Scored]:
    """Each draw with its scores, in order.

    Args:
        drawn: draws when it is asked for the next, and gives its images as 8-bit levels [B, 3, H, W].
        meanwhile: ask it for the next while the one before is scored.
        seed: as in `score_all`.
        from_pixels: likewise.
    """
    behind = 1 if meanwhile else 0
    with ThreadPoolExecutor(1, "rewards") as pool:
        held: deque[tuple[Rollout, Tensor, Future[Columns]]] = deque()
        for rollout, levels in drawn:
            asked = (rewards, levels, rollout.prompts, rollout.group)
            coming = pool.submit(score_all, *asked, seed=seed, from_pixels=from_pixels)
            held.append((rollout, levels, coming))
            while len(held) > behind:
                yield _waited(*held.popleft())
        while held:
            yield _waited(*held.popleft())


def _waited(rollout: Rollout, levels: Tensor, coming: Future[Columns]) -> Scored:
    began = time.perf_counter()
    found = coming.result()
    return Scored(rollout, levels, found.scores, found.orders, time.perf_counter() - began)

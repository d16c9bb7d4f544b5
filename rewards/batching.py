"""One thread that scores what many threads ask for, in batches that they share."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import torch
from PIL import Image

from rwk.rewards.base import Reward, Scores, check_prompts
from rwk.rewards.errors import RunFailed


class _Ask:
    """What one caller asked for, and the scores that it has so far."""

    def __init__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
        self.images, self.prompts = list(images), list(prompts)
        self.at = time.monotonic()
        self.answer: Future[Scores] = Future()
        self._values = torch.full([len(images)], torch.nan)
        self._notes = [""] * len(images)
        self._left = len(images)

    def put(self, index: int, value: float, note: str) -> None:
        self._values[index], self._notes[index] = value, note
        self._left -= 1
        if not self._left:
            self.answer.set_result(Scores(self._values, self._notes))


_Item = tuple[_Ask, int]
"""One image: what it belongs to, and its place there."""


class Batcher:
    """Makes a reward safe to be asked by many threads at once, and fills its batches with what they ask.

    Images are scored in the order in which they came. A batch is scored when it is full, or when its first image has
    waited for `max_wait` seconds. Where a batch fails, what each caller asked is scored by itself, so that one caller's
    image cannot take the scores of the others with it.
    """

    def __init__(self, reward: Reward, *, max_batch: int = 16, max_wait: float = 0.005) -> None:
        self.reward = reward
        self._max_batch, self._max_wait = max_batch, max_wait
        self._waiting: collections.deque[_Item] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name=f"scores {reward.spec.name}", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """Images that are not yet in a batch."""
        return len(self._waiting)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str] = ()) -> Scores:
        """What `Reward.score` gives, once it is known.

        Raises:
            ValueError: when the number of prompts does not fit.
            RunFailed: when the reward fails, or when this was closed.
        """
        check_prompts(self.reward.spec, len(images), len(prompts))
        if not images:
            return Scores(torch.zeros(0), [])
        ask = _Ask(images, prompts)
        with self._changed:
            if self._closed:
                raise RunFailed(f"{self.reward.spec.name} takes no more images, got {len(images)}; it was closed.")
            self._waiting.extend((ask, index) for index in range(len(images)))
            self._changed.notify()
        return ask.answer.result()

    def close(self) -> None:
        """Scores what was asked for, takes no more, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while batch := self._next():
            self._answer([item for item in batch if not item[0].answer.done()])  # done is what failed before
            del batch  # or its images would be held while the next are awaited

    def _next(self) -> list[_Item]:
        """The images of the next batch, all of them with prompts or all without; none when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            patience = self._waiting[0][0].at + self._max_wait - time.monotonic()
            self._changed.wait_for(lambda: len(self._waiting) >= self._max_batch or self._closed, max(0, patience))
            batch = [self._waiting.popleft()]
            prompted = bool(batch[0][0].prompts)
            while self._waiting and len(batch) < self._max_batch and bool(self._waiting[0][0].prompts) is prompted:
                batch.append(self._waiting.popleft())
            return batch

    def _answer(self, batch: list[_Item]) -> None:
        """Scores the batch and gives every caller its own."""
        if not batch:
            return
        images = [ask.images[index] for ask, index in batch]
        prompts = [ask.prompts[index] for ask, index in batch if ask.prompts]
        try:
            values, notes = self.reward.score(images, prompts, batch_size=len(images))
        except Exception as error:
            asks = list(dict.fromkeys(ask for ask, _ in batch))
            if len(asks) == 1:
                failure = RunFailed(f"{self.reward.spec.name} failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
                asks[0].answer.set_exception(failure)
                return
            for ask in asks:
                self._answer([item for item in batch if item[0] is ask])
            return
        for (ask, index), value, note in zip(batch, values.tolist(), notes, strict=True):
            ask.put(index, value, note)

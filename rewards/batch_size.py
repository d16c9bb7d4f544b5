"""How many images go through a network at once: found while scoring, and less where the memory does not hold them."""

from __future__ import annotations

import itertools

FIRST, MOST = 8, 256
GAIN = 1.1
"""Times as many images per second that twice the images must bring to be kept."""


class BatchSize:
    """The size of the next batch.

    Without a size of one's own it is doubled for as long as that scores more images per second; the first batch, in
    which libraries warm up, is not counted. It never grows again after the memory ran out.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.now = fixed or FIRST
        self._searching = fixed is None
        self._batches = itertools.count()
        self._best = 0.0

    def took(self, images: int, seconds: float) -> None:
        """Learns how long a batch took; only whole ones count."""
        if not self._searching or images < self.now or not next(self._batches):
            return
        speed = images / max(seconds, 1e-9)
        if speed < GAIN * self._best:
            self.now //= 2
            self._searching = False
            return
        self._best = speed
        self.now = min(2 * self.now, MOST)
        self._searching = self.now < MOST

    def ran_out(self, images: int) -> None:
        """Learns that the memory did not hold that many images."""
        self.now = max(images // 2, 1)
        self._searching = False

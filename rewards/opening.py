"""What is done to an image file before a network sees it: looked up in the cache, else decoded and prepared."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from rwk.rewards.base import SEEN, Reward
from rwk.rewards.cache import Cache, Prints, digest_of, key_of
from rwk.rewards.errors import RunFailed
from rwk.rewards.images import views_of
from rwk.rewards.manifest import Item, prompt_of
from rwk.rewards.staged import EmbeddedReward, PreparedReward, Ready


@dataclass(eq=False)
class Opened:
    """An image on its way: what it was made into so far, each thing once for all rewards."""

    item: Item
    prompt: str
    note: str = ""
    """Why it cannot be read, or ""."""
    digest: str = ""
    """Hash of the file, where there is a cache."""
    image: Image.Image | None = None
    """Upright RGB, where a reward takes it as it is."""
    ready: dict[Hashable, Ready] = field(default_factory=dict)
    """Prepared for networks, by preparation."""
    made: dict[Hashable, Tensor] = field(default_factory=dict)
    """[E] embeddings and [1] scores, by `stage`."""


def stage(reward: Reward) -> Hashable:
    """What an embedding or a score of an image is of; equal for rewards that embed an image alike."""
    return (reward.tower, reward.preparation) if isinstance(reward, EmbeddedReward) else reward


def key_of_image(reward: Reward, opened: Opened, prints: Prints) -> bytes | None:
    """The key of what the cache keeps of an image: its embedding or its score; None where that is not kept."""
    made = prints.of_images(reward)
    if made is None or not opened.digest:
        return None
    return key_of(made, opened.digest, "" if isinstance(reward, EmbeddedReward) else opened.prompt)


class Opener:
    """Opens items for rewards; `ahead` does so in threads."""

    def __init__(self, rewards: Mapping[str, Reward], cache: Cache | None, prints: Prints) -> None:
        """
        Args:
            rewards: without parts, by name.
            cache: where embeddings and scores are looked up.
            prints: names what is looked up.
        """
        self._rewards = rewards
        self._cache, self._prints = cache, prints
        self.prepares_all = all(isinstance(reward, PreparedReward) for reward in rewards.values())
        """Whether no reward takes whole images, so that opened items are small."""

    def ahead(self, items: Iterable[Item], pool: ThreadPoolExecutor, window: Callable[[], int]) -> Iterator[Opened]:
        """The items opened, in order, at most `window()` of them before they are asked for."""
        waiting: collections.deque[Future[Opened]] = collections.deque()
        rest = iter(items)
        while True:
            free = max(window() - len(waiting), 0)
            waiting.extend(pool.submit(self.open, item) for item in itertools.islice(rest, free))
            if not waiting:
                return
            yield waiting.popleft().result()

    def open(self, item: Item) -> Opened:
        """The item as far as threads can bring it."""
        try:
            opened = Opened(item, prompt_of(item))
        except ValueError as error:  # no reward may score it by a prompt that nobody wrote
            return Opened(item, "", note=str(error).removesuffix("."))
        if self._cache:
            opened.digest = digest_of(item.image)
            self._look_up(opened, self._cache)
        todo = {
            name: reward
            for name, reward in self._rewards.items()
            if stage(reward) not in opened.made and (opened.prompt or not reward.spec.needs_prompt)
        }
        if not todo and opened.made:
            return opened
        views = {reward.view if isinstance(reward, PreparedReward) else SEEN for reward in todo.values()} or {SEEN}
        images, opened.note = views_of(item.image, views, _least_size(list(todo.values())))
        if opened.note:
            return opened
        for name, reward in todo.items():
            if not isinstance(reward, PreparedReward):
                opened.image = images[SEEN]
            elif reward.preparation not in opened.ready:
                try:
                    opened.ready[reward.preparation] = reward.prepare(images[reward.view])
                except Exception as error:
                    why = f"{type(error).__name__}: {error}"
                    raise RunFailed(f"{name} failed to prepare {item.image}: {why}") from error
        return opened

    def _look_up(self, opened: Opened, cache: Cache) -> None:
        for reward in self._rewards.values():
            what = stage(reward)
            key = None if what in opened.made else key_of_image(reward, opened, self._prints)
            if key and (found := cache.get(key)) is not None:
                opened.made[what] = found


def _least_size(rewards: Sequence[Reward]) -> Callable[[int, int], tuple[int, int] | None]:
    """The size down to which a decoder may shrink an image of some size, so that it is enough for all rewards."""

    def least(width: int, height: int) -> tuple[int, int] | None:
        sizes = [each.least_size(width, height) if isinstance(each, PreparedReward) else None for each in rewards]
        known = [size for size in sizes if size]
        if not known or len(known) < len(sizes):
            return None
        return max(wide for wide, _ in known), max(high for _, high in known)

    return least

"""Scoring of files: each is decoded once, and few are held at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rwk.rewards import opening, scoring
from rwk.rewards.base import Reward, RewardSpec
from rwk.rewards.images import views_of
from rwk.rewards.manifest import Item, gather
from rwk.rewards.scoring import Means, score_items


class Wide(Reward):
    """The width of the image."""

    spec = RewardSpec("wide", "pixels", 0, 255, "n/a", "here", needs_prompt=False)

    @classmethod
    def tiny(cls) -> Wide:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        return torch.tensor([float(image.width) for image in images])


def draw(folder: Path, widths: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for width in widths:
        Image.new("RGB", (width, 5), "red").save(folder / f"{width:03d}.png")


def test_rewards_see_each_image_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rewards over ten images decode ten times."""
    draw(tmp_path, range(10, 20))
    opened: list[Path] = []

    def counted(path: Path, views: Any, least: Any) -> Any:
        opened.append(path)
        return views_of(path, views, least)

    monkeypatch.setattr(opening, "views_of", counted)
    rewards = {name: Wide() for name in ("a", "b", "c")}
    items = gather([str(tmp_path)]).items
    rows = [row for batch in score_items(items, rewards, Means(batch_size=4)) for row in batch]
    assert sorted(opened) == [item.image for item in items]
    assert [list(row.scores) for row in rows] == [["a", "b", "c"]] * 10


def test_memory_does_not_grow_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many the images, no more than a batch and the window of the readers are decoded at a time."""
    draw(tmp_path, range(10, 13))
    paths = sorted(tmp_path.iterdir())
    alive: set[int] = set()
    most = 0

    def watched(path: Path, views: Any, least: Any) -> Any:
        nonlocal most
        seen, note = views_of(path, views, least)
        (image,) = seen.values()
        key = id(image)
        alive.add(key)
        weakref.finalize(image, alive.discard, key)
        most = max(most, len(alive))
        return seen, note

    monkeypatch.setattr(opening, "views_of", watched)
    drawn = 0

    def items() -> Iterator[Item]:
        nonlocal drawn
        for index in range(500):
            drawn += 1
            yield Item(paths[index % 3], None)

    done = 0
    for rows in score_items(items(), {"wide": Wide()}, Means(batch_size=8, workers=3)):
        done += len(rows)
        assert drawn - done <= 8 + 6
    assert done == 500
    assert 8 <= most <= 8 + 6
    assert len(alive) == 0


def test_large_images_end_a_batch_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch holds no more pixels than the limit and one image, so that large photographs do not fill the memory."""
    draw(tmp_path, range(10, 20))
    monkeypatch.setattr(scoring, "PIXELS", 100)
    batches = [len(rows) for rows in score_items(gather([str(tmp_path)]).items, {"wide": Wide()})]
    assert batches == [2] * 5

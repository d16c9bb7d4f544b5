"""The batch size: found by time, lowered where memory runs out, and without a say in the scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from rwk.rewards.base import Reward, RewardSpec
from rwk.rewards.batch_size import FIRST, MOST, BatchSize
from rwk.rewards.errors import RunFailed
from rwk.rewards.manifest import gather
from rwk.rewards.scoring import Means, score_items


class Holds(Reward):
    """The width of the image, of so many images at once and no more."""

    spec = RewardSpec("holds", "pixels", 0, 255, "n/a", "here", needs_prompt=False)

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.asked: list[int] = []

    @classmethod
    def tiny(cls) -> Holds:
        return cls(4)

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        self.asked.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        return torch.tensor([float(image.width) for image in images])


def draw(folder: Path, widths: range) -> list[float]:
    for width in widths:
        Image.new("RGB", (width, 5), "red").save(folder / f"{width:03d}.png")
    return [float(width) for width in widths]


@pytest.mark.parametrize("fixed", [None, 8])
def test_memory_that_runs_out_halves_the_batch(tmp_path: Path, fixed: int | None) -> None:
    """A reward that holds 3 images at once is asked for 8, 4 and 2, then for 2 each time; no row is lost or moved."""
    widths = draw(tmp_path, range(10, 40))
    reward = Holds(3)
    batches = list(score_items(gather([str(tmp_path)]).items, {"holds": reward}, Means(batch_size=fixed)))
    assert [row.scores["holds"] for rows in batches for row in rows] == widths
    assert reward.asked[:3] == [8, 4, 2]
    assert reward.asked.count(8) == 1
    assert [len(rows) for rows in batches] == [8] + [2] * 11


def test_one_image_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """Where even one image is too much the run fails and says which."""
    draw(tmp_path, range(10, 12))
    with pytest.raises(RunFailed, match=r"010.png alone does not fit into the memory: 1 images"):
        list(score_items(gather([str(tmp_path)]).items, {"holds": Holds(0)}))


def grown(seconds_of: dict[int, float], batches: int = 12) -> list[int]:
    """The sizes of batches which take so many seconds an image at every size."""
    size = BatchSize()
    sizes = []
    for _ in range(batches):
        sizes.append(size.now)
        size.took(size.now, size.now * seconds_of[size.now])
    return sizes


def test_the_size_grows_while_that_is_faster() -> None:
    """It doubles until twice the images bring less than a tenth more a second, and stays at the size before."""
    assert FIRST == 8
    assert grown({8: 1.0, 16: 0.6, 32: 0.5, 64: 0.49})[:7] == [8, 8, 16, 32, 64, 32, 32]
    assert grown({8: 1.0, 16: 1.2})[:5] == [8, 8, 16, 8, 8]
    assert grown({2**k: 0.5**k for k in range(3, 12)})[-1] == MOST


def test_a_size_of_ones_own_stays() -> None:
    """Given a size nothing is searched for; short batches tell nothing."""
    size = BatchSize(5)
    for _ in range(4):
        size.took(5, 0.001)
    assert size.now == 5
    searching = BatchSize()
    for _ in range(4):
        searching.took(3, 0.001)
    assert searching.now == FIRST


def test_memory_ends_the_search() -> None:
    """After the memory ran out at 32 images the size is 16 for good."""
    size = BatchSize()
    for _ in range(3):
        size.took(size.now, 0.001 * size.now**0.5)
    assert size.now == 32
    size.ran_out(32)
    for _ in range(3):
        size.took(16, 1e-6)
    assert size.now == 16

"""The cache of embeddings and scores: what hits, what misses, and that neither a kill nor company damages it."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rwk.adapters.aesthetic import AestheticV1Base32
from rwk.adapters.clip_towers import OpenClipReward
from rwk.adapters.clipscore import ClipCosine, ClipScore
from rwk.adapters.imagereward import ImageReward
from rwk.adapters.pickscore import PickScore
from rwk.adapters.pixels import Contrast
from rwk.adapters.siglip import Siglip, small_tokenizer
from rwk.rewards import opening
from rwk.rewards.base import Reward, RewardSpec
from rwk.rewards.cache import FILE, Cache, Prints, key_of
from rwk.rewards.manifest import Item
from rwk.rewards.scoring import Means, score_items

CASE = runpy.run_path(str(Path(__file__).with_name("tower_case.py")))
PROMPTS = ("a dog", "a red cube")
WRITES = """
import sys
from pathlib import Path
import torch
from rwk.rewards.cache import Cache, key_of

cache = Cache(Path(sys.argv[1]))
print("open", flush=True)
for start in range(0, int(sys.argv[3]), 10):
    numbers = range(start, start + 10)
    cache.put((key_of(sys.argv[2], str(i)), torch.full([256], float(i))) for i in numbers)
"""


class Drawn(Contrast):
    """A score that is not the same twice."""

    spec = replace(Contrast.spec, name="drawn", deterministic=False)


class Holds(Contrast):
    """A score that depends on an object."""

    spec = RewardSpec("holds", "x", 0, 1, "n/a", "here", needs_prompt=False)

    def __init__(self) -> None:
        super().__init__()
        self.model = object()


def scored(items: list[Item], rewards: dict[str, Reward], folder: Path, **means: Any) -> list[dict[str, float | None]]:
    """The scores of the items, in batches of 4."""
    batches = score_items(items, rewards, Means(batch_size=4, cache=folder, **means))
    return [row.scores for rows in batches for row in rows]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that are decoded from now on."""
    paths: list[Path] = []
    whole = opening.views_of

    def views_of(path: Path, views: Any, least: Any) -> Any:
        paths.append(path)
        return whole(path, views, least)

    monkeypatch.setattr(opening, "views_of", views_of)
    return paths


def test_what_is_kept_is_not_made_again(tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run decodes no file and embeds no image and no prompt, and its rows are the same to the bit."""
    items = CASE["draw"](tmp_path / "images", 6, PROMPTS)
    rewards: dict[str, Reward] = {
        "clipscore.b32": ClipScore.tiny(),
        "aesthetic.v1_b32": AestheticV1Base32.tiny(),
        "imagereward.v1": ImageReward.tiny(),
        "contrast": Contrast(),
    }
    first = scored(items, rewards, tmp_path / "cache")
    assert len(decoded) == 6
    assert all(value is not None for row in first for value in row.values())
    embedded = CASE["counted"](monkeypatch, OpenClipReward, "image_features")
    read = CASE["counted"](monkeypatch, OpenClipReward, "text_features")
    again = dict(rewards, **{"clipscore.b32": ClipScore.tiny()})  # the same weights in another object
    assert scored(items, again, tmp_path / "cache") == first
    assert (len(decoded), embedded, read) == (6, [], [])


def test_an_embedding_serves_other_prompts_and_rewards(tmp_path: Path, decoded: list[Path]) -> None:
    """Another prompt, and another reward on the same tower, need the picture no more."""
    items = CASE["draw"](tmp_path / "images", 4, PROMPTS)
    first = ClipScore.tiny()
    scored(items, {"a": first}, tmp_path / "cache")
    asked = [Item(item.image, "three small yellow birds") for item in items]
    other = ClipCosine.of(first.network, preprocess=first.preprocess)
    found = scored(asked, {"b": other}, tmp_path / "cache")
    assert len(decoded) == 4
    images = [Image.open(item.image) for item in items]
    expected = other.score(images, [item.prompt or "" for item in asked]).values
    torch.testing.assert_close(torch.tensor([row["b"] for row in found]), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("change", ["weights", "preprocessing", "activation", "precision", "content", "prompt", "head"])
def test_what_a_score_depends_on_is_part_of_its_key(tmp_path: Path, decoded: list[Path], change: str) -> None:
    """After any of these changes the scores are those of a run without a cache, not those kept."""
    items = CASE["draw"](tmp_path / "images", 4, PROMPTS)
    rewards = {"clip": ClipScore.tiny(), "whole": ImageReward.tiny()}
    before = scored(items, dict(rewards), tmp_path / "cache")
    means: dict[str, Any] = {}
    for reward in rewards.values():
        if change == "weights":
            next(p for p in reward.network.parameters() if p.dim() > 1).data.mul_(1.5)
        elif change == "preprocessing":
            reward.preprocess = replace(reward.preprocess, fit="squash")  # type: ignore[misc]
    if change == "activation":
        for block in rewards["clip"].network.visual.transformer.resblocks:  # type: ignore[union-attr]
            block.mlp.gelu = torch.nn.GELU()
    elif change == "precision":
        means["precision"] = "bfloat16"
    elif change == "content":
        for item in items:
            Image.open(item.image).convert("RGB").rotate(180).save(item.image)
    elif change == "prompt":
        items = [item._replace(prompt="three small yellow birds") for item in items]
    elif change == "head":
        rewards["whole"].network.mlp.register_forward_hook(lambda module, inputs, out: out)  # no weight, no score
        rewards["whole"].threshold = 0.5  # type: ignore[attr-defined]
    after = scored(items, dict(rewards), tmp_path / "cache", **means)
    fresh = scored(items, dict(rewards), tmp_path / "none", **means)
    assert after == fresh
    assert len(decoded) >= 8
    if change != "head":
        assert [row["clip"] for row in after] != [row["clip"] for row in before]
        assert [row["whole"] for row in after] != [row["whole"] for row in before] or change == "activation"


def test_the_tokenizer_is_part_of_the_key_of_texts(tmp_path: Path) -> None:
    """Of two rewards on equal weights that read prompts by other ids each has its own scores, together and apart."""
    items = CASE["draw"](tmp_path / "images", 4, PROMPTS)
    usual, other = Siglip.tiny(), Siglip.tiny()
    other.tokenizer = small_tokenizer([" ".join(Siglip.example_prompts[::-1])], Siglip.pad)
    other.network = usual.network
    alone = [row["other"] for row in scored(items, {"other": other}, tmp_path / "none")]
    read = {"usual": usual, "other": other}
    assert [row["usual"] for row in scored(items, {"usual": usual}, tmp_path / "cache")] != alone
    assert [row["other"] for row in scored(items, {"other": other}, tmp_path / "cache")] == alone
    assert [row["other"] for row in scored(items, dict(read), tmp_path / "both")] == alone


def test_what_a_tokenizer_does_is_its_hash() -> None:
    """The same rules have the same hash, whatever was read before, and others another, of each kind of tokenizer."""
    prints, again = Prints("published"), Prints("published")
    found = set()
    for reward in (Siglip.tiny(), ClipScore.tiny(), PickScore.tiny()):
        before = prints.of_reader(reward.reader)
        reward.text_features(["a dog", "a red cube " * 90][:1])
        assert again.of_reader(type(reward).tiny().reader) == before
        found.add(before)
    assert len(found) == 3
    assert prints.of_reader(None) == ""


def test_what_cannot_be_named_is_not_kept(tmp_path: Path, decoded: list[Path]) -> None:
    """A reward that is not deterministic, or holds an object, is asked every time."""
    items = CASE["draw"](tmp_path / "images", 2, PROMPTS)
    for _ in range(2):
        scored(items, {"drawn": Drawn(), "holds": Holds()}, tmp_path / "cache")
    assert len(decoded) == 4


def test_a_gap_is_not_kept(tmp_path: Path, decoded: list[Path]) -> None:
    """A file that cannot be read, or an image that is refused, is looked at again and keeps its note."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (6500, 100)).save(folder / "long.png")
    items = [Item(folder / name, "a dog") for name in ("empty.png", "long.png", "none.png")]
    notes = []
    for _ in range(2):
        batches = score_items(items, {"clip": ClipScore.tiny()}, Means(cache=tmp_path / "cache"))
        notes.append([row.notes["clip"] for rows in batches for row in rows])
    assert notes[0] == notes[1]
    assert [note.split(",")[0] for note in notes[0]] == [
        "empty file (0 bytes)",
        "is cropped to its centre",
        "cannot be decoded: No such file or directory",
    ]
    assert len(decoded) == 6


def writer(folder: Path, name: str, count: int) -> subprocess.Popen[str]:
    """A process that puts so many entries, ten at a time; it has opened the cache."""
    command = [sys.executable, "-c", WRITES, str(folder), name, str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def whole(folder: Path) -> int:
    """How many entries a cache holds; fails where the file is damaged."""
    with sqlite3.connect(folder / FILE) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count: int = file.execute("SELECT COUNT(*) FROM made").fetchone()[0]
    file.close()
    return count


def test_a_killed_writer_leaves_a_whole_cache(tmp_path: Path) -> None:
    """After kill -9 while entries are put, what was put before is there, in whole tens, and more can be put."""
    process = writer(tmp_path, "a", 10**7)
    limit = time.monotonic() + 60
    cache = Cache(tmp_path)
    while cache.get(key_of("a", "500")) is None:
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    count = whole(tmp_path)
    assert count > 500
    assert count % 10 == 0
    for i in (0, count - 1):
        found = cache.get(key_of("a", str(i)))
        assert found is not None
        assert found.tolist() == [float(i)] * 256
    cache.put([(key_of("b", "0"), torch.ones(1))])
    cache.close()
    assert whole(tmp_path) == count + 1


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """Three writers of one cache lose nothing, two of them putting the same entries."""
    processes = [writer(tmp_path, name, 500) for name in ("a", "a")]
    cache = Cache(tmp_path)
    cache.put((key_of("c", str(i)), torch.ones(3)) for i in range(100))
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    cache.close()
    assert whole(tmp_path) == 500 + 100


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    """A file in the place of the cache that is none is refused in one sentence."""
    (tmp_path / FILE).write_text("no database" * 100)
    with pytest.raises(ValueError, match=r"--cache needs a folder for made.sqlite, got .* \(file is not a database\)"):
        Cache(tmp_path)


def test_the_command_line_keeps_and_takes(rwk: Callable[..., Any], tmp_path: Path, decoded: list[Path]) -> None:
    """`rwk score --cache` decodes once for two runs, and `--batch-size` may change between them."""
    CASE["draw"](tmp_path / "images", 5, PROMPTS)
    rows = []
    for more in ((), ("--batch-size", "2")):
        done = rwk("score", "images", "-r", "contrast", "-r", "2*exposure", "--cache", "kept", "--json", *more)
        assert done.code == 0
        rows.append(json.loads(done.out)["rows"])
    assert rows[0] == rows[1]
    assert len(decoded) == 5

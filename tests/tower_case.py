"""Rewards on small towers, files to load them from, and pictures on disk, for tests of what scoring shares."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.aesthetic import AestheticV1Base32
from rwk.adapters.clip_towers import SMALL, OpenClipReward, open_clip_network, seeded, small
from rwk.adapters.clipscore import ClipScore
from rwk.rewards.manifest import Item

CONFIG = {**SMALL, "quick_gelu": True}


def published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of CLIP and of LAION's predictor, both small, which the adapters take from now on."""
    from safetensors.torch import save_file

    monkeypatch.setattr(OpenClipReward, "build", classmethod(lambda cls: open_clip_network(CONFIG)))
    monkeypatch.setattr(AestheticV1Base32, "build", classmethod(lambda cls: cls.predictor(CONFIG)))
    for kind in (ClipScore, AestheticV1Base32):
        monkeypatch.setattr(kind, "preprocess", small(kind.preprocess))
    with seeded(5):
        clip, head = open_clip_network(CONFIG), AestheticV1Base32.head(SMALL["embed_dim"])
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    torch.save(head.state_dict(), folder / AestheticV1Base32.origin.file)
    return folder


def draw(folder: Path, count: int, prompts: Sequence[str]) -> list[Item]:
    """As many different pictures, of several sizes, the prompts in turns."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for i in range(count):
        picture = Image.effect_noise((40 + i, 50), 20 + 10 * i)
        path = folder / f"{i:03d}.{'jpg' if i % 2 else 'png'}"
        Image.merge("RGB", [picture, picture.rotate(90).resize(picture.size), picture]).save(path)
        items.append(Item(path, prompts[i % len(prompts)]))
    return items


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """How many rows every call of a method was given from now on."""
    calls: list[int] = []
    whole = getattr(owner, name)

    @functools.wraps(whole)
    def count(self: Any, rows: Tensor | list[str]) -> Any:
        calls.append(len(rows))
        return whole(self, rows)

    monkeypatch.setattr(owner, name, count)
    return calls

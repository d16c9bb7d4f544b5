"""Weights that are not here: every family says through the command line what is missing and both ways to get it."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from rwk.rewards.registry import REWARDS
from rwk.rewards.weights import weights_of

REMEDIES = ("copy the file here", "copy the folder of {source} here", "copy its folder here")


def families() -> list[str]:
    """The first name of each module whose rewards have published weights, and need no pictures to compare with."""
    first: dict[str, str] = {}
    for name in REWARDS.names():
        kind = REWARDS.target(name)
        if weights_of(kind) and not hasattr(kind, "shipped") and "references" not in signature(kind).parameters:
            first.setdefault(kind.__module__, name)
    return list(first.values())


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, with empty caches, in a folder that holds a picture."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    Image.new("RGB", (8, 6), "red").save(tmp_path / "picture.png")


@pytest.mark.parametrize("name", families())
def test_missing_weights_are_one_sentence(rwk: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rwk score` fails with 1, names the file, its size and both ways out, before a network of full size is built."""
    kind: Any = REWARDS.target(name)

    def refuse() -> None:
        raise AssertionError("a network was built before its weights were found")

    if hasattr(kind, "build"):
        monkeypatch.setattr(kind, "build", staticmethod(refuse))
    ended = rwk("score", "picture.png", "--prompt", "a dog", "--reward", name)
    assert (ended.code, ended.out) == (1, "")
    (line,) = [line for line in ended.err.splitlines() if line.startswith(f"rwk: {name} needs ")]
    weights = weights_of(kind)[0]
    named = [weights.source, weights.file, f"(about {weights.megabytes} MB)" if weights.megabytes else ""]
    missing = [part for part in named if part not in line]
    assert missing in ([], ["github.com/salesforce/BLIP"]), line  # whose file lies at another address
    one, all_files, model = (remedy.format(source=weights.source) for remedy in REMEDIES)
    listed = weights.file.endswith(".index.json")
    remedies = [model] if not weights.file else [all_files] if listed else [one, all_files]
    last = line.partition("; with a network, unset HF_HUB_OFFLINE and run again; without, ")[2]
    assert last in [f"{remedy} and name it as {name}@PATH." for remedy in remedies], line


def test_every_published_family_is_asked() -> None:
    """The test above sees the families by name; a walk that found none would pass."""
    published = {"hpsv2", "aesthetic", "imagereward", "cyclereward", "blip_vqa", "orm", "judge", "unifiedreward"}
    assert published <= {name.partition(".")[0] for name in families()}


def test_the_tower_goes_beside_the_head(
    rwk: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For LAION's predictors one folder with head and tower is enough, and the sentence says so where one lacks."""
    head = REWARDS.target("aesthetic.v2").origin.file  # type: ignore[attr-defined]
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / head).touch()
    ended = rwk("score", "picture.png", "--reward", "aesthetic.v2@weights")
    assert ended.code == 1
    assert f"copy it into one folder with {head} and name that as aesthetic.v2@PATH" in ended.err
    (tmp_path / "weights" / "open_clip_model.safetensors").touch()
    monkeypatch.setattr(REWARDS.target("aesthetic.v2"), "build", staticmethod(lambda: SimpleNamespace(head=None)))
    ended = rwk("score", "picture.png", "--reward", "aesthetic.v2@weights")
    assert "is not a whole torch file" in ended.err

"""Revisions: `NAME#REVISION` loads weights, settings and tokenizer of one commit of a repository, and of no other."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from rwk.adapters.git_vqa import GitVqa
from rwk.adapters.grounding_dino import GroundingDino
from rwk.adapters.ocr import GotOcr
from rwk.adapters.open_clip_models import OpenClipCosine
from rwk.adapters.pickscore import PickScore
from rwk.rewards.pair_judge import JUDGES
from rwk.rewards.registry import REWARDS, load, load_all

PUBLISH = runpy.run_path(str(Path(__file__).with_name("hub_case.py")))["publish"]
KINDS = {"git_vqa.t2i_r1": GitVqa, "grounding_dino.t2i_r1": GroundingDino, "ocr.got": GotOcr}
"""Rewards whose tokenizer lies in the repository of their weights; `test_orm` has the fourth."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Offline, with an empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", KINDS)
def test_the_tokenizer_is_of_the_same_revision(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With one revision in the cache all is read from it; the tokenizer is not looked for elsewhere."""
    kind: Any = KINDS[name]
    tiny = kind.tiny()
    folder = tmp_path / "files"
    tiny.tokenizer.save_pretrained(folder)
    if kind is GitVqa:
        (folder / "config.json").write_text(json.dumps({"model_type": "git"}))
        torch.save(tiny.network.state_dict(), folder / "pytorch_model.bin")
        monkeypatch.setattr(GitVqa, "build", staticmethod(lambda: GitVqa.tiny().network))
    else:
        tiny.network.save_pretrained(folder)
    PUBLISH(cache, kind.origin.hub, folder, "v1")
    loaded: Any = load(f"{name}#v1")
    assert loaded.tokenizer.get_vocab() == tiny.tokenizer.get_vocab()
    found, expected = loaded.network.state_dict(), tiny.network.state_dict()
    assert all(torch.equal(found[key].float(), expected[key].float()) for key in expected)
    with pytest.raises(Exception, match="not in the cache and cannot be downloaded"):
        load(name)


def test_two_revisions_are_two_rewards(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are loaded together, in an expression too, and each has its own weights."""

    def build() -> nn.Module:
        with torch.device("cpu"):  # also where its keys are looked at without memory
            return PickScore.tiny().network

    monkeypatch.setattr(PickScore, "build", staticmethod(build))
    monkeypatch.setattr(PickScore, "preprocess", PickScore.tiny().preprocess)
    for revision, scale in (("main", 1.0), ("refs/pr/3", 2.0)):
        folder = tmp_path / revision
        folder.mkdir(parents=True)
        tensors = PickScore.tiny().network.state_dict()
        tensors["logit_scale"] = torch.tensor(scale).log()
        save_file({key: value.clone() for key, value in tensors.items()}, folder / "model.safetensors")
        PUBLISH(cache, PickScore.origin.hub, folder, revision)
    names = ["pickscore.v1", "pickscore.v1#refs/pr/3", "pickscore.v1+-1*pickscore.v1#refs/pr/3"]
    images = [Image.effect_noise((40, 30), 90)]
    one, two, difference = (each.score(images, ["a dog"]).values for each in load_all(names).values())
    torch.testing.assert_close(two, 2 * one)
    torch.testing.assert_close(difference, -one)


def test_what_a_mark_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is there keeps its `#`, a repository has a revision behind it, and so has a model of open_clip."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run#3").mkdir()
    assert REWARDS.parted("judge.yes_no@run#3") == ("judge.yes_no", {"weights": "run#3"})
    pinned = {"weights": "Qwen/Qwen2-VL-2B-Instruct", "revision": "a1b2"}
    assert REWARDS.parted("judge.yes_no@Qwen/Qwen2-VL-2B-Instruct#a1b2") == ("judge.yes_no", pinned)
    assert REWARDS.parted("open_clip:ViT-B-32/openai#a1b2") == ("open_clip:ViT-B-32/openai", {"revision": "a1b2"})
    assert issubclass(REWARDS.kind_of("open_clip:ViT-B-32/openai#a1b2"), OpenClipCosine)
    assert JUDGES.parted("margin@pickscore.v1#a1b2") == ("margin", {"weights": "pickscore.v1#a1b2"})
    assert REWARDS.parted("a#b") == ("a#b", {})
    with pytest.raises(
        ValueError, match=re.escape("reward 'noise' takes no revision of a repository, got 'v1'; leave")
    ):
        load("noise#v1")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pickscore.v1#", "'pickscore.v1#' must have a revision behind #, got none; add it or leave # out."),
        ("pickscore.v1@", "'pickscore.v1@' must have a path or repository behind @, got none; add it or leave @ out."),
        ("judge.yes_no@#v1", "must have a path or repository behind @"),
        ("judge.yes_no@someone/model#", "must have a revision behind #"),
        ("pickscore.v1@model.safetensors#v1", "takes a revision of yuvalkirstain/PickScore_v1 alone, got 'v1' for"),
    ],
)
def test_a_mark_that_pins_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str) -> None:
    """Nothing behind a mark, or a revision of a file that lies here, is refused, not passed over."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=re.escape(told)):
        load(name)


def test_the_commands_take_a_revision(rwk: Callable[..., Any], cache: Path, tmp_path: Path) -> None:
    """`rwk info` looks for the weights of that revision, and `rwk score` asks for them by the name."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / PickScore.origin.file).touch()
    path = PUBLISH(cache, PickScore.origin.hub, tmp_path / "files", "v1")
    for name, where in (("pickscore.v1#v1", str(path / PickScore.origin.file)), ("pickscore.v1#v2", None)):
        told = json.loads(rwk("info", name, "--json").out)
        assert told["weights"][0]["path"] == where
    Image.new("RGB", (8, 6)).save(tmp_path / "picture.png")
    ended = rwk("score", "picture.png", "--prompt", "a dog", "--reward", "pickscore.v1#v2")
    assert ended.code == 1
    assert "pickscore.v1 needs model.safetensors of yuvalkirstain/PickScore_v1" in ended.err

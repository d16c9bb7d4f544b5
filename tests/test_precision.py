"""What `--precision` reaches: networks, not heads; and what says that it stays as it is."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from rwk.adapters.geneval import Geneval
from rwk.adapters.hpsv3 import HpsV3
from rwk.adapters.imagereward import ImageReward
from rwk.adapters.pixels import Contrast
from rwk.adapters.shapes_clip import ShapesClip
from rwk.rewards import registry
from rwk.rewards.base import Reward
from rwk.rewards.manifest import Item
from rwk.rewards.precision import HALF, Precision, in_float32, kept_precision
from rwk.rewards.registry import REWARDS, load_all, names
from rwk.rewards.scoring import Means, score_items

CASE = runpy.run_path(str(Path(__file__).with_name("tower_case.py")))
STAYS = {
    *("geneval.flow_grpo", "geneval.soft", "geneval.strict"),
    *("grounding_dino.t2i_r1", "grounding_dino.t2i_r1_published", "compbench.numeracy"),
    *("compbench.spatial", "compbench.spatial_3d"),
}
"""Rewards whose network computes in float32 whatever is asked for."""
WRITES = {"ocr.got", *(name for name in names() if name.startswith("unifiedreward."))}
"""Rewards that read a score out of words, which half precision changes or not."""
HEADS = {
    "imagereward.v1": "mlp",
    "cyclereward.combo": "mlp",
    "evalmuse.element": "itm_head",
    "blip_vqa.compbench": "text_decoder.cls",
    "git_vqa.t2i_r1": "output",
    "hpsv3.v3": "rm_head",
    "timm_head": "head",
    "shapes.clip": "head",
    "tuned": "head",
}
"""Part of the network that makes a score of states."""


@cache
def tiny(name: str) -> Any:
    return REWARDS.target(name).tiny()


def networks(owner: Any, depth: int = 3) -> Iterator[nn.Module]:
    """The networks that a reward holds, in parts of it too."""
    for value in vars(owner).values():
        if isinstance(value, nn.Module):
            yield value
        elif depth and type(value).__module__.startswith("rwk.adapters."):
            yield from networks(value, depth - 1)


def pictures(folder: Path, reward: Reward) -> list[Item]:
    """The reward's own pictures, or such of coarse noise, with its prompts in turns."""
    own = reward.example_images()
    prompts = [prompt for prompt in reward.example_prompts if prompt]
    items: list[Item] = CASE["draw"](folder, max(4, len(own)), prompts)
    for item, image in zip(items, own, strict=False):
        image.convert("RGB").save(item.image)
    return items


def scored(items: list[Item], reward: Reward, precision: Precision, **means: Any) -> list[Any]:
    """Rows of the items, in batches of 4."""
    made = Means(batch_size=4, precision=precision, **means)
    return [row for rows in score_items(items, {"it": reward}, made) for row in rows]


@pytest.mark.parametrize("name", names())
def test_precision_reaches_every_network(name: str, tmp_path: Path) -> None:
    """Layers compute in bfloat16 and scores move a little; or all stays to the last bit, and a note says so."""
    reward = tiny(name)
    items = pictures(tmp_path, reward)
    exact = [row.scores["it"] for row in scored(items, reward, "published")]
    types: set[torch.dtype] = set()
    hooks = [
        layer.register_forward_hook(lambda part, given, made: types.add(made.dtype))
        for network in networks(reward)
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]
    half = [row.scores["it"] for row in scored(items, reward, "bfloat16")]
    for hook in hooks:
        hook.remove()
    moved = [abs(a - b) for a, b in zip(exact, half, strict=True) if a is not None and b is not None]
    assert [value is None for value in exact] == [value is None for value in half]
    assert moved
    assert (torch.bfloat16 in types) == reward.casts
    if name in WRITES:
        return
    if not reward.casts:
        assert max(moved) == 0
        assert bool(list(networks(reward))) == bool(reward.precision_note) == (name in STAYS)
        return
    most = max(abs(value) for value in exact if value is not None)
    assert 0 < max(moved) < 0.02 * (1 + most)


@pytest.mark.parametrize("name", HEADS)
def test_heads_stay_in_float32(name: str, tmp_path: Path) -> None:
    """What makes a score of states is given float32 and gives it."""
    reward = tiny(name)
    network = reward.module if hasattr(reward, "module") else reward.network
    types: list[torch.dtype] = []
    parts = [part for part in network.get_submodule(HEADS[name]).modules() if isinstance(part, nn.Linear)]
    parts = parts or [network.get_submodule(HEADS[name])]
    hooks = [
        part.register_forward_hook(lambda part, given, made: types.extend([given[0].dtype, made.dtype]))
        for part in parts
    ]
    scored(pictures(tmp_path, reward), reward, "bfloat16")
    for hook in hooks:
        hook.remove()
    assert set(types) == {torch.float32}


def test_in_float32_within_half_precision() -> None:
    """A layer's product is that of float32 numbers, whatever surrounds it, and the surroundings hold on after it."""
    layer, states = nn.Linear(64, 8), torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = in_float32(layer, states.bfloat16())
        assert layer(states).dtype == torch.bfloat16
    torch.testing.assert_close(found, layer(states.bfloat16().float()), rtol=0, atol=0)


def test_what_stays_says_so(monkeypatch: pytest.MonkeyPatch, rwk: Callable[..., Any], tmp_path: Path) -> None:
    """A sentence on stderr for a network that stays as it is; none in float32, or for what has no network."""
    rewards = {"geneval.strict": tiny("geneval.strict"), "contrast": Contrast(), "clip": ShapesClip.tiny()}
    assert not kept_precision(rewards, "float32")
    for precision in HALF:
        (told,) = kept_precision(rewards, precision)
        assert told == f"--precision {precision} changes nothing of geneval.strict: {Geneval.precision_note}."
    monkeypatch.setattr(registry, "load_all", lambda names, **options: {name: rewards[name] for name in names})
    Image.effect_noise((64, 64), 60).convert("RGB").save(tmp_path / "a.png")
    asked = ("score", "a.png", "--prompt", "a photo of an apple", "-r", "geneval.strict")
    assert "changes nothing of geneval.strict" in rwk(*asked, "--precision", "bfloat16").err
    assert "changes nothing" not in rwk(*asked).err


def test_weights_of_half_precision_are_loaded_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that is published in bfloat16 is loaded so, or in what is asked for; others are not told."""
    loaded: list[str] = []

    def make(self: HpsV3, *, dtype: str = "bfloat16", device: str = "cpu") -> None:
        loaded.append(dtype)

    monkeypatch.setattr(HpsV3, "__init__", make)
    precisions: tuple[Precision, ...] = ("published", "float32", "float16")
    for precision in precisions:
        load_all(["hpsv3.v3", "contrast"], precision=precision)
    assert loaded == ["bfloat16", "float32", "float16"]


def test_kept_scores_know_their_precision(tmp_path: Path) -> None:
    """Scores of three precisions are kept side by side and each run takes its own, of whole scores and embeddings."""
    for name in ("imagereward.v1", "clipscore.b32"):
        reward, found = tiny(name), {}
        items = pictures(tmp_path / name, reward)
        for again in (False, True):
            for precision in ("published", "bfloat16", "float16"):
                rows = scored(items, reward, precision, cache=tmp_path / "kept")
                scores = [row.scores["it"] for row in rows]
                assert found.setdefault(precision, scores) == scores, again
        assert len({tuple(scores) for scores in found.values()}) == 3


def test_a_number_too_large_is_told(tmp_path: Path) -> None:
    """Where float16 holds a state no more there is no score, and the note names the precision."""
    reward = ImageReward.tiny()
    vision: Any = reward.network.vision  # type: ignore[union-attr]
    vision.encoder.layers[0].mlp.fc1.weight.data *= 1e6
    items = pictures(tmp_path, reward)
    assert all(row.scores["it"] is not None for row in scored(items, reward, "bfloat16"))
    for row in scored(items, reward, "float16"):
        assert row.scores["it"] is None
        assert row.notes["it"] == "the network gives no number in float16; take another --precision"

"""Faults that published scoring code had in silence, put into this code: each is caught.

Most of them break a clause of the contract, and `test_contract_catches` holds a reward with each: a mask divided by the
largest value of the batch (MPS), `[B, 1]` and 0-d results (ports of ImageReward and the aesthetic predictors), a crash
that scores 0 and a judge that samples (T2I-R1, flow_grpo). `test_unified_reward` and `test_git_vqa` hold what cannot be
read out of an answer, and prompts that name nothing; `test_published` holds loading that skips keys. Here are the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rwk.adapters import published
from rwk.adapters.aesthetic import AestheticV2
from rwk.adapters.clip_towers import SMALL, cosine, open_clip_network
from rwk.adapters.hpsv2 import Hpsv2, Hpsv21
from rwk.adapters.pickscore import PickScore
from rwk.rewards.registry import load_all

Rwk = Callable[..., Any]


def other(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As many tensors of other values."""
    draw = torch.Generator().manual_seed(7)
    return {key: torch.randn(value.shape, generator=draw) for key, value in tensors.items()}


def test_layers_that_are_one_do_not_take_weights_of_several() -> None:
    """`[Linear] * 3` is one layer of three names (imscore's heads); a checkpoint that tells them apart is refused."""
    apart = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    weights = other(apart.state_dict())
    published.fill("head", apart, weights)
    assert torch.equal(apart.state_dict()["2.weight"], weights["2.weight"])

    shared = nn.Sequential(*[nn.Linear(4, 4)] * 3)
    with pytest.raises(ValueError, match=r"one layer for 0\.weight and 1\.weight"):
        published.fill("head", shared, weights)
    alike = {key: weights["0." + key.partition(".")[2]] for key in weights}
    published.fill("head", shared, alike)  # as tied weights are written
    assert torch.equal(shared.state_dict()["2.weight"], weights["0.weight"])


def test_the_head_of_five_maps_has_five() -> None:
    """LAION's second head holds five weights and five biases, no two of them one."""
    head = AestheticV2.head(8)
    assert len({parameter.data_ptr() for parameter in head.parameters()}) == 10


def test_a_missing_file_is_not_scored_as_the_one_before(rwk: Rwk, tmp_path: Path) -> None:
    """A row whose file is gone has no score (ImageReward scores the previous image again)."""
    Image.new("RGB", (32, 32), "orange").save(tmp_path / "a.png")
    rows = [{"image": "a.png"}, {"image": "gone.png"}, {"image": "a.png"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert rwk("score", "rows.jsonl", "--reward", "colorfulness", "--out", "scores.jsonl").code == 0
    scores = [json.loads(line)["colorfulness"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert scores[0] == scores[2] is not None
    assert scores[1] is None


def test_two_versions_live_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """v2.0 and v2.1 that are loaded together each score by their own file (hpsv2 keeps one model for both)."""
    image, prompt = Image.effect_noise((40, 40), 90), "a cat"
    monkeypatch.setattr(Hpsv2, "build", classmethod(lambda cls: open_clip_network(SMALL)))
    monkeypatch.setattr(Hpsv2, "preprocess", Hpsv2.tiny().preprocess)
    names, expected = [], []
    for kind in (Hpsv2, Hpsv21):
        network = open_clip_network(SMALL).eval()
        network.load_state_dict(other(network.state_dict()) if kind is Hpsv21 else network.state_dict())
        torch.save({"state_dict": network.state_dict()}, tmp_path / kind.origin.file)
        names.append(f"{kind.spec.name}@{tmp_path / kind.origin.file}")
        expected.append(kind.of(network).score([image], [prompt]).values)
    assert not torch.equal(*expected)
    for order in (names, names[::-1]):
        loaded = load_all(order)
        for name in order * 2:
            values = loaded[name].score([image], [prompt]).values
            torch.testing.assert_close(values, expected[names.index(name)], rtol=0, atol=1e-6)
    twice = [f"hpsv2.v20@{tmp_path / kind.origin.file}" for kind in (Hpsv2, Hpsv21)]  # two files of one version
    for name, reward in load_all(twice).items():
        values = reward.score([image], [prompt]).values
        torch.testing.assert_close(values, expected[twice.index(name)], rtol=0, atol=1e-6)


def test_weights_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring reads no file (hpsv2 reads 3.9 GB anew for every call)."""
    reward = PickScore.tiny()
    reward.score([Image.new("RGB", (8, 8))], ["warm"])

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError(f"a checkpoint was read while scoring: {args}")

    for where, name in ((published, "read"), (published, "find"), (torch, "load")):
        monkeypatch.setattr(where, name, refuse)
    assert reward.score([Image.new("RGB", (8, 8))], ["a cat"]).values.isfinite().all()


def test_a_score_has_the_unit_of_its_source() -> None:
    """PickScore is a scale times a cosine, not that divided by 26 (flow_grpo) nor a share of the pictures at hand."""
    reward = PickScore.tiny()
    image = Image.effect_noise((32, 32), 90).convert("RGB")
    pixels = reward.preprocess.exact([image])
    closeness = cosine(reward.image_features(pixels), reward.text_features(["a cat"]))
    scale = reward.network.get_parameter("logit_scale").exp()
    torch.testing.assert_close(reward.score([image], ["a cat"]).values, (scale * closeness).detach())

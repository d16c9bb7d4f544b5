"""timm backbones as rewards of the image alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rwk.rewards.bases import load_base
from rwk.rewards.configs import RewardTraining
from rwk.rewards.data import Preference, PreferenceDataset
from rwk.rewards.errors import RunFailed
from rwk.rewards.layers import lora_targets
from rwk.rewards.registry import load
from rwk.rewards.train import train_reward


def grey(value: int, size: int = 40) -> Image.Image:
    return Image.new("RGB", (size, size), (value, value, value))


@pytest.mark.parametrize("model", ["test_vit", "test_resnet", "test_convnext"])
def test_any_backbone(model: str, tmp_path: Path) -> None:
    """Transformers and convolutional networks take the size asked for, and come back from a folder the same."""
    reward = load_base(f"timm:{model}", image_size=48, seed=5)
    images = [grey(20), grey(200, 64)]
    scores = reward.score(images).values
    assert scores.isfinite().all()
    assert reward.preprocessing.size == 48
    reward.save(tmp_path)
    assert torch.equal(load(str(tmp_path)).score(images).values, scores)
    assert lora_targets(reward.module)


def test_weights_of_a_file(tmp_path: Path) -> None:
    """`timm:NAME@FILE` has the backbone of that file, classifier dropped; one that does not fit is refused."""
    import timm

    with torch.random.fork_rng():
        whole = timm.create_model("test_resnet").eval()
    save_file({key: value.contiguous() for key, value in whole.state_dict().items()}, tmp_path / "w.safetensors")
    reward = load_base(f"timm:test_resnet@{tmp_path / 'w.safetensors'}")
    pixels = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(reward.preprocessing.normalised(pixels)), pre_logits=True)
        torch.testing.assert_close(reward.features(pixels, []), expected)
    with pytest.raises(ValueError, match="do not fit timm model test_vit"):
        load_base(f"timm:test_vit@{tmp_path / 'w.safetensors'}")
    with pytest.raises(ValueError, match="names no file, got .*nowhere"):
        load_base(f"timm:test_vit@{tmp_path / 'nowhere'}")


def test_names_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown models and tags are a wrong call; an unreachable hub is one sentence with two ways out."""
    import timm

    with pytest.raises(ValueError, match="timm knows no model 'resnte18'"):
        load_base("timm:resnte18")
    with pytest.raises(ValueError, match="timm model resnet18 has no weights 'mine'; there are .*a1_in1k"):
        load_base("timm:resnet18.mine")
    create = timm.create_model

    def offline(*arguments: object, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("no route to host\nmore")
        return create(*arguments, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RunFailed, match=r"timm:test_vit\.r160_in1k could not be had from .* \(no route to host\); put"):
        load_base("timm:test_vit.r160_in1k")


@pytest.mark.parametrize(("model", "mode"), [("test_resnet", "full"), ("test_resnet", "lora"), ("test_vit", "probe")])
def test_learns_without_prompts(tmp_path: Path, model: str, mode: str) -> None:
    """A backbone with random weights learns to prefer the brighter picture, without any prompt."""
    rows = []
    for index in range(48):
        dark, bright = grey(40 + index), grey(150 + index)
        first, second = (bright, dark) if index % 2 else (dark, bright)
        rows.append(Preference("", first, second, float(index % 2)))
    train, valid = PreferenceDataset(rows).split(held_out=0.25, seed=0)
    config = RewardTraining(base=f"timm:{model}", image_size=32, mode=mode, epochs=6, batch_size=12, learning_rate=3e-3)
    report = train_reward(config, train, valid, out=tmp_path)
    assert report.held_out.accuracy is not None
    assert report.held_out.accuracy.mean > 0.9
    light, dark = load(str(tmp_path / "reward")).score([grey(180), grey(60)]).values
    assert light > dark

"""Presets: what they set, what they leave to the user, and which layers of the real networks they freeze."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from rwk.adapters.hpsv2 import Hpsv2
from rwk.adapters.imagereward import ImageReward
from rwk.rewards.configs import RewardTraining
from rwk.rewards.layers import first_layers
from rwk.rewards.presets import PRESETS
from rwk.rewards.recipe import learning_rate, optimizer


def test_a_preset_yields_to_what_is_given() -> None:
    """Its numbers hold where nothing else is said; its learning rate goes with its mode."""
    plain = RewardTraining.of("pickscore")
    assert (plain.learning_rate, plain.schedule, plain.warmup, plain.batch_size) == (3e-6, "linear", 0.125, 128)
    assert plain.epochs == RewardTraining().epochs
    given = RewardTraining.of("pickscore", batch_size=4, learning_rate=1e-4)
    assert (given.batch_size, given.learning_rate, given.weight_decay) == (4, 1e-4, 0.3)
    low_rank = RewardTraining.of("imagereward", mode="lora")
    assert (low_rank.learning_rate, low_rank.freeze, low_rank.epochs) == (None, 0, 10)
    assert RewardTraining.of(epochs=2) == RewardTraining(epochs=2)
    with pytest.raises(ValueError, match="--preset must be one of pickscore, .* got 'dalle'"):
        RewardTraining.of("dalle")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_run(name: str) -> None:
    """It names a commit, and its settings are fields that pass the checks and make an optimizer."""
    assert re.search(r" at [0-9a-f]{7}: ", PRESETS[name].source)
    config = RewardTraining.of(name)
    assert config.preset == name
    made = optimizer([nn.Parameter(torch.zeros(2, 2))], config)
    assert made.param_groups[0]["weight_decay"] == config.weight_decay
    assert made.param_groups[0]["betas"][1] == config.beta2
    assert max(learning_rate(config, step, 40) for step in range(40)) == config.learning_rate


def test_schedules() -> None:
    """Halfway down, a cosine and a line stand at half; a constant stays."""
    for schedule, middle, last in (("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1.0, 1.0)):
        config = RewardTraining(schedule=schedule, learning_rate=1.0, warmup=0.2)  # type: ignore[arg-type]
        assert [learning_rate(config, step, 10) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
        assert learning_rate(config, 6, 10) == pytest.approx(middle)
        assert learning_rate(config, 10, 10) == pytest.approx(last)


class Headed(nn.Module):
    """A network as it is trained."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.head = base, nn.Linear(1, 1)


def layers(module: nn.Module, freeze: float, pattern: str) -> list[int]:
    """Numbers of the layers with that name that are left to train."""
    frozen = set(first_layers(module, freeze))
    left = [key for key, _ in module.named_parameters() if key not in frozen]
    return sorted({int(found[1]) for key in left if (found := re.search(pattern, key))})


def test_frozen_layers_are_those_of_the_sources() -> None:
    """HPSv2 trains the last 19 of 32 and 11 of 24 layers; ImageReward the last 8 of 24 and, of the text, 4 of 12."""
    with torch.device("meta"):
        hps, blip = Headed(Hpsv2.build()), Headed(ImageReward.build())
    assert layers(hps, PRESETS["hpsv2"].settings["freeze"], r"visual.*resblocks\.(\d+)") == list(range(13, 32))
    assert layers(hps, PRESETS["hpsv2"].settings["freeze"], r"base\.transformer\.resblocks\.(\d+)") == list(
        range(13, 24)
    )
    share = PRESETS["imagereward"].settings["freeze"]
    assert layers(blip, share, r"vision\.encoder\.layers\.(\d+)") == list(range(16, 24))
    assert layers(blip, share, r"text_encoder\.encoder\.layer\.(\d+)") == list(range(8, 12))
    frozen = first_layers(hps, 13)
    for name in ("visual.conv1.weight", "visual.class_embedding", "visual.ln_pre.weight", "token_embedding.weight"):
        assert f"base.{name}" in frozen
    for name in ("visual.proj", "visual.ln_post.weight", "ln_final.weight", "text_projection"):
        assert f"base.{name}" not in frozen
    assert first_layers(hps, 0) == []


def test_networks_without_enough_layers() -> None:
    """A network of no layers, or of fewer than would be left alone, is one sentence."""
    with pytest.raises(ValueError, match="--freeze needs a network of layers alike, got Headed; leave it out"):
        first_layers(Headed(nn.Linear(2, 2)), 0.5)
    stack = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(3)))
    assert first_layers(Headed(stack), 2) == [f"base.{i}.0.{end}" for i in range(2) for end in ("bias", "weight")]
    with pytest.raises(ValueError, match="--freeze must leave a layer of base, which has 3, got 3; give fewer"):
        first_layers(Headed(stack), 3)


def test_the_command_line_takes_a_preset(rwk: Callable[..., Any], tmp_path: Path) -> None:
    """Options that were given stand, the others come from the preset; both are in the run's config.json."""
    for color in ("red", "blue"):
        Image.new("RGB", (48, 48), color).save(tmp_path / f"{color}.png")
    prompts = ("a red star", "two blue squares", "a large circle", "a green star")
    rows = [{"first": "red.png", "second": "blue.png", "prompt": prompt, "p_first": 1} for prompt in prompts]
    (tmp_path / "few.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    ended = rwk("train-reward", "few.jsonl", "--preset", "imagereward", "--epochs", "1", "--out", "run")
    assert ended.code == 0, ended.err
    assert "preset imagereward, after THUDM/ImageReward at c1392c6" in ended.err
    told = json.loads((tmp_path / "run/config.json").read_text())["training"]
    assert {name: told[name] for name in ("preset", "epochs", "learning_rate", "freeze", "warmup")} == {
        **{"preset": "imagereward", "epochs": 1, "learning_rate": 1e-5},
        **{"freeze": 0.7, "warmup": 0.0},
    }
    assert rwk("train-reward", "--preset", "dalle").code == 2
    assert all(name in rwk("train-reward", "--help").out for name in PRESETS)

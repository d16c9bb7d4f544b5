"""Training of published rewards and judges: each family learns, is kept by its base's name, and scores the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from rwk.adapters.aesthetic import AestheticV2
from rwk.adapters.clipscore import ClipScore
from rwk.adapters.hpsv2 import Hpsv2
from rwk.adapters.hpsv3 import HpsV3
from rwk.adapters.imagereward import ImageReward
from rwk.adapters.mps import Mps
from rwk.adapters.orm import Orm
from rwk.adapters.pickscore import PickScore
from rwk.adapters.siglip import Siglip
from rwk.adapters.unified_reward import UnifiedReward
from rwk.adapters.vlm import tiny_vlm
from rwk.calibration.storage import Binding
from rwk.rewards.base import Reward
from rwk.rewards.bases import load_base
from rwk.rewards.configs import RewardTraining
from rwk.rewards.contract import check_reward
from rwk.rewards.data import Preference, PreferenceDataset
from rwk.rewards.examples import ordinary
from rwk.rewards.held_out import measure
from rwk.rewards.registry import load
from rwk.rewards.saving import RewardReport
from rwk.rewards.train import train_reward
from rwk.rewards.tunable import HeadKind
from rwk.rewards.tuned import Tuned, absolute


class Small:
    """A published reward at the size of its `tiny`, the same whenever it is built."""

    def __init__(self, *, device: str = "cpu") -> None:
        vars(self).update(vars(super().tiny()))  # type: ignore[misc]


class SmallPick(Small, PickScore):
    pass


class SmallHps(Small, Hpsv2):
    pass


class SmallSiglip(Small, Siglip):
    pass


class SmallClipScore(Small, ClipScore):
    pass


class SmallAesthetic(Small, AestheticV2):
    pass


class SmallImageReward(Small, ImageReward):
    pass


class SmallMps(Small, Mps):
    pass


class SmallOrm(Small, Orm):
    pass


class HalfOrm(SmallOrm):
    """In the type that it is published in."""

    def __init__(self, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.network.bfloat16()


class SmallHpsV3(Small, HpsV3):
    pass


class SmallWriter(Small, UnifiedReward):
    pass


class SmallFlat(SmallPick):
    """A score with a step in it, whose gradient is nowhere."""

    def features(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:
        return (super().features(prepared, prompts) > 0).float()

    def take_head(self, kind: HeadKind, *, probe: bool) -> nn.Module:
        super().take_head(kind, probe=probe)
        return First()


class First(nn.Module):
    """The first feature, without a scale to learn."""

    def forward(self, features: Tensor) -> Tensor:
        return features[:, 0]


class SamePick(SmallPick):
    pass


class OtherPick(SmallPick):
    """Another network of the same shape."""

    def __init__(self, *, device: str = "cpu") -> None:
        super().__init__(device=device)
        self.network.get_parameter("visual_projection.weight").data.add_(0.01)


def own(kind: type[Reward]) -> str:
    return f"{__name__}:{kind.__name__}"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a judge whose model lies in a folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("vlm")
    vlm = tiny_vlm("judge.yes_no", ("yes", "no"))
    vlm.network.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return f"judge.yes_no@{folder}"


def pairs(count: int = 24) -> tuple[PreferenceDataset, PreferenceDataset]:
    """Red is preferred to blue, whatever the prompt and the size; every fourth prompt is held out."""
    prompts = [f"{a} {b}" for a in ("a", "the") for b in ("dog", "cube", "tree", "bird")]
    rows = []
    for i in range(count):
        red, blue = (200 + i, 20, 30), (20, 30, 200 + i)
        colors = (red, blue) if i % 3 else (blue, red)
        first, second = (Image.new("RGB", (36 + i % 2 * 30, 32), color) for color in colors)
        rows.append(Preference(prompts[i % 8], first, second, float(i % 3 > 0)))
    held_out = prompts[::4]
    train = [row for row in rows if row.prompt not in held_out]
    return PreferenceDataset(train), PreferenceDataset([row for row in rows if row.prompt in held_out])


def settings(base: str, **changes: Any) -> RewardTraining:
    given = {"epochs": 4, "batch_size": 6, "micro_batch": 6, "learning_rate": 3e-3, "warmup": 0.0, "name": "taste"}
    return RewardTraining(base=base, **{**given, **changes})


def run(base: str, out: Path, *, count: int = 24, **changes: Any) -> RewardReport:
    return train_reward(settings(base, **changes), *pairs(count), out=out)


def margins(reward: Reward, count: int = 24) -> Tensor:
    """Of the held-out pairs."""
    _, valid = pairs(count)
    first, second = (
        reward.score([row[side] for row in valid], [row.prompt for row in valid]).values for side in (1, 2)
    )
    return first - second


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *[(SmallPick, "probe"), (SmallPick, "lora"), (SmallPick, "full"), (SmallHps, "lora"), (SmallSiglip, "full")],
        *[(SmallImageReward, "probe"), (SmallImageReward, "full"), (SmallAesthetic, "probe"), (SmallMps, "lora")],
        *[(SmallOrm, "lora"), ("likelihood", "lora"), ("scalar", "probe"), (SmallHpsV3, "lora")],
    ],
)
def test_every_family_learns_and_is_kept(kind: Any, mode: str, judge: str, tmp_path: Path) -> None:
    """Held-out pairs come out right, and the saved reward scores them as the trained one did."""
    head, base = (kind, judge) if isinstance(kind, str) else ("own", own(kind))
    count = 8 if kind is SmallHpsV3 else 24  # its question alone is 700 tokens
    faster = {"learning_rate": 0.03} if (kind, mode) == ("scalar", "probe") or kind is SmallHpsV3 else {}
    report = run(base, tmp_path, count=count, mode=mode, head=head, **faster)
    assert report.held_out.nll.mean < 0.6 < 0.61 < report.base.nll.mean
    reward = load(str(report.folder))
    again = measure(margins(reward, count), pairs(count)[1])
    assert again.nll.mean == pytest.approx(report.held_out.nll.mean, abs=1e-6)
    assert reward.spec.name == "taste"
    kept = load_file(report.folder / "model.safetensors")
    inside = [name for name in kept if name.startswith("base.")]
    assert bool(inside) == (mode != "probe")
    assert all(".lora_" in name for name in inside) == (mode != "full") or not inside
    assert "base.logit_scale" not in kept  # the head has it


@pytest.mark.parametrize("probe", [False, True])
@pytest.mark.parametrize("kind", [SmallPick, SmallHps, SmallClipScore, SmallSiglip, SmallImageReward, SmallAesthetic])
def test_before_training_it_orders_as_its_base(kind: type[Any], probe: bool) -> None:
    """Untrained, the log-odds are the base's scores times a number; of towers, that of their own training."""
    base: Reward = kind()
    images, prompts = ordinary(base)
    expected = base.score(images, prompts).values
    found = load_base(own(kind), probe=probe).score(images, prompts).values
    slope = (found[1] - found[0]) / (expected[1] - expected[0])
    assert slope > 0
    torch.testing.assert_close(found - found[0], slope * (expected - expected[0]), rtol=1e-3, atol=1e-5)
    if kind is SmallHps:
        assert slope == pytest.approx(1 / 0.07, rel=1e-4)


def test_broken_off_and_resumed_is_as_if_never_stopped(tmp_path: Path) -> None:
    """A run that ends after a checkpoint and is resumed comes to the weights and metrics of one without a break."""

    def stop(more: int, done: list[int] = [0]) -> None:  # noqa: B006
        done[0] += more
        if done[0] == 6:
            raise KeyboardInterrupt

    config = settings(own(SmallPick), mode="lora", checkpoint_every=4)
    with pytest.raises(KeyboardInterrupt):
        train_reward(config, *pairs(), out=tmp_path / "broken", advance=stop)
    resumed = train_reward(config, *pairs(), out=tmp_path / "broken", resume=True)
    whole = train_reward(config, *pairs(), out=tmp_path / "whole")
    one, other = (load_file(report.folder / "model.safetensors") for report in (resumed, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "broken/metrics.jsonl").read_text()


@pytest.mark.parametrize("head", ["likelihood", "scalar"])
def test_one_seed_gives_one_result(head: str, judge: str, tmp_path: Path) -> None:
    """Two runs with one seed write the same file; the trained judge keeps the contract of a reward."""
    reports = [run(judge, tmp_path / name, count=8, epochs=1, mode="lora", head=head) for name in ("one", "two")]
    one, two = (report.folder / "model.safetensors" for report in reports)
    assert one.read_bytes() == two.read_bytes()
    check_reward(load(str(reports[0].folder)))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_base_in_half_precision(mode: str, tmp_path: Path) -> None:
    """What is trained is float32, since small steps of bfloat16 are rounded away, and so is what is kept."""
    report = run(own(HalfOrm), tmp_path, mode=mode, epochs=2)
    assert {value.dtype for value in load_file(report.folder / "model.safetensors").values()} == {torch.float32}
    reward = load(str(report.folder))
    assert isinstance(reward, Tuned)
    frozen = {p.dtype for name, p in reward.module.named_parameters() if name.endswith("base_layer.weight")}
    assert frozen == ({torch.bfloat16} if mode == "lora" else set())
    assert measure(margins(reward), pairs()[1]).nll.mean == pytest.approx(report.held_out.nll.mean, rel=1e-3)


def test_a_trained_published_reward_keeps_the_contract(tmp_path: Path) -> None:
    """Gradient to pixels included."""
    report = run(own(SmallPick), tmp_path, mode="lora", learning_rate=1e-3, epochs=1)
    check_reward(load(str(report.folder)))


def test_another_base_is_refused(tmp_path: Path) -> None:
    """A base of other weights, or none, is named in one sentence; the same base under another name is taken."""
    folder = run(own(SmallPick), tmp_path, mode="lora", epochs=1).folder
    scores = margins(load(str(folder)))
    assert torch.equal(margins(load(str(folder), base=f"{__name__}:SamePick")), scores)
    with pytest.raises(ValueError, match=r"was trained on another .*OtherPick, got other weights; give the one"):
        load(str(folder), base=own(OtherPick))
    with pytest.raises(ValueError, match=r"was trained on another .*SmallSiglip, got tensors that it lacks"):
        load(str(folder), base=own(SmallSiglip))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"base": "pickscore.v1@/nowhere"}))
    with pytest.raises(ValueError, match=r"needs its base pickscore.v1@/nowhere, .* in its config.json: .* no file at"):
        load(str(folder))
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"does not hold a whole tuned reward"):
        load(str(folder))


def test_training_goes_on(tmp_path: Path) -> None:
    """From a trained reward low-rank changes go on, or are merged in mode full; the first base stays the base."""
    first = run(own(SmallPick), tmp_path / "1", mode="lora", epochs=1).folder
    before = margins(load(str(first)))
    with pytest.raises(ValueError, match=r"trained with --lora-rank 8 before, got 4; give the same"):
        run(str(first), tmp_path / "2", mode="lora", lora_rank=4)
    trained = load(str(first))
    assert isinstance(trained, Tuned)
    trained.widen()
    torch.testing.assert_close(margins(trained), before, rtol=1e-4, atol=1e-4)
    trained.save(tmp_path / "merged")
    assert torch.equal(margins(load(str(tmp_path / "merged"))), margins(trained))
    for name, start, mode in (("lora", first, "lora"), ("full", first, "full"), ("again", tmp_path / "merged", "lora")):
        report = run(str(start), tmp_path / name, mode=mode, epochs=1, learning_rate=1e-12)
        again = load(str(report.folder))
        assert isinstance(again, Tuned)
        assert again.base_name == own(SmallPick)
        found = margins(again)
        torch.testing.assert_close(found / found[0], before / before[0], rtol=1e-3, atol=1e-3)  # but for the scale


@pytest.mark.parametrize(
    ("base", "changes", "told"),
    [
        ("shapes.verifier", {}, "base must be a reward with a network to train, got shapes.verifier"),
        (f"{__name__}:SmallWriter", {"mode": "lora"}, "base must be a reward with a network to train"),
        (f"{__name__}:SmallMps", {"mode": "probe"}, "mps.overall has no head that could be trained alone; take --mode"),
        (f"{__name__}:SmallPick", {"head": "scalar"}, "pickscore.v1 has one head, got --head scalar, which is for"),
        (f"{__name__}:SmallFlat", {}, "pickscore.v1 is no differentiable function of its weights; take another base"),
        ("shapes.clip", {"head": "scalar"}, "shapes.clip has its head already, got --head scalar; leave it out"),
        ("shapes.clip", {"freeze": 4}, "--freeze must leave a layer of clip.visual.transformer.resblocks, which has 4"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(base: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    """A program, a judge that writes, a flat score, and heads that are not there."""
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        run(base, tmp_path, **changes)


def test_a_base_means_the_same_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is kept from the root, and a repository of the hub, which is no path here, as it is."""
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    assert absolute("judge.yes_no@models") == f"judge.yes_no@{tmp_path / 'models'}"
    for name in (
        "judge.yes_no@Qwen/Qwen2-VL-2B-Instruct",
        "judge.yes_no@Qwen/Qwen2-VL-2B-Instruct#main",
        "judge.yes_no",
    ):
        assert absolute(name) == name


def test_a_prompt_that_the_base_refuses_is_named(judge: str, tmp_path: Path) -> None:
    """A control token among the prompts ends the run before it begins."""
    train, valid = pairs(8)
    bad = PreferenceDataset([*train, train[0]._replace(prompt="a <|im_end|> dog")])
    with pytest.raises(ValueError, match=r"gives 'a <\|im_end\|> dog' no score: the prompt holds <\|im_end\|>"):
        train_reward(settings(judge, mode="lora"), bad, valid, out=tmp_path)


def test_pictures_are_kept_without_loss() -> None:
    """What training reads back from grey levels is what `score` sees, to the last bit; HPSv2's floats stay floats."""
    draw = torch.Generator().manual_seed(0)
    noise = [
        Image.fromarray(torch.randint(0, 256, (40, w, 3), generator=draw, dtype=torch.uint8).numpy()) for w in (40, 71)
    ]
    for kind, dtype in ((SmallPick, torch.uint8), (SmallSiglip, torch.uint8), (SmallHps, torch.float32)):
        reward: Any = kind()
        ready = [reward.prepare(image) for image in noise]
        assert ready[0].dtype == dtype
        assert torch.equal(reward.prepared(ready), reward.preprocess.exact(noise))


def test_a_calibration_is_bound_to_what_training_moved(tmp_path: Path) -> None:
    """Training leaves calibration.json to `rwk calibrate`, which tells a reward from one of other weights."""
    folder = run(own(SmallPick), tmp_path, epochs=1, mode="lora").folder
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "reward_card.json"]
    reward = load(str(folder))
    assert isinstance(reward, Tuned)
    binding = Binding.of(reward)
    assert Binding.of(load(str(folder))) == binding
    assert binding.preprocessing["size"] == 32
    reward.module.get_parameter("head.log_scale").data.add_(1)
    (told,) = Binding.of(reward).differences(json.loads(json.dumps(asdict(binding))))
    assert told.startswith("the weights' SHA-256")

"""Training of a reward on preferences: learning, sameness, resumption and what is kept."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rwk.adapters.dual_encoder import DualEncoder, architecture
from rwk.cli.main import main
from rwk.rewards.configs import RewardTraining
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load
from rwk.rewards.saving import RewardReport, keep
from rwk.rewards.train import train_reward
from rwk.rewards.trainable import Preprocessing

COLORS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "black": (20, 20, 20)}
WORDS = [*COLORS, "a", "the", "one", "some", "very", "thing", "picture", "patch", "of"]


def toy(folder: Path, *, pairs: int = 160, noise: float = 0.0) -> Path:
    """Preferences for the picture whose colour the prompt names."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for color, value in COLORS.items():
        for copy in range(4):
            near = tuple(min(255, max(0, channel + rng.randint(-20, 20))) for channel in value)
            Image.new("RGB", (24, 24), near).save(folder / f"{color}-{copy}.png")
    prompts = [
        f"{a} {b} {c}" for a in ("a", "the", "one", "some") for b in COLORS for c in ("thing", "picture", "patch")
    ]
    rows = []
    for index in range(pairs):
        prompt = prompts[index % len(prompts)]
        right = prompt.split()[1]
        wrong = rng.choice([color for color in COLORS if color != right])
        names = [f"{color}-{rng.randrange(4)}.png" for color in (right, wrong)]
        p_first = float(rng.random() >= noise)
        if rng.random() < 0.5:
            names, p_first = names[::-1], 1 - p_first
        rows.append({"prompt": prompt, "first": names[0], "second": names[1], "p_first": p_first})
    path = folder / "preferences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def base(folder: Path) -> str:
    """A small dual encoder with random weights, saved."""
    made = architecture(WORDS, image_size=16, patch=8, width=32, layers=2, context=8)
    DualEncoder(made, Preprocessing(16), seed=3).save(folder)
    return str(folder)


def settings(tmp_path: Path, **changes: Any) -> RewardTraining:
    values: dict[str, Any] = {"base": base(tmp_path / "base"), "epochs": 6, "batch_size": 16, "learning_rate": 3e-3}
    return RewardTraining(**values | changes)


def run(tmp_path: Path, config: RewardTraining, name: str = "run", **options: Any) -> RewardReport:
    data = PreferenceDataset.read(toy(tmp_path / "data"))
    train, valid = data.split(held_out=0.25, seed=0)
    return train_reward(config, train, valid, out=tmp_path / name, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def differs(first: Path, second: Path) -> float:
    """Largest difference between the weights of two rewards."""
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def assert_same_but_for_rounding(tmp_path: Path, first: str, second: str) -> None:
    """Two runs moved the scores, and moved them alike. Weights would not do: Adam makes much of a gradient near 0."""
    images = [Image.open(path) for path in sorted((tmp_path / "data").glob("*.png"))]
    folders = [tmp_path / "base", tmp_path / first / "reward", tmp_path / second / "reward"]
    start, one, other = (load(str(folder)).score(images, ["a red thing"] * len(images)).values for folder in folders)
    moved = (one - start).abs().max()
    assert moved > 0.01
    assert (one - other).abs().max() < 0.01 * moved


@pytest.mark.parametrize("mode", ["probe", "lora", "full"])
def test_every_mode_learns(tmp_path: Path, mode: str) -> None:
    """From random weights every mode gets held-out pairs right that the base does not, and moves what it says."""
    report = run(tmp_path, settings(tmp_path, mode=mode, epochs=12))
    assert report.base.accuracy is not None
    assert report.held_out.accuracy is not None
    assert report.held_out.accuracy.mean > 0.75 > report.base.accuracy.mean
    assert report.held_out.nll.mean < 0.6 < 0.67 < report.base.nll.mean
    before, after = weights(tmp_path / "base"), weights(report.folder)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("head.") for name in moved)
    assert any(name.startswith("clip.") for name in moved) == (mode != "probe")
    assert any("attn" in name for name in moved) == (mode == "full")


def test_one_seed_gives_one_result(tmp_path: Path) -> None:
    """Two runs with one seed write the same weights and metrics; another seed writes others."""
    config = settings(tmp_path, mode="full", epochs=2)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run(tmp_path, config, name, seed=seed)
    assert differs(tmp_path / "one" / "reward", tmp_path / "two" / "reward") == 0
    assert (tmp_path / "one" / "metrics.jsonl").read_text() == (tmp_path / "two" / "metrics.jsonl").read_text()
    assert differs(tmp_path / "one" / "reward", tmp_path / "three" / "reward") > 0


@pytest.mark.parametrize("mode", ["probe", "full"])
def test_gradient_accumulation_changes_nothing(tmp_path: Path, mode: str) -> None:
    """Eight pairs at once and eight times one pair are the same step, up to rounding."""
    for name, micro in (("whole", 8), ("parts", 1)):
        config = settings(tmp_path, mode=mode, epochs=1, batch_size=8, micro_batch=micro, learning_rate=1e-3)
        run(tmp_path, config, name)
    assert_same_but_for_rounding(tmp_path, "whole", "parts")


def test_stops_early_and_keeps_the_best(tmp_path: Path) -> None:
    """Where the held-out loss rises, training stops after `patience` looks, and the weights before are kept."""
    config = settings(tmp_path, mode="full", epochs=40, patience=2, learning_rate=0.05, warmup=0.0)
    report = run(tmp_path, config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["nll"] for line in lines}
    assert losses[report.step] == min(losses.values())
    assert report.steps == lines[-1]["step"] < 8 * 40
    assert len([step for step in losses if step > report.step]) == 2
    assert report.held_out.nll.mean == pytest.approx(losses[report.step], rel=1e-4)


def test_what_is_saved_scores_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained reward is found by its name, scores as it was measured, and brings its temperature and card."""
    monkeypatch.setenv("RWK_HOME", str(tmp_path / "home"))
    data = PreferenceDataset.read(toy(tmp_path / "data"))
    train, valid = data.split(held_out=0.25, seed=0)
    report = train_reward(settings(tmp_path, mode="lora", name="mine"), train, valid, out=tmp_path / "run")
    assert {"config.json", "metrics.jsonl", "metrics.svg"} < {path.name for path in (tmp_path / "run").iterdir()}
    kept = keep(report.folder, "mine")
    assert sorted(path.name for path in kept.iterdir()) == [
        "config.json",
        "model.safetensors",
        "reward_card.json",
    ]
    reward = load("mine")
    assert reward.spec.name == "mine"
    first, second = (
        reward.score([Image.open(row[side]) for row in valid], [row.prompt for row in valid]).values for side in (1, 2)
    )
    right = ((first > second) == torch.tensor([row.p_first == 1 for row in valid])).float().mean().item()
    card = json.loads((kept / "reward_card.json").read_text())
    assert card["held_out"]["accuracy"]["mean"] == pytest.approx(right)
    assert card["held_out"]["accuracy"]["clusters"] == len({row.prompt for row in valid})
    assert card["data"]["train"] == {
        "name": data.name,
        "pairs": len(train),
        "prompts": len({row.prompt for row in train}),
        "sha256": train.digest(),
    }
    assert card["held_out"]["temperature"]["status"] == "fitted"
    assert card["held_out"]["temperature"]["n"] == len(valid)
    again = keep(report.folder, "mine")
    assert again == kept
    unkept = load(str(report.folder)).score([Image.open(row.first) for row in valid], [row.prompt for row in valid])
    assert torch.equal(unkept.values, first)


def test_a_diverging_run_says_so(tmp_path: Path) -> None:
    """A loss that is not finite ends the run in one sentence that names the step and what to turn."""
    with pytest.raises(RunFailed, match=r"loss of step \d+ is nan; lower --learning-rate"):
        run(tmp_path, settings(tmp_path, mode="full", learning_rate=1e30, warmup=0.0))


def test_an_unreadable_picture_is_named_by_its_line(tmp_path: Path) -> None:
    """A file that is no image ends the run before it begins, with the line of its row."""
    path = toy(tmp_path / "data")
    row = json.loads(path.read_text().splitlines()[6])
    (path.parent / row["second"]).write_bytes(b"no image")
    places = [n for n, line in enumerate(path.read_text().splitlines(), 1) if row["second"] in line]
    train, valid = PreferenceDataset.read(path).split(held_out=0.25, seed=0)
    with pytest.raises(ValueError, match=r"preferences\.jsonl line \d+: an image cannot be decoded") as caught:
        train_reward(settings(tmp_path), train, valid, out=tmp_path / "run")
    assert any(f"line {place}:" in str(caught.value) for place in places)


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    """A checkpoint of other settings or data is not gone on from, and the difference is named."""
    run(tmp_path, settings(tmp_path, epochs=1))
    with pytest.raises(ValueError, match="another epochs, learning_rate"):
        run(tmp_path, settings(tmp_path, epochs=2, learning_rate=1e-4), resume=True)
    with pytest.raises(ValueError, match="another seed"):
        run(tmp_path, settings(tmp_path, epochs=1), resume=True, seed=1)


COMMAND = [sys.executable, "-m", "rwk.cli"]


def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"RWK_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def call(tmp_path: Path, out: str, *more: str) -> list[str]:
    """A command line that trains for a moment."""
    where = ["--out", str(tmp_path / out), "--name", out, "--base", base(tmp_path / "base"), "--json"]
    steps = ["--epochs", "4", "--patience", "99", "--batch-size", "16", "--checkpoint-every", "7"]
    return ["train-reward", str(toy(tmp_path / "data")), *where, *steps, "--learning-rate", "1e-3", *more]


def called(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The document of a command line that runs in this process."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    document: dict[str, Any] = json.loads(printed.out)
    return document


def test_killed_and_resumed_is_as_if_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`kill -9` after a checkpoint, then --resume: weights, metrics and document are those of a run without a break."""
    begun = subprocess.Popen(
        [*COMMAND, *call(tmp_path, "broken")], env=environment(tmp_path), stdout=subprocess.DEVNULL
    )
    checkpoint = tmp_path / "broken" / "checkpoint.safetensors"
    while not checkpoint.exists():
        assert begun.poll() is None
        time.sleep(0.002)
    os.kill(begun.pid, signal.SIGKILL)
    assert begun.wait() == -signal.SIGKILL
    assert not (tmp_path / "broken" / "reward").exists()
    monkeypatch.setenv("RWK_HOME", str(tmp_path / "home"))
    resumed = called(call(tmp_path, "broken", "--resume"), capsys)
    whole = called(call(tmp_path, "whole"), capsys)
    assert differs(tmp_path / "whole" / "reward", tmp_path / "broken" / "reward") == 0
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "broken" / "metrics.jsonl").read_text()
    assert resumed["held_out"] == whole["held_out"]
    assert resumed["steps"] == whole["steps"] == 4 * 8
    assert (tmp_path / "home" / "rewards" / "broken" / "config.json").is_file()


def test_two_processes_train_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two processes (gloo) share the pairs of a step and come to the scores of one process, up to rounding."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "rwk.cli"]
    short = ("--epochs", "1", "--mode", "full")
    done = subprocess.run(
        [*launch, *call(tmp_path, "two", *short)], env=environment(tmp_path), capture_output=True, text=True
    )
    # Judged by what was written: gloo now and then aborts at interpreter exit, when all is done.
    assert json.loads(done.stdout)["processes"] == 2, done.stderr
    card = json.loads((tmp_path / "two" / "reward" / "reward_card.json").read_text())
    assert card["processes"] == 2
    monkeypatch.setenv("RWK_HOME", str(tmp_path / "home"))
    called(call(tmp_path, "one", *short), capsys)
    assert_same_but_for_rounding(tmp_path, "one", "two")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--base", "colorfulness"], "base must be a reward with a network to train, got colorfulness"),
        (["--name", "contrast"], "name of its own, got 'contrast'"),
        (["--held-out", "1.5"], "--held-out must lie between 0 and 1, got 1.5"),
        (["--mode", "probe", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    """What cannot be trained is said in one line on stderr, with exit code 2 and nothing on stdout."""
    with pytest.raises(SystemExit) as ended:
        main(call(tmp_path, "out", *more))
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert expected in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("geneval.strict", "base must be a reward with a network to train, got geneval.strict (Geneval)"),
        ("dual_encoder", "base must be a reward, got dual_encoder, a kind of network without weights"),
        ("0.5*contrast+noise", "unknown reward '0.5*contrast+noise'"),
        ("nothing.v1", "unknown reward 'nothing.v1'"),
        ("scratch:pickscore.v1", "scratch:REWARD must name a reward that is kept whole"),
        ("timm:resnte18", "timm knows no model 'resnte18'"),
        ("timm:resnet18@none.pth", "timm:resnet18@FILE names no file, got none.pth"),
        ("open_clip:ViT-Z", "open_clip:NAME must be a model of open_clip"),
        ("open_clip:ViT-B-32/mine", "open_clip model ViT-B-32 has no weights 'mine'"),
        ("open_clip:ViT-B-32@none.safetensors", "open_clip:ViT-B-32@FILE names no file, got none.safetensors"),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused_before_the_data(
    rwk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, base: str, expected: str
) -> None:
    """No preferences are made or read for a base that no training can start from."""
    asked: list[Any] = []
    monkeypatch.setattr("rwk.cli.train_reward.preferences", lambda *given: asked.append(given))
    ended = rwk("train-reward", "--base", base)
    assert (ended.code, ended.out, asked) == (2, "", [])
    assert expected in ended.err
    assert rwk("train-reward", "--base", "shapes.clip").code == 1  # there are no preferences, but they are asked for
    assert len(asked) == 1

"""A floor of deviations by the noise that `rwk probe` found: measured, kept with the card, and put to use."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rwk.adapters.shapes_scenes import pictures
from rwk.calibration.card import RewardCard, card_of
from rwk.calibration.domain import Domain
from rwk.calibration.probe import Sizes, Subject
from rwk.calibration.probe_agreement import agreement, noise
from rwk.calibration.retest_noise import retest_noise
from rwk.policy_opt.advantage import Weighted, floors_of
from rwk.policy_opt.calibrated import with_card
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS, GRPO = toy["Toy"], toy["Brightness"], toy["PROMPTS"], toy["GRPO"]
COLOURS, SHAPES = ("red", "blue", "green", "black"), ("circle", "square", "cross")
ASKED = [f"a photo of a {colour} {shape}" for colour in COLOURS for shape in SHAPES]


def probed(name: str) -> None:
    """Keeps a card of a reward of the world, of four pictures of each prompt, two of which show another thing."""
    texts = [prompt for prompt in ASKED for _ in range(4)]
    shown = [ASKED[(place // 4 + place % 2) % len(ASKED)] for place in range(len(texts))]
    domain = Domain("in domain", pictures(shown, seed=0), texts)
    subject = Subject(load(name), [domain], Sizes(edited=len(texts), draws=10))
    RewardCard.build(subject, list(agreement(subject)), sources={}).save(card_of(name))


def test_noise_by_hand() -> None:
    """Half the variance of the differences within a prompt, at its root; a shift of all of a prompt is none."""
    first = np.array([1.0, 2.0, 5.0, 5.0, 7.0])
    second = np.array([2.0, 1.0, 9.0, 9.0, 0.0])  # the last prompt has one image alone
    found = noise(first, second, np.array([0, 0, 1, 1, 2]))
    assert found.mean == pytest.approx(math.sqrt((2.0 / 2 + 0.0) / 2))
    assert found.clusters == 2


def test_the_card_tells_the_noise_of_a_reward_of_the_world() -> None:
    """The truth has none; the truth with noise of 0.2, another for every picture, has 0.2."""
    for name, expected in (("shapes.verifier", 0.0), ("shapes.noisy", 0.2)):
        probed(name)
        assert retest_noise(name, load(name)) == pytest.approx(expected, rel=0.25, abs=1e-6)
    parts = [Weighted(name, load(name)) for name in ("shapes.verifier", "shapes.noisy")]
    known = with_card(parts, temperature=False, noise=True)
    assert floors_of(known, ("card",), min_std=0.01) == [0.01, known[1].noise]
    assert floors_of(known, (0.3, "card"), min_std=0.01) == [0.3, known[1].noise]
    with pytest.raises(ValueError, match="std_floor card needs the noise of shapes.verifier, got none"):
        floors_of(parts, ("card",), min_std=0.01)


def test_a_card_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """None, one of another reward, and one that was made without noise: each in a sentence that helps."""
    reward = load("shapes.noisy")
    with pytest.raises(ValueError, match=r"needs a reward card for its noise, got none in .*run `rwk probe shapes.n"):
        retest_noise("shapes.noisy", reward)
    probed("shapes.noisy")
    with pytest.raises(ValueError, match="needs a card of its own, got one in .* with the code"):
        retest_noise("shapes.noisy", load("shapes.verifier"))
    path = card_of("shapes.noisy")
    document = json.loads(path.read_text())
    for level in document["probes"]["structure.test_retest"]["levels"]:
        level["measures"] = {}
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="needs a card that tells its noise, got none of it"):
        retest_noise("shapes.noisy", reward)
    with pytest.raises(ValueError, match="std_floor must be at least 0, or card, got -1"):
        Grpo(std_floor=(-1.0,))


def test_a_single_reward_is_held_to_its_floor(tmp_path: Path) -> None:
    """Advantages are over the floor where groups differ by less, of any weight, and dynamic takes them for equal."""
    noisy = [Weighted("bright", Brightness(), noise=10.0)]
    found = {}
    heavy = [noisy[0]._replace(weight=-2.0)]
    for name, floor, rewards in (("without", (), noisy), ("card", ("card",), noisy), ("heavy", ("card",), heavy)):
        grpo(replace(GRPO, steps=1, std_floor=floor, save_every=0), Toy(), rewards, PROMPTS, out=tmp_path / name)
        found[name] = read(tmp_path / name / "metrics.jsonl")[0]
    assert found["card"]["advantage"] < 0.05 * found["without"]["advantage"]
    assert found["heavy"]["advantage"] == pytest.approx(found["card"]["advantage"])
    assert found["card"]["reward/bright/mean"] == found["without"]["reward/bright/mean"]
    config = replace(GRPO, steps=1, std_floor=("card",), resampling="dynamic", max_draws=2, save_every=0)
    with pytest.raises(RunFailed, match="no group differs by more than min_std or std_floor"):
        grpo(config, Toy(), noisy, PROMPTS, out=tmp_path / "dynamic")
    row = read(tmp_path / "dynamic" / "metrics.jsonl")[0]
    assert (row["draws"], row["groups"], row["grad_norm"]) == (2, 0, 0)


def test_the_command_takes_it(tmp_path: Path, rwk: Any) -> None:
    """`--std-floor card` writes the noise down that it took."""
    probed("shapes.noisy")
    small = ["--prompt-count", "16", "--eval-prompts", "2", "--eval-images", "2", "--group-size", "2"]
    words = ["optimize", "--algo", "grpo", *small, "--steps", "1", "--prompts-per-step", "2", "--kl-every", "0"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    done = rwk(*words, "--reward", "shapes.noisy", "--std-floor", "card", "--out", "run")
    torch.set_num_threads(threads)
    assert done.code == 0, done.err
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["noises"] == {"shapes.noisy": retest_noise("shapes.noisy", load("shapes.noisy"))}
    assert kept["algorithm"]["std_floor"] == ["card"]

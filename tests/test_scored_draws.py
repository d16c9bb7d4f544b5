"""Rewards that score while the next images are drawn: the same run to the bit, and a real overlap."""

from __future__ import annotations

import runpy
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rwk.policy_opt.advantage import Weighted, score_all
from rwk.policy_opt.configs import Rft
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.generator import Rollout
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.rebel import rebel
from rwk.policy_opt.rft import rft
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.scored_draws import scored
from rwk.rewards.registry import load
from rwk.rewards.server import Server

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS, GRPO = (toy[name] for name in ("Toy", "Brightness", "PROMPTS", "GRPO"))
DPO, REBEL = toy["DPO"], toy["REBEL"]
RFT = Rft(group_size=4, batch_size=8, prompts_per_draw=5, epochs=2, rounds=2, learning_rate=1e-2, seed=3)
SERIAL = replace(GRPO, prompts_per_draw=2, kl_every=0)
PATIENCE = 30.0


def weights(generator: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()])


class Watching(Toy):  # type: ignore[misc, valid-type]
    """Counts its draws, and tells who waits for one."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = 0
        self.turn = threading.Condition()

    def sample(
        self, prompts: Sequence[str], *, per_prompt: int = 1, seed: int, sampling: Sampling | None = None
    ) -> Rollout:
        with self.turn:
            self.draws += 1
            self.turn.notify_all()
        return super().sample(prompts, per_prompt=per_prompt, seed=seed, sampling=sampling)


class Patient(Brightness):  # type: ignore[misc, valid-type]
    """Scores a draw once the next has begun, but for the last of a step."""

    def __init__(self, generator: Watching, of: int = 3) -> None:
        super().__init__()
        self.generator, self.calls, self.of = generator, 0, of
        self.threads: set[str] = set()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Any:
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        due = self.calls + (self.calls % self.of != 0)
        with self.generator.turn:
            assert self.generator.turn.wait_for(lambda: self.generator.draws >= due, timeout=PATIENCE)
        return super()._score(images, prompts)


def test_the_next_is_drawn_meanwhile(tmp_path: Path) -> None:
    """A reward that waits for the next draw gets it, on a thread of its own, and the run is the serial one."""
    serial = Toy()
    grpo(SERIAL, serial, [Weighted("bright", Brightness())], PROMPTS, out=tmp_path / "serial")
    generator = Watching()
    reward = Patient(generator)
    config = replace(SERIAL, score_meanwhile=True)
    trained = grpo(config, generator, [Weighted("bright", reward)], PROMPTS, out=tmp_path / "meanwhile")
    assert torch.equal(weights(generator), weights(serial))
    assert (generator.draws, reward.calls) == (24, 24)
    assert threading.main_thread().name not in reward.threads
    rows = [
        [{name: value for name, value in row.items() if "seconds" not in name} for row in read(path / "metrics.jsonl")]
        for path in (tmp_path / "serial", trained.metrics.parent)
    ]
    assert rows[0] == rows[1]


class Slow(Brightness):  # type: ignore[misc, valid-type]
    """Takes two seconds for its first images."""

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Any:
        time.sleep(0 if self.scored else 2)
        return super()._score(images, prompts)


def test_seconds_of_drawing_are_without_those_of_scoring(tmp_path: Path) -> None:
    """What a step waited for its rewards is told apart, and counted once."""
    grpo(replace(SERIAL, steps=1), Toy(), [Weighted("slow", Slow())], PROMPTS, out=tmp_path)
    (row,) = read(tmp_path / "metrics.jsonl")
    assert row["seconds_score"] >= 2 > row["seconds_sample"]
    assert row["seconds_score"] + row["seconds_sample"] <= row["seconds"]


def test_a_step_is_drawn_by_halves(tmp_path: Path) -> None:
    """Where nobody says how many prompts are drawn for at once, scores overlap too, and the run is the same."""

    config = replace(SERIAL, prompts_per_draw=0, steps=2)
    serial, found = Toy(), Watching()
    grpo(config, serial, [Weighted("bright", Brightness())], PROMPTS, out=tmp_path / "serial")
    reward = Weighted("bright", Patient(found, of=2))
    grpo(replace(config, score_meanwhile=True), found, [reward], PROMPTS, out=tmp_path / "meanwhile")
    assert found.draws == 4
    torch.testing.assert_close(weights(found), weights(serial), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [{"prompts_per_draw": 6}, {"prompts_per_step": 1}])
def test_nothing_to_overlap_is_refused(change: dict[str, int], tmp_path: Path) -> None:
    """Scores cannot overlap with the one draw of a step, and that is said before it."""
    config = replace(SERIAL, score_meanwhile=True, prompts_per_draw=0)
    with pytest.raises(ValueError, match="score_meanwhile needs two draws of a step in each process, got"):
        grpo(replace(config, **change), Toy(), [Weighted("bright", Brightness())], PROMPTS, out=tmp_path)


@pytest.mark.parametrize(("run", "config"), [(dpo, DPO), (rft, RFT)], ids=["dpo", "rft"])
def test_rounds_are_the_same(tmp_path: Path, run: Any, config: Any) -> None:
    """A round draws in parts; what comes of it is the same whether they are scored meanwhile or not."""
    found = []
    for meanwhile in (False, True):
        generator = Toy()
        changed = replace(config, score_meanwhile=meanwhile)
        run(changed, generator, [Weighted("bright", Brightness())], PROMPTS, out=tmp_path / str(meanwhile))
        found.append(weights(generator))
    assert torch.equal(*found)


@pytest.mark.parametrize(("run", "config"), [(dpo, DPO), (rebel, REBEL), (rft, RFT)], ids=["dpo", "rebel", "rft"])
def test_one_draw_of_a_round_is_made_by_halves(tmp_path: Path, run: Any, config: Any) -> None:
    """Its first half is scored while the second is drawn, and the run is the same."""
    config = replace(config, prompts_per_round=8, prompts_per_draw=64, kl_every=0)  # halves of 16, scored at once
    serial, found = Toy(), Watching()
    run(config, serial, [Weighted("bright", Brightness())], PROMPTS, out=tmp_path / "serial")
    reward = Weighted("bright", Patient(found, of=2))
    run(replace(config, score_meanwhile=True), found, [reward], PROMPTS, out=tmp_path / "meanwhile")
    assert found.draws == 2 * config.rounds
    torch.testing.assert_close(weights(found), weights(serial), rtol=0, atol=1e-5)
    files = [sorted((tmp_path / name).glob("round-*/draws/*")) for name in ("serial", "meanwhile")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert torch.equal(load_file(files[0][0])["tokens"], load_file(files[1][0])["tokens"])


def test_a_round_of_one_prompt_is_refused(tmp_path: Path) -> None:
    """Nothing can be drawn while its images are scored, and that is said before they are drawn."""
    config = replace(DPO, score_meanwhile=True, prompts_per_round=1)
    with pytest.raises(ValueError, match="score_meanwhile needs two prompts of a round in a process, got 1 for 1;"):
        dpo(config, Toy(), [Weighted("bright", Brightness())], PROMPTS, out=tmp_path / "one")
    config = replace(config, prompts_per_round=2, prompts_per_draw=1, rounds=1, batch_size=1)
    dpo(config, Toy(), [Weighted("bright", Brightness())], PROMPTS, out=tmp_path / "two")


def test_served_rewards_score_meanwhile(tmp_path: Path) -> None:
    """A reward by its address is asked for one draw while the next is made, and gives the scores of the reward."""
    serial, found = Toy(), Watching()
    with Server({"bright": Brightness(), "patient": Patient(found)}).running() as server:
        for generator, name in ((serial, "bright"), (found, "patient")):
            reward = Weighted(name, load(f"{server.url}/{name}"))
            config = replace(SERIAL, steps=2, score_meanwhile=generator is found)
            grpo(config, generator, [reward], PROMPTS, out=tmp_path / name)
    assert torch.equal(weights(found), weights(serial))


def test_a_failing_reward_ends_the_run() -> None:
    """What a reward raises on its thread is raised where its scores are waited for."""

    class Failing(Brightness):  # type: ignore[misc, valid-type]
        def _score(self, images: list[Image.Image], prompts: list[str]) -> Any:
            raise RuntimeError("no reward today")

    generator = Toy()
    rollout = generator.sample(PROMPTS[:1], seed=0)
    draws = [(rollout, generator.levels(rollout.tokens))] * 2
    with pytest.raises(RuntimeError, match="no reward today"):
        list(scored(draws, [Weighted("failing", Failing())], meanwhile=True))


def test_rewards_are_asked_by_pixels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `from_pixels` no image is made for rewards of pixels, and scores are as near as the reward says."""
    levels = torch.randint(256, [40, 3, 48, 48], generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    names, prompts = ["colorfulness", "contrast", "shapes.clip"], ["a red circle"] * len(levels)
    group = torch.zeros(len(levels), dtype=torch.long)
    rewards = [Weighted(name, load(name)) for name in names]
    expected = score_all(rewards, levels, prompts, group).scores
    with monkeypatch.context() as patch:
        patch.setattr("rwk.policy_opt.advantage.as_images", None)
        found = score_all(rewards, levels, prompts, group, from_pixels=True).scores
    for column, part in enumerate(rewards):
        off = (found[:, column] - expected[:, column]).abs()
        assert (off <= part.reward.tolerance + 1e-5 * expected[:, column].abs()).all(), part.name
    mixed = [Weighted("shapes.verifier", load("shapes.verifier")), rewards[0]]
    ways = [score_all(mixed, levels, prompts, group, from_pixels=asked).scores for asked in (True, False)]
    assert torch.equal(*ways)


@pytest.mark.parametrize("config", [replace(GRPO, kl_every=0), RFT])
def test_pixels_learn_what_images_teach(config: Any, tmp_path: Path) -> None:
    """A run whose reward is asked by pixels is the run whose reward is asked by images, where both score alike."""
    found = []
    for from_pixels in (False, True):
        generator, reward = Toy(), Weighted("contrast", load("contrast"))
        learn = rft if config is RFT else grpo
        learn(replace(config, from_pixels=from_pixels), generator, [reward], PROMPTS, out=tmp_path / str(from_pixels))
        found.append(weights(generator))
    assert torch.allclose(*found, atol=1e-6)
    assert not torch.equal(found[0], weights(Toy()))


def test_parts_are_drawn_like_the_whole(tmp_path: Path) -> None:
    """The images of a step do not depend on how many prompts are drawn for at once."""
    found = []
    for size in (0, 4):
        generator = Toy()
        config = replace(SERIAL, prompts_per_draw=size, steps=2)
        grpo(config, generator, [Weighted("bright", Brightness())], PROMPTS, out=tmp_path / str(size))
        found.append(weights(generator))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)

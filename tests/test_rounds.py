"""Rounds of one run: its learning rate, its end by the clock, and its end where nothing is left to learn."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.artist import Artist
from rwk.policy_opt.configs import Rft
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.policy import World
from rwk.policy_opt.rft import rft

SCRIPT = Path(__file__).with_name("rounds_case.py")
case = runpy.run_path(str(SCRIPT))
toy = case["toy"]
Toy, Brightness, PROMPTS = toy["Toy"], toy["Brightness"], toy["PROMPTS"]
BRIGHT = [Weighted("bright", Brightness())]
DPO = replace(toy["DPO"], warmup=8, schedule="linear")
RFT = Rft(
    group_size=4,
    batch_size=8,
    prompts_per_draw=5,
    epochs=2,
    rounds=2,
    learning_rate=1e-2,
    save_every=2,
    warmup=8,
    schedule="linear",
)
RATES = [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 3 / 4, 2 / 4, 1 / 4]
"""Shares of the peak in two rounds of six updates: eight rise, and four fall to 0 at the end."""


def weights(generator: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()])


def rates(folder: Path) -> list[float]:
    return [row["learning_rate"] for row in read(folder / "metrics.jsonl")]


def interrupted(at: int) -> Any:
    def progress(step: int, total: int, row: dict[str, Any]) -> None:
        if step == at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(("learn", "config"), [(dpo, DPO), (rft, RFT)], ids=["dpo", "rft"])
def test_learning_rate_goes_by_the_run(tmp_path: Path, learn: Any, config: Any) -> None:
    """It rises and falls once, over the updates of all rounds; a run that was interrupted takes the same."""
    whole, parts = Toy(), Toy()
    learn(config, whole, BRIGHT, PROMPTS, out=tmp_path / "whole")
    assert rates(tmp_path / "whole") == pytest.approx([1e-2 * share for share in RATES])
    with pytest.raises(KeyboardInterrupt):
        learn(config, Toy(), BRIGHT, PROMPTS, out=tmp_path / "cut", progress=interrupted(9))
    learn(config, parts, BRIGHT, PROMPTS, out=tmp_path / "cut", resume=True)
    assert rates(tmp_path / "cut") == rates(tmp_path / "whole")
    assert torch.equal(weights(parts), weights(whole))


def test_learning_rate_where_rounds_differ(tmp_path: Path) -> None:
    """What is to come counts as many updates a round as the present one makes, so the fall ends with the last round."""
    config = replace(case["SOLVED"], rounds=3, schedule="linear")
    dpo(config, Toy(), [Weighted("bright", case["BrightEnough"]())], PROMPTS, out=tmp_path)
    lengths = [row["pairs"] for row in read(tmp_path / "metrics.jsonl") if "round" in row]
    assert [2 * -(-pairs // 8) for pairs in lengths] == [4, 2, 2]  # of 12, of 4 + 2 * 2, of 6 + 2
    assert rates(tmp_path) == pytest.approx(
        [3e-2 * share for share in (1, 11 / 12, 10 / 12, 9 / 12, 4 / 8, 3 / 8, 2 / 8, 1 / 8)]
    )


def test_ends_where_all_is_solved(tmp_path: Path) -> None:
    """A later round without a pair ends the run with an alarm, counts as drawn, and keeps what was learnt."""
    generator, told = Toy(), []
    trained = case["run"](
        tmp_path, "solved", generator, progress=lambda step, total, row: told.append((step, total, row))
    )
    rows = read(trained.metrics)
    last = rows[-1]
    rounds = [row["round"] for row in rows if "round" in row]
    assert 2 < len(rounds) < 8
    assert rounds == list(range(1, len(rounds) + 1))
    assert [row["step"] for row in rows] == [*range(1, trained.steps + 1), trained.steps]
    assert "loss" not in last
    assert (last["pairs"], last["reward/bright/mean"]) == (0, 1.0)
    assert last["alarms"][0].startswith(f"round {len(rounds)} found no pair among 96 images in groups of 4")
    assert told[-1][:2] == (trained.steps, trained.steps)
    assert told[-1][2]["alarms"] == last["alarms"]
    assert trained.images_sampled == trained.reward_forwards == 96 * len(rounds)
    assert torch.equal(weights(Toy.from_folder(trained.generator)), weights(generator))
    held = trained.metrics.read_text()
    for _ in range(2):
        again = Toy()
        resumed = case["run"](tmp_path, "solved", again, resume=True)
        assert torch.equal(weights(again), weights(generator))
        assert replace(resumed, seconds=0) == replace(trained, seconds=0)
        assert trained.metrics.read_text() == held


def test_solved_run_that_was_interrupted(tmp_path: Path) -> None:
    """It ends as one that was left alone, with the draws that found no pair made once."""
    whole = case["run"](tmp_path / "whole", "solved")
    with pytest.raises(KeyboardInterrupt):
        case["run"](tmp_path / "cut", "solved", progress=interrupted(whole.steps - 1))
    cut = case["run"](tmp_path / "cut", "solved", resume=True)
    one, two = (load_file(trained.generator / "model.safetensors") for trained in (whole, cut))
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [
        [{key: value for key, value in row.items() if "seconds" not in key} for row in read(trained.metrics)]
        for trained in (whole, cut)
    ]
    assert rows[0] == rows[1]


class Breaks(Brightness):  # type: ignore[misc, valid-type]
    """Brightness of the images that it is shown first, and then a kill."""

    def _score(self, images: list[Any], prompts: list[str]) -> Any:
        if self.scored >= 20:  # a draw
            raise KeyboardInterrupt
        return super()._score(images, prompts)


def test_draws_of_another_run_are_not_taken(tmp_path: Path) -> None:
    """A folder whose run broke off in its first draws is taken: only a run that goes on with it learns from them."""
    with pytest.raises(KeyboardInterrupt):
        dpo(DPO, Toy(), [Weighted("bright", Breaks())], PROMPTS, out=tmp_path)
    assert len(list((tmp_path / "round-1" / "draws").iterdir())) == 1
    with pytest.raises(ValueError, match="must be free for a new run, got one that holds a run"):
        dpo(replace(DPO, seed=7), Toy(), BRIGHT, PROMPTS, out=tmp_path)
    whole, again = Toy(), Toy()
    dpo(DPO, whole, BRIGHT, PROMPTS, out=tmp_path / "whole")
    dpo(DPO, again, BRIGHT, PROMPTS, out=tmp_path, resume=True)
    assert torch.equal(weights(again), weights(whole))


class Apart(World):
    """One of several processes, which waits for no other."""

    def wait(self) -> None:
        pass


def test_no_process_idles_in_a_round_of_few_draws(tmp_path: Path) -> None:
    """A draw that is the only one of a round is cut for three processes, and its images are those of one alone."""
    config, generator = replace(DPO, prompts_per_draw=64), Toy()
    drawn = {}
    for rank, size in ((0, 1), (1, 3), (2, 3), (0, 3)):
        place, own = Apart(rank, size, torch.device("cpu")), Brightness()
        weighted = [Weighted("bright", own)]
        artist = Artist(config, generator, weighted, nan, [1e-4], PROMPTS, generator.spec.sampling, place, None)
        if rank:  # as the first has not drawn yet
            with pytest.raises(FileNotFoundError):
                artist.draw(tmp_path / str(size), 0)
        else:
            drawn[size] = artist.draw(tmp_path / str(size), 0)
        assert own.scored == len(PROMPTS) * config.group_size // size
    for name in ("handles", "tokens", "won", "lost"):
        assert torch.equal(getattr(drawn[1], name), getattr(drawn[3], name)), name


def test_two_processes(tmp_path: Path) -> None:
    """Both end a solved run alike, and as one process does; and both end a timed one when either has spent its time."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, *launch, str(tmp_path), "solved", "timed"]
    said = subprocess.run(words, env=environment, capture_output=True, timeout=200, check=False).stderr.decode()[-3000:]
    # Judged by what was written: a process may abort in native code after all is done (gloo, on CPU).
    assert (tmp_path / "solved" / "generator").exists(), said
    alone = case["run"](tmp_path / "alone", "solved")
    rows = [read(tmp_path / name / "metrics.jsonl") for name in ("solved", "alone")]
    assert [(row["step"], row.get("pairs")) for row in rows[0]] == [(row["step"], row.get("pairs")) for row in rows[1]]
    assert rows[0][-1]["alarms"] == rows[1][-1]["alarms"]
    one, two = (load_file(path / "model.safetensors") for path in (tmp_path / "solved" / "generator", alone.generator))
    assert torch.cat([(one[name] - two[name]).abs().flatten() for name in one]).mean() < 1e-4
    assert (tmp_path / "timed" / "generator").exists(), said
    assert [row["step"] for row in read(tmp_path / "timed" / "metrics.jsonl")] == [1]
    assert not (tmp_path / "timed" / "round-2").exists()

"""Several processes share what is to be judged, and each is told what one alone finds."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from rwk.adapters.pixels import Contrast
from rwk.policy_opt.policy import World
from rwk.rewards.base import Scores
from rwk.rewards.server import Server

SCRIPT = Path(__file__).with_name("judging_case.py")
case = runpy.run_path(str(SCRIPT))


class Counted(Contrast):
    """Contrast that counts the images that it scored."""

    scored = 0

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor | Scores:
        self.scored += len(images)
        return super()._score(images, prompts)


def test_two_processes_judge_as_one(tmp_path: Path) -> None:
    """By a truth, a benchmark's rules, a pair judge and a reward behind `rwk serve`, before and after; 5 prompts and 1.

    What `rwk evaluate` measures is shared and put together likewise.

    Each image is drawn, and goes to each reward, in one process alone; a pair judge sees it with its whole group.
    """
    reward = Counted()
    with Server({"contrast": reward}).running() as server:
        url = f"{server.url}/contrast"
        alone = case["judged"](url)
        count, reward.scored = reward.scored, 0
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run([*launch, str(tmp_path), url], env=environment, capture_output=True, timeout=200)
    # Judged by what was written: a process may abort in native code after all is done (gloo, on CPU).
    files = [tmp_path / f"{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), done.stderr.decode()[-2000:]
    both = [json.loads(file.read_text()) for file in files]
    whole = json.loads(json.dumps(alone))
    assert both[0]["told"] == both[1]["told"] == whole["told"]
    assert (
        len({tuple(told["scores"]["pair"][0]) for told in whole["told"]}) == 2
    )  # before and after, whatever the domain
    assert both[0]["document"] == both[1]["document"] == whole["document"]
    assert reward.scored == count == 2 * 11 * case["IMAGES"]
    for name, scored in whole["scored"].items():
        shares = [process["scored"][name] for process in both]
        assert sum(shares) == scored
        assert all(0 < share < scored for share in shares)


def test_shares() -> None:
    """Every one of so many things falls to one process, in order, and to none two more than to another."""
    for size in (1, 2, 3, 8):
        for count in (0, 1, 2, 5, 8, 9):
            shares = [list(World(rank, size, torch.device("cpu")).share(count)) for rank in range(size)]
            assert [one for share in shares for one in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1

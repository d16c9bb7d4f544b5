"""Runs in rounds on the toy generator, in each process that `torchrun` starts: OUT NAME...

`solved` ends when every image is bright enough, after some rounds; `timed` ends by the clock of the second process.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.journal import Trained
from rwk.policy_opt.trl_trainers import make_ready
from rwk.rewards.base import Scores

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS = toy["Toy"], toy["Brightness"], toy["PROMPTS"]
SOLVED = replace(toy["DPO"], rounds=8, learning_rate=3e-2)
TIMED = replace(toy["DPO"], rounds=3)
SECONDS = 1.0


class BrightEnough(Brightness):  # type: ignore[misc, valid-type]
    """1 for an image that is brighter than dark grey, else 0."""

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        found = super()._score(images, prompts)
        return Scores((found.values > 0.4).float(), found.notes)


class Busy(Brightness):  # type: ignore[misc, valid-type]
    """In the second process, takes more seconds of its processor than the run has."""

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Any:
        until = time.process_time() + (1.5 * SECONDS if os.environ.get("RANK") == "1" and not self.scored else 0)
        while time.process_time() < until:
            pass
        return super()._score(images, prompts)


def run(out: Path, name: str, generator: Any = None, **options: Any) -> Trained:
    """The run of that name in a folder."""
    config, reward = {"solved": (SOLVED, BrightEnough()), "timed": (TIMED, Busy())}[name]
    limit = {"seconds": SECONDS} if name == "timed" else {}
    return dpo(config, generator or Toy(), [Weighted("bright", reward)], PROMPTS, out=out, **limit, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_ready()  # imports are not to count
    for name in sys.argv[2:]:
        run(Path(sys.argv[1], name), name)

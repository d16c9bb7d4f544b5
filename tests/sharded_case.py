"""Two updates of a small transformer on a CPU, in each process that `accelerate launch` starts.

accelerate shards by FSDP2 on accelerators alone. Its own code is made to do it here by the kind of machine that it
takes this one for; wrapping, gathering and the collectives, by gloo, are real.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import Sampling
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.policy import world
from rwk.rewards.registry import load

PROMPTS = [f"a photo of a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square")]
CONFIG = Grpo(steps=2, prompts_per_step=4, group_size=4, learning_rate=1e-3, save_every=1, kl_every=0)


def run(out: Path) -> None:
    """Writes the run to a folder."""
    reward = [Weighted("colour", load("colorfulness"))]
    grpo(CONFIG, ShapesLlama.tiny(), reward, PROMPTS, out=out, sampling=Sampling(guidance=2.0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    world(torch.device("cpu"))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        from accelerate.state import PartialState
        from accelerate.utils import DistributedType

        PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_XPU)
        PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    run(Path(sys.argv[1]))

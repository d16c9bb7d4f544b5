"""Runs of a small transformer on a CPU, in each process that `accelerate launch` starts: OUT ALGORITHM... [UPDATE].

A run goes on with what is in its folder. With an update the process is killed there. At the end each process writes
how many engines of DeepSpeed are left; under FSDP2 the first writes the bytes that it has of what learns (`held.json`).

accelerate shards by FSDP2 on accelerators alone. Its own code is made to do it here by the kind of machine that it
takes this one for; wrapping, gathering and the collectives, by gloo, are real.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt import trl_bridge
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Dpo, Grpo
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.ladder import ladder
from rwk.policy_opt.ladder_config import Ladder
from rwk.policy_opt.policy import world
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.registry import load

PROMPTS = [f"a photo of a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square")]
GRPO = Grpo(steps=3, prompts_per_step=4, group_size=4, learning_rate=1e-3, save_every=1, kl_every=0)
DPO = Dpo(
    rounds=2, prompts_per_draw=2, batch_size=4, group_size=3, pairs="all", learning_rate=1e-3, save_every=1, kl_every=0
)
FOLLOWED = replace(GRPO, beta=0.05, reference_every=2, reference_mix=0.5, ema=0.5)
LADDER = Ladder(
    steps=4, climbs=1, harvest=1, prompts_per_step=4, group_size=4, learning_rate=1e-3, harvest_batch=2, save_every=1
)
RUNS: dict[str, Any] = {
    "grpo": (grpo, GRPO),
    "full_grpo": (grpo, replace(FOLLOWED, micro_batch=4, num_iterations=2, steps=4, save_every=2)),
    "lora_grpo": (grpo, replace(GRPO, lora_rank=2, beta=0.05)),
    "dpo": (dpo, DPO),
    "ladder": (ladder, LADDER),
    "half_grpo": (grpo, GRPO),
    "half_dpo": (dpo, DPO),
    "half_slow": (dpo, replace(DPO, epochs=2, learning_rate=1e-6)),
}
"""Those of `half` in bfloat16; `full` with all that follows the policy, and several passes and updates a draw."""


def generator_of(name: str, half: torch.dtype = torch.bfloat16) -> ShapesLlama:
    """The generator that a run begins with, in half precision where it is so called."""
    generator = ShapesLlama.tiny()
    if name.startswith("half"):
        generator.module.to(half)
    return generator


def run(out: Path, name: str, kill_at: int = 0, *, generator: ShapesLlama | None = None) -> None:
    """Writes the run of an algorithm to a folder, or goes on with what is there."""

    def progress(step: int, total: int, row: dict[str, Any]) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    learn, config = RUNS[name]
    reward = [Weighted("colour", load("colorfulness"))]
    resume = (out / "metrics.jsonl").exists()
    sampling = Sampling(guidance=2.0)
    begun = generator or generator_of(name)
    learn(config, begun, reward, PROMPTS, out=out, sampling=sampling, resume=resume, progress=progress)


def measured(train: Any, out: Path) -> Any:
    """`trl_bridge.train`, which writes down the bytes that are held in the last update."""
    from transformers import TrainerCallback

    def of(tensors: Any) -> int:
        return sum((value.to_local() if hasattr(value, "to_local") else value).nbytes for value in tensors)

    class Held(TrainerCallback):
        def __init__(self, trainer: Any) -> None:
            self.trainer, self.held = trainer, dict[str, int]()

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            learns = list(self.trainer.model.parameters())
            self.held |= {"twin": of(learns), "gradients": of(p.grad for p in learns)}

        def on_step_end(self, *_: Any, **__: Any) -> None:
            states = [*self.trainer.optimizer.optimizer.state.values()]
            self.held["optimizer"] = of(state[name] for state in states for name in ("exp_avg", "exp_avg_sq"))
            self.held["masters"] = of(state["master"] for state in states if "master" in state)
            if os.environ.get("RANK", "0") == "0":
                (out / "held.json").write_text(json.dumps(self.held))

    def trained(trainer: Any, *given: Any, **more: Any) -> None:
        trainer.add_callback(Held(trainer))
        train(trainer, *given, **more)

    return trained


if __name__ == "__main__":
    torch.set_num_threads(1)
    world(torch.device("cpu"))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        trl_bridge.train = measured(trl_bridge.train, Path(sys.argv[1]))
        from accelerate.state import PartialState
        from accelerate.utils import DistributedType

        PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_XPU)
        PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    updates = [int(word) for word in sys.argv[2:] if word.isdigit()]
    for name in sys.argv[2:]:
        if name in RUNS:
            run(Path(sys.argv[1], name), name, *updates)
    gc.collect()
    engines = sum(type(one).__name__ == "DeepSpeedEngine" for one in gc.get_objects())
    Path(sys.argv[1], f"engines-{os.environ.get('RANK', '0')}").write_text(str(engines))

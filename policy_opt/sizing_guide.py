"""The table of docs/sizing.md: `python -m rwk.policy_opt.sizing_guide` prints it anew."""

from __future__ import annotations

from typing import Any

from rwk.policy_opt.configs import Dpo, Grpo, Rft
from rwk.policy_opt.settings import Optimisation
from rwk.policy_opt.sizing import GIB, plan
from rwk.policy_opt.sizing_shape import JANUS_PRO

_GRPO = {"steps": 1600, "group_size": 8, "prompts_per_step": 16, "micro_batch": 8, "kl_every": 0}
_ROUNDS = {"rounds": 16, "prompts_per_round": 800, "prompts_per_draw": 16, "group_size": 8, "micro_batch": 4}
RUNS: dict[str, Optimisation] = {
    "GRPO, all weights": Grpo(**_GRPO),  # type: ignore[arg-type]
    "GRPO, all weights, a reference": Grpo(**_GRPO, beta=0.01),  # type: ignore[arg-type]
    "GRPO, LoRA of rank 16, a reference": Grpo(**_GRPO, beta=0.01, lora_rank=16),  # type: ignore[arg-type]
    "GRPO, all weights, FSDP2 over 8": Grpo(**_GRPO),  # type: ignore[arg-type]
    "DPO, all weights": Dpo(**_ROUNDS, kl_every=0),  # type: ignore[arg-type]
    "DPO, LoRA of rank 16": Dpo(**_ROUNDS, lora_rank=16),  # type: ignore[arg-type]
    "rft, all weights": Rft(**_ROUNDS, kl_every=0),  # type: ignore[arg-type]
}
"""By name; all at guidance 5, in bf16, in one process where the name tells no other number."""


def lines() -> list[str]:
    """The table in Markdown."""
    heads = ("model and run", "state", "cache", "activations, logits", "peak GiB", "images", "H100 hours")
    made = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for model, shape in JANUS_PRO.items():
        for name, config in RUNS.items():
            spread: Any = {"processes": 8, "sharding": "fsdp"} if name.endswith("over 8") else {}
            run = plan(config, shape, prompts=5600, rewards=1, guided=True, **spread)
            state = run.peak - max(run.cache, run.activations + run.logits)
            sizes = (state, run.cache, run.activations + run.logits, run.peak)
            cells = [*(f"{size / GIB:.1f}" for size in sizes), f"{run.images_drawn:,}", f"{run.hours():.1f}"]
            made.append(f"| {model}: {name} | " + " | ".join(cells) + " |")
    return made


if __name__ == "__main__":
    print("\n".join(lines()))

"""Settings with which published systems let an image generator learn from rewards; loads no torch.

They are fields of `configs` and of `LearntRecipe`. On a generator of the size that a preset was made for all of it
holds. In the built-in world, and wherever it is to be scaled down, what depends on the size of the model and of the
budget, `SIZES`, the recipe and the rewards are left to rwk's own, and the form of the algorithm is kept: group, loss,
pull, baseline, filter. What a source has and rwk has not is said in `differs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SIZES = ("learning_rate", "schedule", "steps", "prompts_per_step", "save_every")
"""Settings that are left out where a preset is scaled down."""
_OLD_TRL = {"num_iterations": 1, "kl_estimator": "k3_plain", "aggregation": "sum", "scale_rewards": "group"}


@dataclass(frozen=True)
class Preset:
    """How one system was trained."""

    source: str
    """Paper, or repository, commit and file."""
    model: str
    """The generator that it was made for."""
    settings: Mapping[str, Mapping[str, Any]]
    """Algorithm -> values of its config."""
    differs: str
    """What the source has besides, or does not tell."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Values of `LearntRecipe`."""
    rewards: tuple[str, ...] = ()
    """Names of the rewards, where rwk has all of them."""

    def algorithm(self, asked: str | None) -> str:
        """The algorithm that was asked for, or the only one; raises ValueError where it has not that or several."""
        names = sorted(self.settings)
        if asked in names or (asked is None and len(names) == 1):
            return asked or names[0]
        came = f"--algo {asked}" if asked else "no --algo"
        raise ValueError(f"this preset is of {' and '.join(names)}, got {came}; name one of them.")

    def values(self, algo: str, *, scaled: bool) -> dict[str, Any]:
        """Values of the algorithm's config."""
        return {name: value for name, value in self.settings[algo].items() if not (scaled and name in SIZES)}


PRESETS: dict[str, Preset] = {
    "study": Preset(
        "arXiv:2505.17017; its text, since its authors released no code",
        "Janus-Pro",
        {
            "grpo": {"group_size": 4, "num_iterations": 1},
            "dpo": {"group_size": 4, "pairs": "best_worst", "loss_type": "sigmoid"},
        },
        "prompts are the 5.6 thousand of T2I-CompBench; how many images it draws for a pair of DPO, its rates, beta, "
        "steps and guidance are not known, and stay rwk's; it compares rewards, so name one",
    ),
    "t2i_r1": Preset(
        "CaraJ7/T2I-R1 at 2d9d4d1: src/scripts/run_grpo.sh (8 GPUs of one prompt, twice), "
        "src/t2i-r1/src/open_r1/trainer/grpo_trainer.py; arXiv:2505.00703",
        "deepseek-ai/Janus-Pro-7B",
        {
            "grpo": _OLD_TRL
            | {"group_size": 8, "beta": 0.01, "learning_rate": 1e-6, "schedule": "linear"}
            | {"steps": 1600, "prompts_per_step": 16, "save_every": 400}
        },
        "writes out a plan of the image first and learns it too, which is janus.pro_7b_plan here; adds 1e-4 to a "
        "deviation, where here one below it counts as it",
        recipe={"guidance": 5.0, "temperature": 1.0, "mode": "cond_only"},
        rewards=("hpsv2.v21", "git_vqa.t2i_r1", "grounding_dino.t2i_r1_published", "orm.t2i_r1"),
    ),
    "ar_grpo": Preset(
        "arXiv:2508.06924, Kwai-Klear/AR-GRPO, text-to-image; second-hand, as its own script could not be had",
        "LlamaGen XL",
        {"grpo": _OLD_TRL | {"group_size": 8, "beta": 1.0, "learning_rate": 1e-5, "steps": 600, "save_every": 100}},
        "estimator, sum and scaling are those of the TRL of its time; rewards are eight of weight 1: "
        "CLIP and HPSv2, each also in four steps, MANIQA, and three questions to "
        "Qwen2.5-VL-3B; prompts_per_step stays rwk's",
        recipe={"guidance": 4.0, "top_k": 0, "top_p": 1.0},
    ),
    "simple_ar": Preset(
        "arXiv:2504.11455, wdrink/SimpleAR; second-hand, as its own script could not be had",
        "SimpleAR 0.5B and 1.5B",
        {"grpo": _OLD_TRL | {"group_size": 4, "learning_rate": 1e-6}},
        "estimator, sum and scaling are those of the TRL of its time; the reward is CLIP's cosine; "
        "11 thousand prompts; judges at guidance 4, though it learns without; beta, steps "
        "and prompts_per_step stay rwk's",
        recipe={"guidance": 1.0},
    ),
    "reasongen_r1": Preset(
        "Franklin-Zhang0/ReasonGen-R1 at 04a321f: examples/janus_rl.sh; arXiv:2505.24875",
        "Franklin0/ReasonGen-R1-SFT, of Janus-Pro-7B",
        {
            "grpo": {"group_size": 8, "num_iterations": 1, "beta": 0.0, "loss_type": "dapo", "resampling": "dynamic"}
            | {"learning_rate": 5e-6, "steps": 400, "prompts_per_step": 8, "save_every": 100}
        },
        "writes out a rationale first and learns it too; steers the entropy of text and image to 2 and 7 nats; draws "
        "up to 8 times until no group of an update is of equals; the reward is a strict yes or no of Qwen2.5-VL-7B",
        recipe={"guidance": 1.0},
    ),
}

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

SIZES = (
    *("learning_rate", "schedule", "warmup", "steps", "prompts_per_step", "save_every"),
    *("micro_batch", "gradient_checkpointing"),
    "entropy_targets",  # nats, of a codebook of that size
)
"""Settings that are left out where a preset is scaled down."""
_OLD_TRL = {"num_iterations": 1, "kl_estimator": "k3_plain", "aggregation": "sum", "scale_rewards": "group"}
"""What TRL did before it could be told; its deviation has 1e-4 added to it."""


@dataclass(frozen=True)
class Preset:
    """How one system was trained."""

    source: str
    """Paper, or repository, commit and file."""
    model: str
    """The generator that it was made for."""
    generators: tuple[str, ...]
    """Names that rwk has for it."""
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
        ("janus.pro_1b", "janus.pro_7b"),
        {
            "grpo": {"group_size": 4, "num_iterations": 1},
            "dpo": {"group_size": 4, "pairs": "best_worst", "loss_type": "sigmoid"},
        },
        "prompts are the 5.6 thousand of T2I-CompBench; how many images it draws for a pair of DPO, its rates, beta, "
        "steps and guidance are not known, and stay rwk's; it compares rewards, so name one",
    ),
    "t2i_r1": Preset(
        "CaraJ7/T2I-R1 at 2d9d4d1: src/scripts/run_grpo.sh (8 GPUs of one prompt, twice), "
        "src/t2i-r1/src/open_r1/trainer/grpo_trainer.py (advantage, KL, mean over tokens; lines 743 to 772); "
        "arXiv:2505.00703",
        "deepseek-ai/Janus-Pro-7B",
        ("janus.pro_7b",),
        {
            "grpo": _OLD_TRL
            | {"group_size": 8, "beta": 0.01, "learning_rate": 1e-6, "schedule": "linear"}
            | {"steps": 1600, "prompts_per_step": 16, "micro_batch": 8, "save_every": 400}
        },
        "writes out a plan of the image first and learns it too, which is janus.pro_7b_plan here; adds 1e-4 to a "
        "deviation, where here one below it counts as it",
        recipe={"guidance": 5.0, "temperature": 1.0, "mode": "cond_only"},
        rewards=("hpsv2.v21", "git_vqa.t2i_r1", "grounding_dino.t2i_r1_published", "orm.t2i_r1"),
    ),
    "ar_grpo": Preset(
        "Kwai-Klear/AR-GRPO at 65947ad: run_t2i_train.sh (4 GPUs of 16 images), modified_grpo_trainer.py; what these "
        "leave open is TRL's at v0.19.0, by requirements.txt; arXiv:2508.06924",
        "LlamaGen XL, text to image at 256",
        ("llamagen.t2i_xl_256",),
        {
            "grpo": _OLD_TRL
            | {"group_size": 8, "beta": 1.0, "epsilon": 0.2, "learning_rate": 1e-5}
            | {"steps": 600, "prompts_per_step": 8, "micro_batch": 16, "save_every": 100}
        },
        "its rate falls to 0 over 20 passes through 30 thousand captions of COCO, of which it stops after 600 updates, "
        "by less than 1 %, and is constant here; rewards are eight of weight 1: CLIP and HPSv2, each also in four "
        "steps, MANIQA, and three questions to Qwen2.5-VL-3B; all weights are bfloat16",
        recipe={"guidance": 4.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    ),
    "simple_ar": Preset(
        "wdrink/SimpleAR at d56b6e5: simpar/configs/config_grpo_clip.yaml, docs/TRAIN.md (7 GPUs of 4 images), "
        "simpar/train/llava_trainer_grpo.py; what these leave open is TRL's at 69ad852, which docs/TRAIN.md names, as "
        "beta is; arXiv:2504.11455",
        "SimpleAR 0.5B and 1.5B, fine-tuned",
        ("simplear.sft_0_5b", "simplear.sft_1_5b"),
        {
            "grpo": _OLD_TRL
            | {"group_size": 4, "beta": 0.04, "epsilon": 0.2, "learning_rate": 1e-6}
            | {"schedule": "cosine_to_tenth", "warmup": 158}
            | {"steps": 1572, "prompts_per_step": 7, "micro_batch": 4, "save_every": 100}
        },
        "updates are one pass through 11 thousand prompts, and a tenth of them the warm-up, by its paper, as its "
        "prompts are not in the repository; each prompt begins with `A photo of`; its CLIP runs in half precision; it "
        "draws from text ids too, and may end an image early; judges at guidance 4, though it learns without",
        recipe={"guidance": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
        rewards=("clipscore.h14_cosine",),
    ),
    "reasongen_r1": Preset(
        "Franklin-Zhang0/ReasonGen-R1 at 04a321f: examples/janus_rl.sh, verl/trainer/config/"
        "image_generation_trainer.yaml, verl/workers/actor/dp_actor.py (each image is a mean of its own); "
        "arXiv:2505.24875",
        "Franklin0/ReasonGen-R1-SFT, of Janus-Pro-7B",
        ("janus.pro_7b",),
        {
            "grpo": {"group_size": 8, "num_iterations": 1, "beta": 0.0, "loss_type": "grpo"}
            | {"resampling": "dynamic", "max_draws": 8}
            | {"epsilon": 0.2, "scale_rewards": "group", "learning_rate": 5e-6}
            | {"entropy_targets": (7.0,), "entropy_rate": 5e-5, "entropy_limit": 5e-3}
            | {"steps": 400, "prompts_per_step": 8, "save_every": 100}
            | {"micro_batch": 1, "gradient_checkpointing": True}
        },
        "writes out a rationale first and learns it too, its entropy steered to 2 nats; fails where 8 draws of a step "
        "do not suffice, where the run here goes on with the groups there are; adds 1e-6 to a deviation; the reward is "
        "a strict yes or no of Qwen2.5-VL-7B",
        recipe={"guidance": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    ),
}

"""Settings with which published rewards were trained, each number as it stands in the authors' own repository.

They are fields of `configs.RewardTraining`. What a source has and training here has not is said in `differs`. There is
none for MPS and for T2I-R1's ORM, whose authors published no code that trains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OF_MODE = ("learning_rate", "freeze")
"""Settings that hold for a preset's own mode alone."""


@dataclass(frozen=True)
class Preset:
    """How one reward was trained."""

    source: str
    """Repository, commit and files."""
    base: str
    """What the authors started from, or the reward that came of it."""
    settings: Mapping[str, Any]
    """Values of `RewardTraining` by field."""
    differs: str
    """What the source has besides."""


_BLIP = {"mode": "full", "schedule": "cosine", "warmup": 0.0, "freeze": 0.7, "beta2": 0.999}
_CYCLE = "hjbahng/cyclereward at 36e1077: scripts/train_{}.sh, train.py"
PRESETS: dict[str, Preset] = {
    "pickscore": Preset(
        "yuvalkirstain/PickScore at f79607f: trainer/optimizers/dummy_optimizer.py (rate, decay), "
        "trainer/accelerators/base_accelerator.py (4000 steps, clipping), trainer/lr_schedulers/dummy_lr_scheduler.py "
        "(500 steps up), trainer/accelerators/deepspeed_accelerator.py (WarmupDecayLR), "
        "trainer/conf/experiment/clip.yaml and README.md (16 pairs on each of 8 GPUs)",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        {
            **{"mode": "full", "learning_rate": 3e-6, "schedule": "linear", "warmup": 500 / 4000},
            **{"weight_decay": 0.3, "max_norm": 1.0, "batch_size": 128},
        },
        "weights of one over the pairs of a prompt (give the column weight), decay of vectors too, 4000 steps whatever "
        "the data",
    ),
    "hpsv2": Preset(
        "tgxs002/HPSv2 at 866735e: hpsv2/configs/HPSv2.sh, hpsv2/src/training/params.py (beta2, cosine), README.md "
        "(16 pairs on each of 8 GPUs)",
        "laion2B-s32B-b79K of ViT-H-14",
        {
            **{"mode": "full", "learning_rate": 3.3e-6, "schedule": "cosine", "weight_decay": 0.35},
            **{"batch_size": 128, "freeze": 13, "beta2": 0.98},
        },
        "500 steps up where it makes 100 steps (here the warm-up is the default); of 32 and 24 layers it trains the "
        "last 19 and 11, and so leaves 13 of each",
    ),
    "imagereward": Preset(
        "THUDM/ImageReward at c1392c6: train/scripts/train_one_node.sh (rate, schedule, 4 pairs, 4 times, on 4 GPUs, "
        "70 % of the layers fixed), train/src/config/options.py (beta2), train/src/train.py (Adam)",
        "BLIP-large",
        {**_BLIP, "learning_rate": 1e-5, "weight_decay": 0.0, "batch_size": 64, "epochs": 10},
        "dropout of 0.1 and 0.2 in the head",
    ),
    "cyclereward.combo": Preset(
        _CYCLE.format("combo"),
        "BLIP-large",
        {**_BLIP, "learning_rate": 2e-5, "weight_decay": 0.0, "batch_size": 2048, "epochs": 2},
        "pairs of texts for a picture beside pairs of pictures for a text",
    ),
    "cyclereward.t2i": Preset(
        _CYCLE.format("t2i"),
        "BLIP-large",
        {**_BLIP, "learning_rate": 3e-5, "weight_decay": 1e-4, "batch_size": 2048, "epochs": 2},
        "decay of vectors too",
    ),
    "hpsv3": Preset(
        "MizzenAI/HPSv3 at d232ff8: hpsv3/config/HPSv3_7B.yaml, hpsv3/train.py",
        "Qwen/Qwen2-VL-7B-Instruct",
        {"mode": "full", "learning_rate": 2e-6, "schedule": "constant", "warmup": 0.05, "epochs": 10},
        "a loss that is averaged over draws from two normal distributions (here its means alone), embeddings that stay "
        "but for one token, and 8 pairs for each of a number of GPUs that it does not state",
    ),
    "orm": Preset(
        "ZiyuGuo99/Image-Generation-CoT at 1ff33eb: scripts/orm_ft.sh (8 on each of 8 GPUs)",
        "lmms-lab/llava-onevision-qwen2-7b-ov",
        {
            **{"mode": "full", "learning_rate": 1e-5, "schedule": "cosine", "warmup": 0.03},
            **{"weight_decay": 0.0, "batch_size": 64, "epochs": 1},
        },
        "single images with yes or no, not pairs, and 2e-6 for the vision tower",
    ),
}

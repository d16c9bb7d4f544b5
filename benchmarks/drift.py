"""How far scores move where a tower computes in half precision, on random weights at the published size.

    python benchmarks/drift.py                                   # CLIP's cosine on ViT-B/32 and ViT-L/14
    python benchmarks/drift.py --images 64 --device cuda clipscore.l14_cosine

Prints, for every reward, the most that one of its scores differs from that in float32, and beside it the standard
deviation of the scores over the pictures. Random weights tell pictures apart less than trained ones do, so the one is
to be read against the other. These are the numbers of `EmbeddedReward.drift`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.clip_towers import OpenClipReward, seeded
from rwk.rewards.base import Reward
from rwk.rewards.manifest import Item
from rwk.rewards.registry import REWARDS
from rwk.rewards.rows import Precision
from rwk.rewards.scoring import Means, score_items

NAMES = ("clipscore.b32_cosine", "clipscore.l14_cosine")


def draw(folder: Path, count: int) -> list[Item]:
    """Pictures of coarse coloured noise, each with the prompt of its colours."""
    items = []
    for i in range(count):
        noise = [Image.effect_noise((8 + i, 8 + i), 30 + 20 * channel).resize((256, 256)) for channel in range(3)]
        path = folder / f"{i:03d}.png"
        Image.merge("RGB", noise[i % 3 :] + noise[: i % 3]).save(path)
        items.append(Item(path, f"{i} {('red', 'green', 'blue')[i % 3]} birds on the branch of a tree"))
    return items


def random_reward(name: str, device: str) -> Reward:
    """The reward of that name at its published size, its weights random."""
    kind = REWARDS.target(name)
    if not issubclass(kind, OpenClipReward):
        raise SystemExit(f"only rewards on open_clip can be measured here, got {name}")
    with seeded():
        return kind.of(kind.build(), device=device)


def scores(items: list[Item], rewards: dict[str, Reward], precision: Precision) -> dict[str, Tensor]:
    rows = [row for rows in score_items(items, rewards, Means(batch_size=8, precision=precision)) for row in rows]
    return {name: torch.tensor([row.scores[name] or 0.0 for row in rows], dtype=torch.float64) for name in rewards}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    rewards = {name: random_reward(name, asked.device) for name in asked.names}
    with tempfile.TemporaryDirectory() as folder:
        items = draw(Path(folder), asked.images)
        exact = scores(items, rewards, "float32")
        found = {name: {"spread": f"{values.std().item():.1e}"} for name, values in exact.items()}
        for precision in ("bfloat16", "float16"):
            for name, values in scores(items, rewards, precision).items():
                found[name][precision] = f"{(values - exact[name]).abs().max().item():.1e}"
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

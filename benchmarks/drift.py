"""How far scores move where a tower computes in half precision, on random weights at the published size.

    python benchmarks/drift.py                                   # every published reward that embeds
    python benchmarks/drift.py --images 64 --device cuda clipscore.l14_cosine

A scale that is part of the weights is set to 100, about what the published ones have. Prints, for every reward, the
most that one of its scores differs from that in float32, and beside it the standard deviation of the scores over the
pictures. Random weights tell pictures apart less than trained ones do, so the one is to be read against the other.
These are the numbers of `EmbeddedReward.drift`.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.clip_towers import seeded
from rwk.adapters.dino import DinoSimilarity
from rwk.rewards.base import Reward
from rwk.rewards.manifest import Item
from rwk.rewards.registry import REWARDS
from rwk.rewards.rows import Precision
from rwk.rewards.scoring import Means, score_items
from rwk.rewards.staged import EmbeddedReward

SCALE = 100.0


def draw(folder: Path, count: int) -> list[Item]:
    """Pictures of coarse coloured noise, each with the prompt of its colours."""
    items = []
    for i in range(count):
        noise = [Image.effect_noise((8 + i, 8 + i), 30 + 20 * channel).resize((256, 256)) for channel in range(3)]
        path = folder / f"{i:03d}.png"
        Image.merge("RGB", noise[i % 3 :] + noise[: i % 3]).save(path)
        items.append(Item(path, f"{i} {('red', 'green', 'blue')[i % 3]} birds on the branch of a tree"))
    return items


def embedding_rewards() -> dict[str, type[Any]]:
    kinds = {name: REWARDS.target(name) for name in REWARDS.names()}
    return {name: kind for name, kind in kinds.items() if issubclass(kind, EmbeddedReward) and "." in name}


def random_reward(kind: type[Any], device: str) -> Reward:
    """A reward at its published size, its weights random."""
    small = kind.tiny()
    with seeded():
        network = kind.build()
    for name, value in network.named_parameters():
        if name.endswith("logit_scale"):
            value.data.fill_(math.log(SCALE))
    own = {"tokenizer": small.tokenizer} if "tokenizer" in vars(small) else {}
    reward: Reward = kind.of(network, device=device, **own)
    if isinstance(reward, DinoSimilarity):
        reward.compare_with([Image.linear_gradient("L"), Image.radial_gradient("L")])
    return reward


def scores(items: list[Item], rewards: dict[str, Reward], precision: Precision) -> dict[str, Tensor]:
    rows = [row for rows in score_items(items, rewards, Means(batch_size=8, precision=precision)) for row in rows]
    return {name: torch.tensor([row.scores[name] or 0.0 for row in rows], dtype=torch.float64) for name in rewards}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="[default: all]")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--precision", nargs="+", choices=["bfloat16", "float16"], default=["bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    known = embedding_rewards()
    with tempfile.TemporaryDirectory() as folder:
        items = draw(Path(folder), asked.images)
        for name in asked.names or known:
            rewards = {name: random_reward(known[name], asked.device)}
            exact = scores(items, rewards, "float32")[name]
            found = {"spread": f"{exact.std().item():.1e}"}
            for precision in asked.precision:
                moved = scores(items, rewards, precision)[name] - exact
                found[precision] = f"{moved.abs().max().item():.1e}"
            print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()

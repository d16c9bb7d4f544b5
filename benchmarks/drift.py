"""How far scores move where a network computes in half precision, on random weights at the published size.

    python benchmarks/drift.py                                   # every published reward whose network follows
    python benchmarks/drift.py --images 64 --device cuda clipscore.l14_cosine
    python benchmarks/drift.py --detectors                       # why theirs do not follow
    python benchmarks/drift.py --writers                         # of networks that write what the score is read from

A scale that is part of the weights is set to 100, about what the published ones have; other weights are as their
library draws them, and for BLIP, EvalMuse, GIT, MPS and the detectors as `tiny` draws them: with spread 0.7 over the
root of what goes in on top, so that a picture and a text change what comes out. Prints, for every reward, the most that
one of its scores differs from that in float32, and beside it the standard deviation of the scores over the pictures.
Random weights tell pictures apart less than trained ones do, so the one is to be read against the other. These are the
numbers of `Reward.drift`. "takes" is processor time over that in float32, which comes first and warms up. Networks that
are published in bfloat16 have random weights of that type, which are widened for the score in float32, a block at a
time.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drift_networks
import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.blip_towers import randomised
from rwk.adapters.clip_towers import TowersReward, seeded
from rwk.adapters.dino import DinoSimilarity
from rwk.adapters.judge import Yes
from rwk.adapters.published import PublishedReward
from rwk.adapters.vqascore import FlanT5
from rwk.rewards.base import Reward
from rwk.rewards.manifest import Item
from rwk.rewards.precision import Precision
from rwk.rewards.registry import REWARDS
from rwk.rewards.scoring import Means, score_items
from rwk.rewards.staged import EmbeddedReward

SCALE = 100.0


def bounded(kind: type[Any]) -> Callable[[Tensor], Tensor]:
    """A function of scores that moves by at least as much as any score would where a trained network is less sure.

    Among all words the chance of one is next to nothing on random weights, and so is what it moves by. A quarter of the
    log-odds is the most that a chance moves by, and the logarithm is the most that a mean of chances does.
    """
    if issubclass(kind, Yes):
        return lambda scores: scores.logit() / 4
    if issubclass(kind, FlanT5):
        return torch.log
    return lambda scores: scores


def draw(folder: Path, count: int) -> list[Item]:
    """Pictures of coarse coloured noise, each with the prompt of its colours."""
    items = []
    for i in range(count):
        noise = [Image.effect_noise((8 + i, 8 + i), 30 + 20 * channel).resize((256, 256)) for channel in range(3)]
        path = folder / f"{i:03d}.png"
        Image.merge("RGB", noise[i % 3 :] + noise[: i % 3]).save(path)
        items.append(Item(path, f"{i} {('red', 'green', 'blue')[i % 3]} birds on the branch of a tree"))
    return items


def following() -> dict[str, type[Any]]:
    """Published rewards whose network computes in the precision that is asked for, and gives a score as it is."""
    kinds = {name: REWARDS.target(name) for name in REWARDS.names() if "." in name}
    return {name: kind for name, kind in kinds.items() if kind.casts and not drift_networks.writes(kind)}


def random_reward(kind: type[Any], device: str) -> Reward:
    """A reward at its published size, its weights random."""
    if name := drift_networks.builder_of(kind):
        made: Reward = getattr(drift_networks, name)(kind)
        return made
    small = kind.tiny()
    if not issubclass(kind, PublishedReward):  # of the built-in world, with its own weights
        own: Reward = kind(device=device)
        return own
    with seeded():
        network = kind.build()
    if not issubclass(kind, EmbeddedReward):
        randomised(network)
    for name, value in network.named_parameters():
        if name.endswith("logit_scale"):
            value.data.fill_(math.log(SCALE))
    tokens = {"tokenizer": small.tokenizer} if "tokenizer" in vars(small) else {}
    reward: Reward = kind.of(network, device=device, **tokens)
    if isinstance(reward, DinoSimilarity):
        reward.compare_with([Image.linear_gradient("L"), Image.radial_gradient("L")])
    return reward


def scores(items: list[Item], rewards: dict[str, Reward], precision: Precision) -> dict[str, Tensor]:
    rows = [row for rows in score_items(items, rewards, Means(batch_size=8, precision=precision)) for row in rows]
    return {name: torch.tensor([row.scores[name] or 0.0 for row in rows], dtype=torch.float64) for name in rewards}


def measured(kind: type[Any], items: list[Item], precisions: list[Precision], device: str) -> dict[str, str]:
    """The spread of a reward's scores over the pictures, and the most that one moves in each precision."""
    reward = random_reward(kind, device)
    if not isinstance(reward, TowersReward):
        asked = [prompt for prompt in reward.example_prompts if prompt]
        items = [item._replace(prompt=asked[i % len(asked)]) for i, item in enumerate(items)]
    native = drift_networks.native_of(reward)
    shown = bounded(kind)
    with drift_networks.widened(native):
        begun = time.process_time()
        exact = shown(scores(items, {"": reward}, "published")[""])
        took = time.process_time() - begun
    found = {"spread": f"{exact.std().item():.1e}"}
    for precision in precisions:
        begun = time.process_time()
        with drift_networks.typed(native, precision):
            moved = shown(scores(items, {"": reward}, precision)[""]) - exact
        found[precision] = f"{moved.abs().max().item():.1e}"
        found[f"{precision} takes"] = f"{(time.process_time() - begun) / took:.2f}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="[default: all]")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--precision", nargs="+", choices=["bfloat16", "float16"], default=["bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--detectors", action="store_true", help="what half precision does to boxes and their scores")
    parser.add_argument("--writers", action="store_true", help="what bfloat16 does to the first word that is written")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        items = draw(Path(folder), asked.images)
        for of in ("detectors", "writers"):
            if getattr(asked, of):
                print(json.dumps(getattr(drift_networks, of)(items)), flush=True)
                return
        known = following()
        for name in asked.names or known:
            print(json.dumps({name: measured(known[name], items, asked.precision, asked.device)}), flush=True)


if __name__ == "__main__":
    main()

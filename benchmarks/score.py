"""Speed and memory of scoring folders, as ratios of what was measured in turns on files made on the spot.

    OMP_NUM_THREADS=2 python benchmarks/score.py                     # 500 files, 5 rounds
    python benchmarks/score.py --images 64 --large-images 16 --rounds 3
    python benchmarks/score.py --memory                              # peak memory at 500 and 20,000 images
    python benchmarks/score.py --peer hpsv2 --peer imscore           # also through these packages, where they install

Half the files are JPEG, half PNG, of 0.8 to 12 megapixels; 16 different ones are linked under as many names as there
are images, and 50 prompts repeat. The weights are random, at the published size: CLIPScore on ViT-B/32, and for fewer
images on ViT-L/14. Each round measures all ways one after the other, and a ratio is the median of those of the rounds.

* limit: the bare network on tensors that are ready, in batches, each prompt once.
* plain: what official code does: decode, prepare and embed one image and its prompt after the other.
* exact, fast: `score_items`, with either preprocessing.
* half, fast half: `score_items` with exact or fast preprocessing and the network in bfloat16, as `rwk score --precision
  bfloat16`.
* hpsv2, imscore: the package's own code of one image and its prompt, around the same ViT-B/32 (hpsv2 loads the
  checkpoint anew for each image). They bring no weights without a network; a folder with them may be on PYTHONPATH.
* together: several rewards on one tower at once, against the sum of their times alone.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from rwk.adapters.aesthetic import AestheticV1Base32
from rwk.adapters.clip_towers import OpenClipReward, seeded
from rwk.adapters.clipscore import ClipCosine, ClipScore, ClipScoreLarge, ClipScoreNoPrefix
from rwk.rewards.base import Reward
from rwk.rewards.manifest import Item
from rwk.rewards.scoring import Means, prefer_fast, score_items

SIZES = ((4000, 3000), (3000, 2000), (1920, 1080), (1024, 768))
PROMPTS = [f"a photo of {i} red birds on the branch of a tree, a lake behind them" for i in range(50)]
BATCH = 16


class Took(NamedTuple):
    """Seconds of one way in one round."""

    wall: float
    processor: float
    """Of all threads; where other programs want the cores too, its ratios say more than those of the wall clock."""


def draw(folder: Path, count: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Item]:
    """Files of pictures with coarse and fine structure, half JPEG, half PNG."""
    made = []
    for i in range(16):
        width, height = sizes[i // 2 % len(sizes)]
        noise = [Image.effect_noise((width // 4, height // 4), 40 + 5 * i).resize((width, height)) for _ in range(3)]
        made.append(folder / f"made-{i}.{'jpg' if i % 2 else 'png'}")
        Image.merge("RGB", noise).save(made[-1], **({"quality": 90} if i % 2 else {"compress_level": 1}))
    items = []
    for i in range(count):
        path = folder / f"{i:05d}{made[i % 16].suffix}"
        os.link(made[i % 16], path)
        items.append(Item(path, PROMPTS[i % len(PROMPTS)]))
    return items


def random_reward(kind: type[OpenClipReward]) -> OpenClipReward:
    with seeded():
        return kind.of(kind.build())


def on_one_tower() -> dict[str, Reward]:
    """Four rewards on ViT-B/32."""
    first = random_reward(ClipScore)
    with seeded():
        predictor: Any = AestheticV1Base32.build()
    predictor.tower = first.tower
    rewards: list[Reward] = [first, AestheticV1Base32.of(predictor)]
    rewards += [kind.of(first.network) for kind in (ClipCosine, ClipScoreNoPrefix)]
    return {reward.spec.name: reward for reward in rewards}


def limit(reward: OpenClipReward, ready: torch.Tensor, count: int) -> None:
    with torch.no_grad():
        reward.text_features(reward.texts(PROMPTS[:count]))
        for start in range(0, count, BATCH):
            reward.image_features(ready[: min(BATCH, count - start)])


def plain(reward: OpenClipReward, items: list[Item]) -> None:
    with torch.no_grad():
        for item in items:
            with Image.open(item.image) as image:
                pixels = reward.preprocess.exact([image.convert("RGB")])
            reward.score_prepared(pixels, [item.prompt or ""]).item()


def through(rewards: Mapping[str, Reward], items: list[Item], means: Means) -> None:
    collections.deque(score_items(items, rewards, means), maxlen=0)


def rates(kind: type[OpenClipReward], items: list[Item], rounds: int, means: Means) -> dict[str, Any]:
    """Images per second of all ways in every round, and the medians of their ratios."""
    exact, fast = random_reward(kind), random_reward(kind)
    prefer_fast({"fast": fast})
    ready = torch.randn(BATCH, 3, 224, 224)
    ways: dict[str, Callable[[], None]] = {
        "limit": lambda: limit(exact, ready, len(items)),
        "plain": lambda: plain(exact, items),
        "exact": lambda: through({"exact": exact}, items, means),
        "fast": lambda: through({"fast": fast}, items, means),
        "half": lambda: through({"half": exact}, items, replace(means, precision="bfloat16")),
        "fast half": lambda: through({"half": fast}, items, replace(means, precision="bfloat16")),
    }
    found = in_turns(ways, rounds)
    pairs = [(base, way) for way in ("exact", "fast", "half", "fast half") for base in ("limit", "plain")]
    return {
        "images": len(items),
        "images per second": {way: [round(len(items) / each.wall, 2) for each in found[way]] for way in ways},
        "times as fast": {f"{way} as {base}": ratios(found[base], found[way]) for base, way in pairs},
    }


def together(items: list[Item], rounds: int, means: Means) -> dict[str, Any]:
    """Time of two and of four rewards on one tower, as a share of the sum of their times alone."""
    rewards = on_one_tower()
    names = list(rewards)

    def way(*chosen: str) -> Callable[[], None]:
        return lambda: through({name: rewards[name] for name in chosen}, items, means)

    found = in_turns({**{name: way(name) for name in names}, "two": way(*names[:2]), "four": way(*names)}, rounds)

    def alone(count: int) -> list[Took]:
        each = zip(*(found[name] for name in names[:count]), strict=True)
        return [Took(sum(took.wall for took in turn), sum(took.processor for took in turn)) for turn in each]

    return {"two / sum": ratios(found["two"], alone(2)), "four / sum": ratios(found["four"], alone(4))}


def in_turns(ways: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[Took]]:
    """What every way took in every round; the ways begin in another order each round."""
    found: dict[str, list[Took]] = {way: [] for way in ways}
    names = list(ways)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wall, processor = time.perf_counter(), time.process_time()
            ways[name]()
            took = Took(time.perf_counter() - wall, time.process_time() - processor)
            found[name].append(took)
            print(f"round {turn} {name}: {took.wall:.1f} s, {took.processor:.1f} s of processors", file=sys.stderr)
    return found


def ratios(first: list[Took], second: list[Took]) -> dict[str, float]:
    """Medians over the rounds, of both clocks."""
    pairs = list(zip(first, second, strict=True))
    return {
        "wall": round(statistics.median(a.wall / b.wall for a, b in pairs), 2),
        "processor": round(statistics.median(a.processor / b.processor for a, b in pairs), 2),
    }


def memory(counts: list[int]) -> dict[str, Any]:
    """Peak resident memory in MB of processes that score as many files of 0.1 megapixels, on a small network.

    Small, so that nothing but the number of images is large.
    """
    peaks = {}
    for count in counts:
        command = [sys.executable, __file__, "--only-score", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[count] = float(done.stdout)
    return {"peak MB": peaks, "last / first": round(peaks[counts[-1]] / peaks[counts[0]], 3)}


def only_score(count: int, means: Means) -> None:
    """Scores, and prints the peak of the memory that the process held."""
    with tempfile.TemporaryDirectory() as folder:
        items = draw(Path(folder), count, ((400, 300), (320, 320)))
        through({"clip": ClipScore.tiny()}, items, means)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def through_imscore(reward: OpenClipReward, items: list[Item]) -> Callable[[], None]:
    """imscore's HPSv2 around our network."""
    import imscore.hps.model as imscore
    from torchvision.transforms import Normalize
    from torchvision.transforms.functional import pil_to_tensor

    package = imscore.HPSv2.__new__(imscore.HPSv2)
    torch.nn.Module.__init__(package)
    network: Any = reward.network
    package.model = lambda pixels, ids: dict(
        zip(("image_features", "text_features"), network(pixels, ids), strict=False)
    )
    package.tokenizer = imscore.get_tokenizer("ViT-B-32")
    package.resize = imscore.ResizeMaxSize(224)
    package.normalize = Normalize(reward.preprocess.mean, reward.preprocess.std)

    @torch.no_grad()
    def run() -> None:
        for item in items:
            with Image.open(item.image) as image:
                package.score(pil_to_tensor(image.convert("RGB"))[None] / 255, [item.prompt])

    return run


def through_hpsv2(reward: OpenClipReward, items: list[Item], folder: Path) -> Callable[[], None]:
    """hpsv2 with a ViT-B/32 of its own, with our weights."""
    import hpsv2.img_score as package

    made = package.create_model_and_transforms("ViT-B-32", device="cpu", output_dict=True, force_quick_gelu=True)
    package.model_dict.update(model=made[0], preprocess_val=made[2])
    torch.save({"state_dict": reward.network.state_dict()}, folder / "hpsv2.pt")

    def run() -> None:
        for item in items:
            package.score(str(item.image), item.prompt, cp=str(folder / "hpsv2.pt"))

    return run


def peers(names: list[str], items: list[Item], rounds: int, means: Means) -> dict[str, Any]:
    """How many times as fast `score_items` is as the packages on the same files."""
    reward = random_reward(ClipScore)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], None]] = {"exact": lambda: through({"exact": reward}, items, means)}
        if "imscore" in names:
            ways["imscore"] = through_imscore(reward, items)
        if "hpsv2" in names:
            ways["hpsv2"] = through_hpsv2(reward, items, Path(folder))
        found = in_turns(ways, rounds)
    return {"times as fast": {f"exact as {name}": ratios(found[name], found["exact"]) for name in names}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--large-images", type=int, default=64, help="images for ViT-L/14")
    parser.add_argument("--shared-images", type=int, default=100, help="images for several rewards at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 20_000], help="images for --memory")
    parser.add_argument("--peer", choices=["hpsv2", "imscore"], action="append", default=[])
    parser.add_argument("--peer-images", type=int, default=32)
    parser.add_argument("--only-score", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    means = Means(batch_size=BATCH)
    if asked.only_score:
        only_score(asked.only_score, Means())
        return
    if asked.memory:
        print(json.dumps(memory(asked.counts), indent=2))
        return
    with tempfile.TemporaryDirectory() as folder:
        items = draw(Path(folder), max(asked.images, asked.large_images, asked.shared_images))
        found: dict[str, Any] = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
        found["ViT-B/32"] = rates(ClipScore, items[: asked.images], asked.rounds, means)
        found["ViT-L/14"] = rates(ClipScoreLarge, items[: asked.large_images], asked.rounds, means)
        found["on one tower"] = together(items[: asked.shared_images], asked.rounds, means)
        if asked.peer:
            found["peers"] = peers(asked.peer, items[: asked.peer_images], asked.rounds, means)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

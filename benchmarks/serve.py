"""Throughput of `rwk serve` as a ratio to scoring the same images in batches in one process, measured in turns.

    OMP_NUM_THREADS=1 python benchmarks/serve.py                        # the built-in world's scorer
    OMP_NUM_THREADS=1 python benchmarks/serve.py --reward clipscore.b32 --network random
    python benchmarks/serve.py --reward pickscore.v1 --device cuda

Both sides begin with image files in memory and decode them: the direct one in as many threads as there are cores, a
batch ahead of the scoring. The clients are threads of another process, which has its requests ready. A ratio of 1 says
that the server costs nothing. State the machine with the numbers: the clients take a share of it.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from rwk.adapters.published import PublishedReward
from rwk.rewards.base import Reward
from rwk.rewards.registry import REWARDS, load
from rwk.rewards.score_request import Limits, decode, open_images
from rwk.rewards.server import Server


def files(count: int, side: int) -> list[bytes]:
    """JPEG files of pictures that differ."""
    made = []
    for i in range(count):
        file = io.BytesIO()
        noise = Image.effect_noise((side // 8, side // 8), 30 + i % 40).resize((side, side)).convert("RGB")
        noise.save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def direct(reward: Reward, data: list[bytes], prompts: list[str], batch: int, pool: ThreadPoolExecutor) -> list[float]:
    """Scores of all files, of which the next batch is decoded while one is scored."""

    def decoded(start: int) -> list[Any]:
        opened, _ = open_images(data[start : start + batch], Limits())
        return [pool.submit(decode, image) for image in opened]

    values: list[float] = []
    ahead = decoded(0)
    for start in range(0, len(data), batch):
        images = [each.result().image for each in ahead]
        ahead = decoded(start + batch)
        values += reward.score(images, prompts[start : start + batch], batch_size=batch).values.tolist()
    return values


def clients(address: tuple[str, int], bodies: list[bytes], count: int, pipe: Any) -> None:
    """Sends the bodies by so many clients each time the pipe says so; sends back the seconds and the values."""

    def client(number: int) -> Iterator[tuple[int, list[float]]]:
        connection = http.client.HTTPConnection(*address, timeout=600)
        for i in range(number, len(bodies), count):
            connection.request("POST", "/score", bodies[i], {"Content-Type": "application/json"})
            yield i, json.loads(connection.getresponse().read())["values"]
        connection.close()

    with ThreadPoolExecutor(count) as pool:
        while pipe.recv():
            start = time.perf_counter()
            answers = dict(pair for found in pool.map(lambda n: list(client(n)), range(count)) for pair in found)
            seconds = time.perf_counter() - start
            pipe.send((seconds, [value for i in range(len(bodies)) for value in answers[i]]))


def numbers_of(values: list[float | None]) -> torch.Tensor:
    """The values of answers, NaN for null."""
    return torch.tensor([math.nan if value is None else value for value in values])


def reward_of(name: str, network: str, device: str) -> Reward:
    """The reward with the network that `--network` names."""
    if network == "published":
        return load(name, device=device)
    kind = REWARDS.target(name)
    if network == "tiny":
        return kind.tiny()
    if not issubclass(kind, PublishedReward):
        raise SystemExit(f"--network random needs a published reward, got {name}; take clipscore.b32.")
    torch.manual_seed(0)
    return kind.of(kind.build(), device=device)


def main() -> None:
    """Measures rounds of both in turns and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"clients": 50, "requests": 200, "images": 1, "side": 224, "batch": 16, "rounds": 3}
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--reward", default="shapes.clip")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--network",
        choices=("published", "random", "tiny"),
        default="published",
        help="the published weights, random ones in a network of that size, or a small random network",
    )
    options = parser.parse_args()
    reward = reward_of(options.reward, options.network, options.device)
    data = files(options.requests * options.images, options.side)
    prompts = [reward.example_prompts[i % len(reward.example_prompts)] for i in range(len(data))]
    bodies = []
    for start in range(0, len(data), options.images):
        end = start + options.images
        images = [base64.b64encode(each).decode() for each in data[start:end]]
        bodies.append(json.dumps({"images": images, "prompts": prompts[start:end]}).encode())
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = Server({options.reward: reward}, max_batch=options.batch)
    process = multiprocessing.get_context("spawn").Process(
        target=clients, args=(server.server_address[:2], bodies, options.clients, there), daemon=True
    )
    process.start()
    rounds = []
    with server.running(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for turn in range(options.rounds + 1):
            start = time.perf_counter()
            expected = direct(reward, data, prompts, options.batch, pool)
            alone = time.perf_counter() - start
            here.send(True)
            served, values = here.recv()
            torch.testing.assert_close(numbers_of(values), torch.tensor(expected), rtol=1e-4, atol=1e-4, equal_nan=True)
            rounds += [(alone, served)] * bool(turn)  # the first warms up
        here.send(False)
    process.join()
    ratios = sorted(alone / served for alone, served in rounds)
    speeds = [len(data) / statistics.median(column) for column in zip(*rounds, strict=True)]
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, {vars(options)}")
    print(f"direct {speeds[0]:.1f} images/s, served {speeds[1]:.1f} images/s, ratio {statistics.median(ratios):.2f}")
    print(f"range of the ratio {ratios[0]:.2f}..{ratios[-1]:.2f} in {len(ratios)} rounds")


if __name__ == "__main__":
    main()

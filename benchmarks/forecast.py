"""Does best of 4 foretell what reinforcement learning gains? `python benchmarks/forecast.py [--out FOLDER] [--jobs 2]`.

For rewards of the built-in world of different quality: the normalised gain of best of 4 by the reward (eta) on the base
generator's own images, in and out of domain, and the gain of gold accuracy by GRPO and DPO with that reward. Prints a
row a reward, then Kendall's tau-b of forecast and gain over the rewards with its exact two-sided p. What lies in the
folder already is not made again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from proxies import NAMES

from rwk.calibration.best_of_n import best_of_n
from rwk.calibration.kendall import kendall
from rwk.calibration.statistics import bootstrap_interval
from rwk.policy_opt import generator as generators
from rwk.policy_opt.configs import Dpo, Grpo
from rwk.policy_opt.evaluate import GOLD, accuracy
from rwk.policy_opt.experiment import Experiment
from rwk.policy_opt.optimize import optimize
from rwk.policy_opt.prompts import read_prompts
from rwk.rewards import registry

DOMAINS = {"in domain": "shapes.long.test", "out of domain": "shapes.short"}
ALGORITHMS = {"grpo": Grpo(steps=40, save_every=0, kl_every=0), "dpo": Dpo(rounds=4, save_every=0, kl_every=0)}
SEED = 77
"""Of the images that the forecast is made on; no run draws with it."""


def forecasts(prompts: int, images: int) -> dict[str, dict[str, dict[str, float]]]:
    """Reward -> domain -> normalised gain of best of 4 in gold accuracy, with its interval clustered by prompt."""
    generator, verifier = generators.load("shapes.llama"), registry.load("shapes.verifier")
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in NAMES}
    for domain, family in DOMAINS.items():
        texts = [prompt.text for prompt in read_prompts(family, count=prompts, seed=SEED)]
        rollout = generator.sample(texts, per_prompt=images, seed=SEED)
        drawn = generator.decode(rollout.tokens)
        gold = accuracy(verifier.score(drawn, rollout.prompts).values, 1).reshape(-1, images).double().numpy()
        possible = best_of_n(gold, gold, 4) - gold.mean(1)
        for name in NAMES:
            reward = registry.load(name)
            given = rollout.prompts if reward.spec.needs_prompt else ()
            scores = reward.score(drawn, given, batch_size=64).values.reshape(-1, images).numpy()
            gained = best_of_n(scores, gold, 4) - gold.mean(1)

            def eta(w: Any, gained: Any = gained, possible: Any = possible) -> float:
                return float((w * gained).sum() / (w * possible).sum())

            value = bootstrap_interval(eta, np.arange(len(gold)), draws=1000, seed=0)
            found[name][domain] = {"mean": value.mean, "low": value.low, "high": value.high}
    return found


def run(job: tuple[str, str, str, int]) -> None:
    """One run in a folder of its own, unless it is there."""
    reward, algorithm, folder, prompts = job
    out = Path(folder, f"{reward.replace(':', '.')}-{algorithm}")
    if (out / "result.json").exists():
        return
    began = time.monotonic()
    experiment = Experiment(rewards=(reward,), eval_prompts=prompts)
    optimize(experiment, ALGORITHMS[algorithm], out=out, resume=(out / "config.json").exists())
    print(f"# {reward} {algorithm} took {time.monotonic() - began:.0f} s", flush=True)


def gain(folder: Path, reward: str, algorithm: str, domain: str) -> float:
    """Points of gold accuracy that the tuned generator has over the base."""
    found = json.loads((folder / f"{reward.replace(':', '.')}-{algorithm}" / "result.json").read_text())["results"]
    return 100 * float(found["tuned"][domain][GOLD]["mean"] - found["base"][domain][GOLD]["mean"])


def main() -> None:
    """Makes what is not made yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/forecast")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--prompts", type=int, default=100, help="prompts of each domain")
    options = parser.parse_args()
    folder = Path(options.out)
    print(f"# {', '.join(f'{name}: {asdict(config)}' for name, config in ALGORITHMS.items())}", flush=True)
    jobs = [(reward, algorithm, options.out, options.prompts) for reward in NAMES for algorithm in ALGORITHMS]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        pool.map(run, jobs, chunksize=1)
    eta = forecasts(options.prompts, 16)
    columns = [(algorithm, domain) for algorithm in ALGORITHMS for domain in DOMAINS]
    gains = {name: [gain(folder, name, *column) for column in columns] for name in NAMES}
    heads = " | ".join(f"{algorithm} {domain}" for algorithm, domain in columns)
    print(f"| reward | eta in domain | eta out of domain | {heads} |\n|{'---|' * (3 + len(columns))}")
    for name in NAMES:
        told = [f"{e['mean']:.2f} ({e['low']:.2f} to {e['high']:.2f})" for e in eta[name].values()]
        print(f"| {name} | {' | '.join(told)} | {' | '.join(f'{g:+.1f}' for g in gains[name])} |")
    for number, column in enumerate(columns):
        for domain in DOMAINS:
            forecast = [eta[name][domain]["mean"] for name in NAMES]
            tau, p = kendall(forecast, [gains[name][number] for name in NAMES], all_orders=len(NAMES))
            print(f"eta {domain} with the gain of {' '.join(column)}: tau {tau:+.2f}, p {p:.3f}")
    (folder / "forecast.json").write_text(json.dumps({"eta": eta, "columns": columns, "gains": gains}, indent=2))


if __name__ == "__main__":
    main()

"""Does calibration matter in training? `python benchmarks/calibrated_training.py [--out FOLDER] [--jobs 2]`.

In the built-in world, whose truth is known: GRPO from one noisy reward, plain, gated and by win rates; GRPO from two
rewards of very different scale, mixed in each way; DPO from the noisy reward, plain, with confident pairs alone, and
with soft labels. The rewards are calibrated first, on preferences of which one in ten is wrong. Prints, for each arm
and domain, gold accuracy less that of the first arm of its kind with the same seed: the mean over seeds and prompts
with its 95 % interval clustered by prompt, and the means of the single seeds. A run that is in the folder already is
not made again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rwk.adapters.shapes_preferences import preferences
from rwk.calibration.calibrate import place_of
from rwk.calibration.pairs import PairTable, score_preferences
from rwk.calibration.storage import Binding, save
from rwk.calibration.temperature import Temperature
from rwk.policy_opt.configs import Dpo, Grpo
from rwk.policy_opt.evaluate import GOLD, clustered
from rwk.policy_opt.experiment import Experiment
from rwk.policy_opt.optimize import optimize
from rwk.rewards import registry
from rwk.rewards.data import PreferenceDataset

ONE, TWO = ("shapes.noisy",), ("proxies:NoColors", "shapes.clip")
ARMS: dict[str, dict[str, tuple[tuple[str, ...], str, dict[str, Any]]]] = {
    "GRPO, one noisy reward": {
        "plain": (ONE, "grpo", {}),
        "gate 0.25": (ONE, "grpo", {"gate": 0.25}),
        "gate 1": (ONE, "grpo", {"gate": 1.0}),
        "win rate": (ONE, "grpo", {"advantage": "win_rate"}),
    },
    "GRPO, two rewards": {
        "normalise": (TWO, "grpo", {}),
        "sum": (TWO, "grpo", {"aggregation": "sum"}),
        "log odds": (TWO, "grpo", {"aggregation": "log_odds"}),
        "lower bound": (TWO, "grpo", {"aggregation": "lower_bound"}),
    },
    "DPO, one noisy reward": {
        "plain": (ONE, "dpo", {}),
        "confidence 0.8": (ONE, "dpo", {"min_confidence": 0.8}),
        "confidence 0.95": (ONE, "dpo", {"min_confidence": 0.95}),
        "soft labels": (ONE, "dpo", {"soft_labels": True}),
    },
}
"""Kind -> arm -> rewards, algorithm and what it changes; the others are held against the first arm of their kind."""


def calibrate(folder: Path, prompts: int) -> dict[str, float]:
    """Keeps a calibration of every reward under its name; gives the temperatures."""
    data = PreferenceDataset.read(preferences(folder, seed=1, count=prompts))
    found = {}
    for name in (*ONE, *TWO):
        reward = registry.load(name)
        fitted = Temperature().fit(PairTable.from_preferences(data, *score_preferences(reward, data, batch_size=64)))
        save(place_of(name), fitted, Binding.of(reward), data={"name": data.name, "sha256": data.digest()})
        found[name] = fitted.temperature_
    return found


def run(job: tuple[Path, str, str, int, argparse.Namespace]) -> None:
    """One run in a folder of its own, unless it is there; keeps gold accuracy [P, n] of each domain."""
    out, kind, arm, seed, options = job
    if (out / "gold.json").exists():
        return
    began = time.process_time()
    torch.set_num_threads(1)
    rewards, algorithm, changes = ARMS[kind][arm]
    given: Grpo | Dpo = Grpo(steps=options.steps, prompts_per_step=options.prompts_per_step)
    if algorithm == "dpo":
        given = Dpo(rounds=options.rounds, prompts_per_round=options.prompts_per_round)
    config = replace(given, seed=seed, save_every=0, kl_every=0, **changes)
    experiment = Experiment(rewards=rewards, eval_prompts=options.eval_prompts)
    found = optimize(experiment, config, out=out, resume=(out / "config.json").exists())
    gold = {domain: drawn.scores[GOLD].tolist() for domain, drawn in found.after.items()}
    gold |= {f"base {domain}": drawn.scores[GOLD].tolist() for domain, drawn in found.before.items()}
    (out / "gold.json").write_text(json.dumps(gold))
    print(f"# {kind}, {arm}, seed {seed}: {time.process_time() - began:.0f} s of one core", flush=True)


def told(runs: dict[tuple[str, int], dict[str, torch.Tensor]], kind: str, domains: list[str]) -> None:
    """Prints the table of a kind."""
    seeds = sorted({seed for _, seed in runs})
    first = next(iter(ARMS[kind]))
    print(f"\n| {kind} | {' | '.join(domains)} |\n|{'---|' * (1 + len(domains))}")
    for arm in ("base", *ARMS[kind]):
        cells = []
        for domain in domains:
            key = f"base {domain}" if arm == "base" else domain
            accuracy = torch.stack([runs[first if arm == "base" else arm, seed][key].mean(1) for seed in seeds], 1)
            if arm in ("base", first):  # [P, seeds]
                value = clustered(100 * accuracy)
                cells.append(f"{value.mean:.1f} % ({value.low:.1f} to {value.high:.1f})")
                continue
            gain = 100 * (accuracy - torch.stack([runs[first, seed][domain].mean(1) for seed in seeds], 1))
            value, each = clustered(gain), ", ".join(f"{x:+.1f}" for x in gain.mean(0).tolist())
            cells.append(f"{value.mean:+.1f} ({value.low:+.1f} to {value.high:+.1f}); seeds {each}")
        print(f"| {arm} | {' | '.join(cells)} |")


def main() -> None:
    """Makes what is not made yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/calibrated_training"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="updates of GRPO")
    parser.add_argument("--prompts-per-step", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=4, help="rounds of DPO")
    parser.add_argument("--prompts-per-round", type=int, default=128)
    parser.add_argument("--eval-prompts", type=int, default=100, help="prompts of each domain")
    parser.add_argument("--preferences", type=int, default=600, help="prompts whose pictures are compared to calibrate")
    options = parser.parse_args()
    print("#", " ".join(f"{name} {value}" for name, value in vars(options).items()))
    print("# temperatures:", calibrate(options.out / "preferences", options.preferences), flush=True)
    names = [(kind, arm, seed) for seed in range(options.seeds) for kind, arms in ARMS.items() for arm in arms]
    folders = {name: options.out / "-".join(map(str, name)).replace(" ", "_").replace(",", "") for name in names}
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        pool.map(run, [(folders[name], *name, options) for name in names], chunksize=1)
    for kind in ARMS:
        runs = {}
        for of, arm, seed in names:
            if of == kind:
                held = json.loads((folders[of, arm, seed] / "gold.json").read_text())
                runs[arm, seed] = {domain: torch.tensor(rows) for domain, rows in held.items()}
        told(runs, kind, [domain for domain in next(iter(runs.values())) if not domain.startswith("base ")])


if __name__ == "__main__":
    main()

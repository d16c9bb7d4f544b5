"""DPO and GRPO over several seeds: `python benchmarks/optimisation.py [--seeds 3] [--reward shapes.verifier]`.

Prints gold accuracy of the base, its best of n and each tuned generator, by seed and domain, and then the mean gain of
each algorithm over the base, with the smallest and the largest of the seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

GOLD = "gold accuracy"


def run(algo: str, seed: int, reward: str, prompts: int, out: Path) -> dict[str, Any]:
    """The results of one run with default settings, judged on that many prompts of each domain."""
    words = ["optimize", "--algo", algo, "--reward", reward, "--seed", str(seed), "--eval-prompts", str(prompts)]
    words += ["--out", str(out), "--name", "bench"]
    subprocess.run([sys.executable, "-m", "rwk.cli", *words], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((out / "result.json").read_text())["results"]
    return found


def told(algo: str, seed: int, found: dict[str, Any]) -> dict[str, float]:
    """Prints the rows of a run; gives the gain of the tuned generator over the base by domain, in points."""
    for row, domains in found.items():
        cells = [
            f"{domain} {100 * s[GOLD]['mean']:.1f} % ({100 * s[GOLD]['low']:.1f} to {100 * s[GOLD]['high']:.1f})"
            for domain, s in domains.items()
        ]
        print(f"{algo} seed {seed} {row:10} {', '.join(cells)}", flush=True)
    return {
        domain: 100 * (scores[GOLD]["mean"] - found["base"][domain][GOLD]["mean"])
        for domain, scores in found["tuned"].items()
    }


def main() -> None:
    """Runs every algorithm with every seed, and prints each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reward", default="shapes.verifier")
    parser.add_argument("--eval-prompts", type=int, default=120)
    parser.add_argument("--algo", choices=["grpo", "dpo"], action="append", help="one of the two alone")
    args = parser.parse_args()
    print(f"{GOLD} by algorithm, seed and row; {args.reward} as reward, {args.eval_prompts} prompts a domain")
    for algo in args.algo or ["grpo", "dpo"]:
        gains: list[dict[str, float]] = []
        for seed in range(args.seeds):
            begun = time.monotonic()
            with TemporaryDirectory() as folder:
                found = run(algo, seed, args.reward, args.eval_prompts, Path(folder) / "run")
            gains.append(told(algo, seed, found))
            print(f"{algo} seed {seed} took {time.monotonic() - begun:.0f} s", flush=True)
        for domain in gains[0]:
            of = [gain[domain] for gain in gains]
            print(f"{algo} gains {sum(of) / len(of):+.1f} points {domain} ({min(of):+.1f} to {max(of):+.1f})")


if __name__ == "__main__":
    main()

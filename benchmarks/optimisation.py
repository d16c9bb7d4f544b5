"""DPO and GRPO with the verifier as reward, over several seeds: `python benchmarks/optimisation.py [--seeds 3]`.

Prints a table: gold accuracy of the base, its best of 4, and of each tuned generator, per seed and domain.
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


def run(algo: str, seed: int, reward: str, out: Path) -> dict[str, Any]:
    """The result of one run with default settings."""
    words = ["optimize", "--algo", algo, "--reward", reward, "--seed", str(seed), "--out", str(out), "--name", "bench"]
    subprocess.run([sys.executable, "-m", "rwk.cli", *words], check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def main() -> None:
    """Runs every algorithm with every seed and prints each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reward", default="shapes.verifier")
    args = parser.parse_args()
    print(f"{GOLD} by algorithm, seed and row; {args.reward} as reward")
    with TemporaryDirectory() as folder:
        for algo in ("grpo", "dpo"):
            for seed in range(args.seeds):
                begun = time.monotonic()
                found = run(algo, seed, args.reward, Path(folder) / f"{algo}-{seed}")
                for row, domains in found["results"].items():
                    cells = [f"{domain} {100 * scores[GOLD]['mean']:.1f} %" for domain, scores in domains.items()]
                    print(f"{algo} seed {seed} {row:10} {', '.join(cells)}", flush=True)
                print(f"{algo} seed {seed} took {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()

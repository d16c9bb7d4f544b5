"""What it takes to calibrate a reward: every measure with its bootstrap interval, against a loop over the draws.

    python benchmarks/calibration.py
    OMP_NUM_THREADS=1 python benchmarks/calibration.py --pairs 2000 --prompts 200 --draws 500

`calibrate` fits a temperature, measures it on prompts that no fit has seen, and puts an interval round every measure by
resampling prompts. The loop takes the same probabilities and the same draws, copies the rows of the prompts that were
drawn, and calls each measure on them: what one writes who has the measures alone. It runs over `--naive` draws and is
scaled to all of them; the intervals of those are as wide.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from rwk.calibration import metrics
from rwk.calibration.calibrate import calibrate
from rwk.calibration.evaluate import COVERAGES, cross_fitted, evaluate
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.statistics import Interval
from rwk.calibration.temperature import Temperature

ENDS = (0.025, 0.975)


def drawn(pairs: int, prompts: int, seed: int) -> PairTable:
    """Margins with deviation 2 that are too sure by half, and labels of one vote a pair."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 2, pairs)
    chance = 1 / (1 + np.exp(-margin / 1.5))
    return PairTable(margin, rng.random(pairs) < chance, prompt=[f"p{i % prompts}" for i in range(pairs)])


def naive(table: PairTable, q: Floats, draws: int, seed: int) -> dict[str, Floats]:
    """Measure -> [draws] its values on the rows that each draw of prompts holds."""
    rows = [np.flatnonzero(table.clusters == code) for code in range(table.prompts)]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        held = np.concatenate([rows[code] for code in rng.integers(0, len(rows), len(rows))])
        p, y, clusters = q[held], table.label[held], table.clusters[held]
        corp = metrics.brier(p, y)
        found.append(
            {
                "miscalibration": corp.miscalibration,
                "debiased_l2": metrics.debiased_l2(p, y, clusters=clusters),
                "ece": metrics.ece(p, y),
                "smooth_ece": metrics.smooth_ece(p, y),
                "brier": corp.brier,
                "discrimination": corp.discrimination,
                "auroc": metrics.auroc(p, y),
                "aurc": metrics.aurc(p, y),
            }
            | {f"accuracy_at_{part:g}": metrics.selective_accuracy(p, y, coverage=part) for part in COVERAGES}
        )
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def _width(interval: Interval) -> float:
    return interval.high - interval.low


def main() -> None:
    """Prints the seconds of both, their ratio, and how far they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10000)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--naive", type=int, default=100, help="draws of the loop, which is scaled to all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    table = drawn(options.pairs, options.prompts, options.seed)
    begun = time.perf_counter()
    found = calibrate(table, Temperature(), draws=options.draws, seed=options.seed).evaluation
    whole = time.perf_counter() - begun
    q = cross_fitted(Temperature(), table, seed=options.seed)
    begun = time.perf_counter()
    loop = naive(table, q, options.naive, options.seed)
    scaled = (time.perf_counter() - begun) * options.draws / options.naive
    same = evaluate(table, q, draws=options.naive, null_draws=1, seed=options.seed)
    apart = max(
        abs(_width(same.measures[name].interval) - float(np.ptp(np.quantile(of, ENDS)))) for name, of in loop.items()
    )
    print(f"{options.pairs} pairs of {options.prompts} prompts, {len(found.measures)} measures, {cores} cores")
    print(f"rwk's calibrate, {options.draws} draws behind {len(loop)} of them: {whole:.1f} s")
    print(f"a loop over draws, {options.naive} run and scaled: {scaled:.1f} s, {scaled / whole:.1f} times as long")
    print(f"widths of the intervals of the same {options.naive} draws differ by {apart:.1e} at most")


if __name__ == "__main__":
    main()

"""What the card says of rewards whose defects are known: how often each probe warns or fails, over seeds.

    python benchmarks/known_answers.py
    python benchmarks/known_answers.py --seeds 1 --reward sound --reward counts

A seed draws the prompts, their pictures, people's judgements and the rewards' own error. `planted.py` holds the
rewards, what the card must say of each, and what else it may because it follows from the defect. A cell of the table
tells in how many seeds a probe warned or failed: `5!` where it must, `5` where it may, `5?` where neither, and `.` for
never. Probes that never do are not shown. The exit code is 1 where one that must did not, or one did that neither must
nor may.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

from planted import DEFECTS, Planted, flagged, missed, twins, unexplained, world

from rwk.calibration.probe import Result, Sizes, Subject
from rwk.calibration.probing import run_probes


def mark(name: str, probe: str, times: int, seen: Sequence[Sequence[Result]]) -> str:
    """The cell of a reward and a probe."""
    wanted = any(probe in _musts(name, results) for results in seen)
    if not times and not wanted:
        return "."
    strange = any(probe in unexplained(name, results) for results in seen)
    return f"{times}{'!' if wanted else '?' if strange else ''}"


def _musts(name: str, results: Sequence[Result]) -> list[str]:
    """Probes that must warn or fail: those that would be missed had none."""
    return missed(name, [result._replace(status="pass") for result in results])


def show(found: dict[str, list[list[Result]]]) -> None:
    """The table, its columns by number."""
    counts = {name: Counter(probe for results in seen for probe in flagged(results)) for name, seen in found.items()}
    every = [result.probe.name for result in next(iter(found.values()))[0]]
    shown = [probe for probe in every if any(counts[name][probe] for name in found)]
    for number, probe in enumerate(shown, 1):
        print(f"{number:>3} {probe}")
    print(f"\n{len(every) - len(shown)} other probes never warned or failed\n")
    width = max(len(name) for name in found)
    print(f"{'':{width}}" + "".join(f"{number:>4}" for number in range(1, len(shown) + 1)))
    for name, seen in found.items():
        print(f"{name:{width}}" + "".join(f"{mark(name, probe, counts[name][probe], seen):>4}" for probe in shown))


def main() -> None:
    """Prints the table, what is missed or not explained, and the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--reward", action="append", choices=list(DEFECTS), help="only this one; many times")
    parser.add_argument("--prompts", type=int, default=72, help="of each of three domains")
    parser.add_argument("--per-prompt", type=int, default=8)
    parser.add_argument("--edited", type=int, default=96)
    options = parser.parse_args()
    names, begun = options.reward or list(DEFECTS), time.perf_counter()
    found: dict[str, list[list[Result]]] = {name: [] for name in names}
    wrong = []
    for seed in range(options.seeds):
        domains, known = world(options.prompts, options.per_prompt, seed=seed), twins(seed=seed)
        for name in names:
            sizes, reward = Sizes(edited=options.edited), Planted(name, seed=seed)
            results = run_probes(Subject(reward, domains, sizes, seed, counterparts=known))
            found[name].append(results)
            wrong += [f"seed {seed}, {name}: missed {probe}" for probe in missed(name, results)]
            wrong += [f"seed {seed}, {name}: {probe} is not explained" for probe in unexplained(name, results)]
            print(f"seed {seed}, {name}: {len(flagged(results))} of {len(results)} probes", file=sys.stderr)
    show(found)
    print(f"\n{options.seeds} seeds, {options.prompts} prompts a domain, {time.perf_counter() - begun:.0f} s")
    print("\n".join(wrong) or "every defect is named, and nothing is flagged that does not follow from it")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()

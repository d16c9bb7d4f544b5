"""Searches at test time side by side in the built-in world: gold accuracy and cost, at equal tokens and equal time.

    OMP_NUM_THREADS=1 python benchmarks/search.py --prompts 600 --n 4 --n 8
    OMP_NUM_THREADS=1 python benchmarks/search.py --n 4 --by shapes.clip --judge potential --judge shapes.clip
    OMP_NUM_THREADS=1 python benchmarks/search.py --prompts 600 --n 4 --n 8 --rounds 2

Every search draws the same candidates with the same seed. PARM may draw no more tokens than best of n. Its judge
`truth` is `adapters.shapes_potential`, the bound that the facts of the finished quadrants put on the picture. A
reward's name takes its score of the partial picture, and stops the lower `--share` of what it gives candidates of other
prompts; `rwk train-reward shapes.unfinished --name potential` trains one for it. What a judge stops of other draws is
told beforehand. With `--rounds` there is reflection too, whose critic is `adapters.shapes_critic`.

Each search is held against best of n, and against best of as many as take the same processor time, which lies between
two whole numbers: that share of the prompts gets the larger. Differences have 95 % intervals over prompts. `drawing` is
the part of the processor time that goes into tokens; the rest decodes, judges and scores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.shapes_critic import remarks
from rwk.adapters.shapes_potential import potential
from rwk.adapters.shapes_verifier import Verifier
from rwk.policy_opt import generator as generators
from rwk.policy_opt.evaluate import clustered
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.potential import Judge, potential_quantile
from rwk.policy_opt.prompts import read_prompts
from rwk.policy_opt.reflection import reflect
from rwk.policy_opt.search import Candidate, Search, best_of_n, parm
from rwk.policy_opt.searches import judge_of
from rwk.rewards import registry


class Timed(NamedTuple):
    """A search, and its seconds of processor time."""

    found: Search
    seconds: float
    drawing: float
    """The part of them that went into tokens."""


class Clock:
    """Processor time of the calls of some methods of an object, of which none calls another."""

    def __init__(self, thing: Any, *methods: str) -> None:
        self.spent = 0.0
        for name in methods:
            setattr(thing, name, self._watched(getattr(thing, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*words: Any, **options: Any) -> Any:
            begun = time.process_time()
            try:
                return call(*words, **options)
            finally:
                self.spent += time.process_time() - begun

        return watched

    def timed(self, run: Callable[[], Search]) -> Timed:
        begun, drawing = time.process_time(), self.spent
        found = run()
        return Timed(found, time.process_time() - begun, self.spent - drawing)


def right(chosen: Sequence[Candidate], prompts: Sequence[str]) -> Tensor:
    """[B] whether every fact of the prompt holds in the candidate's image."""
    return right_of([one.image for one in chosen], prompts)


def right_of(images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
    return (Verifier().score(images, prompts, batch_size=64).values == 1).float()


class Nested:
    """Best of every number up to that which was drawn, by the same draws."""

    def __init__(self, of: Timed, prompts: Sequence[str], most: int) -> None:
        ranked = [pick.kept for pick in of.found.picks]  # the best first
        truth = right([one for row in ranked for one in row], [p for p in prompts for _ in range(most)])
        places = torch.tensor([[one.place for one in row] for row in ranked])
        first = [(places < n).int().argmax(1) for n in range(1, most + 1)]
        self.right = torch.stack([truth.view(-1, most).gather(1, at[:, None])[:, 0] for at in first])  # [most, P]
        self.seconds, self.tokens = of.seconds / most, of.found.cost.tokens / most

    def best(self, n: float) -> Tensor:
        """[P] expected accuracy of best of n, which need not be whole."""
        low = min(int(n), len(self.right) - 1)
        return self.right[low - 1] + min(1.0, n - low) * (self.right[low] - self.right[low - 1])


def judged(name: str, generator: Generator, options: argparse.Namespace) -> tuple[Judge, float]:
    """A judge, and the potential below which it stops."""
    if name == "truth":
        return potential, 1.0
    judge = judge_of(name, generator)
    pilot = [prompt.text for prompt in read_prompts("shapes.long", count=64, seed=9)]
    return judge, potential_quantile(
        generator, judge, pilot, options.share, checkpoint=options.checkpoint, seed=options.seed
    )


def stopped(judge: Judge, least: float, generator: Generator, options: argparse.Namespace) -> str:
    """What a judge stops of other draws, by whether they would have come out right."""
    prompts = [prompt.text for prompt in read_prompts("shapes.long", count=225, seed=10)]
    drawn = generator.sample(prompts, per_prompt=4, seed=options.seed)
    good = right_of(generator.decode(drawn.tokens), drawn.prompts).bool()
    shown = generator.decode_partial(drawn.tokens[:, : options.checkpoint])
    stops = (judge(shown, drawn.prompts, options.checkpoint) < least).float()
    return f"{stops[good].mean():.0%} of those that come out right and {stops[~good].mean():.0%} of those that do not"


def line(name: str, n: int, of: Timed, plain: Nested, prompts: Sequence[str]) -> str:
    """A search beside best of n, and beside best of as many as take its time."""
    picks, cost, count = of.found.picks, of.found.cost, len(prompts)
    found = right([pick.kept[0] for pick in picks], prompts)
    even = of.seconds / plain.seconds
    cells = [f"{name:24}", f"{n:2}", f"{found.mean():.3f}"]
    for other in (float(n), even):
        gain = clustered((found - plain.best(other))[:, None])
        cells.append(f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")
    begun = sum(pick.started for pick in picks) / count
    cells += [f"{even:5.2f}", f"{begun:5.2f}", f"{cost.finished / count:5.2f}", f"{cost.judged / count:5.2f}"]
    cells += [f"{cost.tokens / plain.tokens / n:5.2f}", f"{of.seconds / n / plain.seconds:5.2f}"]
    return "  ".join([*cells, f"{of.drawing / of.seconds:5.2f}"])


def main() -> None:
    """Prints best of every n, and a line for each search and n."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="shapes.long.test")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--n", type=int, action="append")
    parser.add_argument("--most", type=int, default=16, help="of best of n")
    parser.add_argument("--by", default="shapes.verifier", help="the reward that chooses")
    parser.add_argument("--judge", action="append", help="truth, or the name of a reward; may be given several times")
    parser.add_argument("--share", type=float, default=0.2, help="of candidates that a reward stops")
    parser.add_argument("--checkpoint", type=int, default=32)
    parser.add_argument("--rounds", type=int, help="of reflection")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    generator, reward = generators.load("shapes.llama"), registry.load(options.by)
    clock = Clock(generator, "sample", "continue_from")
    prompts = [prompt.text for prompt in read_prompts(options.family, count=options.prompts)]
    most, seed = options.most, options.seed
    print(f"{options.family}, {len(prompts)} prompts, {options.by} chooses, seed {seed}")
    whole = clock.timed(lambda: best_of_n(generator, reward, prompts, most, seed=seed, keep=most))
    plain = Nested(whole, prompts, most)
    print("best of " + ", ".join(f"{n}: {row.mean():.3f}" for n, row in enumerate(plain.right, 1)))
    print(f"{1000 * plain.seconds / len(prompts):.1f} ms an image, {whole.drawing / whole.seconds:.2f} drawing")
    print(
        "search" + " " * 20 + "n  gold  less best of n             less best of as long       as long as  begun  "
        "finished  looks  tokens  time  drawing"
    )
    runs: dict[str, Callable[[int], Search]] = {}
    stops = [options.checkpoint]
    for name in options.judge or ["truth"]:
        judge, least = judged(name, generator, options)
        print(f"{name} stops, of 900 other draws, {stopped(judge, least, generator, options)}", flush=True)
        runs[f"parm, {name}"] = lambda n, judge=judge, least=least: parm(  # type: ignore[misc]
            generator, reward, judge, prompts, n, checkpoints=stops, least=least, seed=seed
        )
    if options.rounds:
        runs[f"reflect, {options.rounds} rounds"] = lambda n: reflect(
            generator, reward, remarks, prompts, n, rounds=options.rounds, seed=seed
        )
    for name, run in runs.items():
        for n in options.n or [2, 4, 8]:
            print(line(name, n, clock.timed(lambda n=n, run=run: run(n)), plain, prompts), flush=True)


if __name__ == "__main__":
    main()

"""Best of n against PARM, or reflection, at equal tokens in the built-in world: gold accuracy, and what each takes.

    OMP_NUM_THREADS=1 python benchmarks/search.py --prompts 60 --n 2 --n 4 --n 8
    OMP_NUM_THREADS=1 python benchmarks/search.py --n 4 --by shapes.clip --judge shapes.clip
    OMP_NUM_THREADS=1 python benchmarks/search.py --prompts 120 --n 4 --n 8 --rounds 2

Both draw the same candidates with the same seed; PARM may draw no more tokens than best of n. The judge `truth` is
`adapters.shapes_potential`, the bound that the facts of the finished quadrants put on the picture. A reward's name
takes its score of the partial picture, and stops the lower `--share` of what it gives candidates of other prompts.
With `--rounds` it is reflection instead, whose critic is `adapters.shapes_critic`: it draws no more where that finds
nothing wrong, so its tokens are at most those of best of n, and its looks are those of the critic.
The difference has a 95 % interval over prompts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from torch import Tensor

from rwk.adapters.shapes_critic import remarks
from rwk.adapters.shapes_potential import potential
from rwk.adapters.shapes_verifier import Verifier
from rwk.policy_opt import generator as generators
from rwk.policy_opt.evaluate import clustered
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.prompts import read_prompts
from rwk.policy_opt.reflection import reflect
from rwk.policy_opt.search import Judge, RewardJudge, Search, best_of_n, parm, potential_quantile
from rwk.rewards import registry


def accuracy(found: Search) -> Tensor:
    """[P, 1] whether every fact of the prompt holds in the image that was kept."""
    images = [pick.kept[0].image for pick in found.picks]
    scores = Verifier().score(images, [pick.prompt for pick in found.picks], batch_size=64).values
    return (scores == 1).float()[:, None]


def timed(run: Callable[[], Search]) -> tuple[Search, float]:
    """What a search found, and its seconds of processor time."""
    begun = time.process_time()
    return run(), time.process_time() - begun


def judged(options: argparse.Namespace, generator: Generator) -> tuple[Judge, float]:
    """The judge, and the potential below which it stops."""
    if options.judge == "truth":
        return potential, 1.0
    judge = RewardJudge(registry.load(options.judge))
    pilot = [prompt.text for prompt in read_prompts("shapes.long", count=16, seed=9)]
    return judge, potential_quantile(
        generator, judge, pilot, options.share, checkpoint=options.checkpoint, seed=options.seed
    )


def main() -> None:
    """Prints a line for each n."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="shapes.long.test")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--n", type=int, action="append")
    parser.add_argument("--by", default="shapes.verifier", help="the reward that chooses")
    parser.add_argument("--judge", default="truth", help="truth, or the name of a reward")
    parser.add_argument("--share", type=float, default=0.4, help="of candidates that a reward stops")
    parser.add_argument("--checkpoint", type=int, default=32)
    parser.add_argument("--rounds", type=int, help="of reflection, in place of PARM")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    generator, reward = generators.load("shapes.llama"), registry.load(options.by)
    prompts = [prompt.text for prompt in read_prompts(options.family, count=options.prompts)]
    other, who = ("reflection", "shapes.critic") if options.rounds else ("PARM", options.judge)
    judge, least = judged(options, generator)
    print(f"{options.family}, {len(prompts)} prompts, {options.by} chooses, {who} judges, seed {options.seed}")
    print(f"  n  best of n  {other}  difference            begun  finished  looks  tokens of best of n  processor time")

    def search(n: int) -> Search:
        if options.rounds:
            return reflect(generator, reward, remarks, prompts, n, rounds=options.rounds, seed=options.seed)
        stops = [options.checkpoint]
        return parm(generator, reward, judge, prompts, n, checkpoints=stops, least=least, seed=options.seed)

    for n in options.n or [2, 4, 8]:
        plain, seconds = timed(lambda n=n: best_of_n(generator, reward, prompts, n, seed=options.seed))
        ours, other_seconds = timed(lambda n=n: search(n))
        before, after = accuracy(plain), accuracy(ours)
        gain = clustered(after - before)
        begun = sum(pick.started for pick in ours.picks) / len(prompts)
        share = {name: getattr(ours.cost, name) / len(prompts) for name in ("finished", "judged")}
        print(
            f"{n:3}  {before.mean():9.3f}  {after.mean():{len(other)}.3f}  "
            f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})  {begun:5.2f}  {share['finished']:8.2f}  "
            f"{share['judged']:5.2f}  {ours.cost.tokens / plain.cost.tokens:19.2f}  {other_seconds / seconds:14.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""What a reward's gradient, and its second asking, add to best of n in the built-in world: gold accuracy and cost.

    OMP_NUM_THREADS=1 python benchmarks/refine.py --prompts 400 --n 4 --trust 0.3 --trust 1 --trust 3

The same draws are used throughout. `one` is the first image of a prompt, `best of n` the one that the reward scores
highest. `refined` moves the codes of such an image up the reward's gradient (`policy_opt.latent`, as `rwk sample
--refine-by` does), and keeps it where rounding to codes left it no better. `permuted` is best of n by
`permuted(REWARD)`, which asks under every order of the things in the prompt.

A row is held against best of as many draws as take the same processor time, which lies between two whole numbers: that
share of the prompts gets the larger. Differences have 95 % intervals over prompts. Forwards are those of the reward;
refining takes a gradient with each but the last two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rwk.adapters.shapes_verifier import Verifier
from rwk.policy_opt import generator as generators
from rwk.policy_opt.evaluate import clustered
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.latent import STEPS, refine
from rwk.policy_opt.prompts import read_prompts
from rwk.rewards import registry
from rwk.rewards.base import Reward
from rwk.rewards.permutation import wordings

T = TypeVar("T")
AT_ONCE = 16
"""Images that are refined at once."""


class Drawn(NamedTuple):
    """Draws for some prompts, and what they cost."""

    prompts: list[str]
    tokens: Tensor
    """[P, N, L]"""
    scores: Tensor
    """[P, N] by the reward."""
    right: Tensor
    """[P, N] whether every fact of the prompt holds."""
    seconds: float
    """Of processor time for each draw, scoring included."""

    def best(self, n: float, scores: Tensor | None = None) -> Tensor:
        """[P] accuracy of best of n by the reward, or by other scores; n need not be whole."""
        low = min(int(n), self.scores.shape[1])
        found = self.right.gather(1, self.chosen(low, scores)[:, None])[:, 0]
        if n > low < self.scores.shape[1]:
            found = found + (n - low) * (self.best(low + 1, scores) - found)
        return found

    def chosen(self, n: int, scores: Tensor | None = None) -> Tensor:
        """[P] place of the best of n, the first of equals."""
        return (self.scores if scores is None else scores)[:, :n].argmax(1)


def timed(run: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and its seconds of processor time."""
    begun = time.process_time()
    return run(), time.process_time() - begun


def truth(generator: Generator, tokens: Tensor, prompts: list[str]) -> Tensor:
    """[B] whether every fact of the prompt holds in the image."""
    return (Verifier().score(generator.decode(tokens), prompts, batch_size=64).values == 1).float()


def drawn(generator: Generator, reward: Reward, prompts: list[str], most: int, seed: int) -> Drawn:
    """Draws, scored."""

    def score() -> tuple[Tensor, list[str], Tensor]:
        rollout = generator.sample(prompts, per_prompt=most, seed=seed)
        images = generator.decode(rollout.tokens)
        return rollout.tokens, rollout.prompts, reward.score(images, rollout.prompts, batch_size=64).values

    (tokens, asked, scores), seconds = timed(score)
    right = truth(generator, tokens, asked)
    shape = len(prompts), most
    return Drawn(prompts, tokens.view(*shape, -1), scores.view(shape), right.view(shape), seconds / len(tokens))


def refined(
    generator: Generator, reward: Reward, tokens: Tensor, prompts: list[str], trust: float
) -> tuple[Tensor, float]:
    """Tokens [P, L] after the step, and how much the reward rose."""
    kept, gains = [], []
    for start in range(0, len(tokens), AT_ONCE):
        part, texts = tokens[start : start + AT_ONCE], prompts[start : start + AT_ONCE]
        found = refine(generator, reward, part, texts, trust=trust)
        kept.append(torch.where((found.after > found.before)[:, None], found.tokens, part))
        gains.append((found.after - found.before).clamp(min=0))
    return torch.cat(kept), torch.cat(gains).mean().item()


def show(name: str, right: Tensor, seconds: float, forwards: float, plain: Drawn, before: Tensor) -> None:
    """A line: accuracy, what it has over what it began with, and over best of as many draws as take its time."""
    even = min(max(seconds / plain.seconds, 1.0), float(plain.scores.shape[1]))
    cells = [f"{name:32}", f"{right.mean():.3f}"]
    for other in (before, plain.best(even)):
        gain = clustered((right - other)[:, None])
        cells.append(f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")
    print("  ".join([*cells, f"{even:5.2f}", f"{1000 * seconds:8.1f}", f"{forwards:5.1f}"]), flush=True)


def main() -> None:
    """Prints a line for each way to use the reward."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="shapes.long.test")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--most", type=int, default=32, help="draws of each prompt")
    parser.add_argument("--by", default="shapes.clip", help="a reward with a gradient")
    parser.add_argument("--trust", type=float, action="append")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    generator, reward = generators.load("shapes.llama"), registry.load(options.by)
    prompts = [prompt.text for prompt in read_prompts(options.family, count=options.prompts)]
    n, plain = options.n, drawn(generator, reward, prompts, options.most, options.seed)
    print(f"{options.family}, {len(prompts)} prompts, {options.by}, seed {options.seed}")
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64) if count <= options.most]
    print("best of " + ", ".join(f"{count}: {plain.best(count).mean():.3f}" for count in counts))
    print(" " * 32 + "  gold   less what it began with    less best of as long       as long as   ms  forwards")
    for start, name in ((1, "one"), (n, f"best of {n}")):
        before = plain.best(start)
        tokens = plain.tokens[torch.arange(len(prompts)), plain.chosen(start)]
        for trust in options.trust or [1.0]:
            (after, gain), seconds = timed(
                lambda tokens=tokens, trust=trust: refined(generator, reward, tokens, prompts, trust)
            )  # type: ignore[misc]  # noqa: E501
            each = start * plain.seconds + seconds / len(prompts)
            label = f"{name}, refined, trust {trust:g}"
            show(label, truth(generator, after, prompts), each, start + STEPS + 4, plain, before)
            print(f"{'':34}the reward rose by {gain:.3f}, {(after != tokens).float().mean():.3f} of the codes changed")
    asking = registry.load(f"permuted({options.by})")
    every = [prompt for prompt in prompts for _ in range(n)]
    images = generator.decode(plain.tokens[:, :n].reshape(len(every), -1))
    scores, seconds = timed(lambda: asking.score(images, every, batch_size=64).values.view(-1, n))
    asked = sum(len(wordings(prompt)) for prompt in prompts) / len(prompts)
    several = torch.tensor([len(wordings(prompt)) > 1 for prompt in prompts])
    own = timed(lambda: reward.score(images, every, batch_size=64))[1]
    each = n * plain.seconds + (seconds - own) / len(prompts)
    show(f"best of {n}, permuted", plain.best(n, scores), each, n * asked, plain, plain.best(n))
    gain = clustered((plain.best(n, scores) - plain.best(n))[several][:, None])
    of_these = f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
    print(f"{'':34}{several.sum()} prompts have several orders; of these alone {of_these}")


if __name__ == "__main__":
    main()

"""Search with reflection: a critic says what is wrong with the best image so far, and more are drawn with that in mind.

PARM++ (arXiv:2501.13926) has a generator that was tuned to read its own image and the remark. Here any generator of
text is told: the remark is put behind the prompt, and whoever was not taught to read such a prompt may be no wiser.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from PIL import Image

from rwk.policy_opt.generator import Generator
from rwk.policy_opt.journal import derived_seed
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.search import Candidate, Cost, Search, candidates, check_search, picked
from rwk.rewards.base import Reward

Critic = Callable[[Sequence[Image.Image], Sequence[str]], list[str]]
"""(images, their prompts) -> [B] what a picture should show that this one does not; "" where nothing is wrong."""


def amended(prompt: str, remark: str) -> str:
    """The prompt with a remark behind it.

    >>> amended("a photo of two dogs.", "there are two dogs")
    'a photo of two dogs. there are two dogs'
    """
    return f"{prompt.rstrip(' .')}. {remark}"


def reflect(
    generator: Generator,
    reward: Reward,
    critic: Critic,
    prompts: Sequence[str],
    n: int,
    *,
    rounds: int = 2,
    seed: int,
    sampling: Sampling | None = None,
    keep: int = 1,
    slots: int = 256,
) -> Search:
    """Draws at most n images of each prompt, in rounds, and keeps those that the reward scores highest by the prompt.

    The first round draws as `best_of_n` does. Before each other one the critic looks at the best image of the prompt so
    far. Where it finds nothing wrong no more is drawn; else the round draws for the prompt with its remark.

    Args:
        critic: what says what is wrong; its looks are counted as `judged`.
        n: images of each prompt, spread over the rounds as evenly as can be, the first ones first.
        rounds: at least 2.
        generator, reward, prompts, seed, sampling, keep, slots: as in `best_of_n`.
    """
    check_search(prompts, n, keep)
    if not 2 <= rounds <= n:
        raise ValueError(f"reflection needs at least 2 rounds and an image for each, got {rounds} and {n} images.")
    begun, images, looks = time.monotonic(), 0, 0
    found: list[list[Candidate]] = [[] for _ in prompts]
    asked, still = list(prompts), list(range(len(prompts)))
    for number in range(rounds):
        if number:
            best = [picked(prompts[i], found[i], len(found[i]), 1).kept[0].image for i in still]
            remarks = critic(best, [prompts[i] for i in still])
            looks += len(still)
            asked = [amended(prompts[i], remark) for i, remark in zip(still, remarks, strict=True) if remark]
            still = [i for i, remark in zip(still, remarks, strict=True) if remark]
        size = n // rounds + (number < n % rounds)
        step = max(1, slots // size)
        for start in range(0, len(still), step):
            part = still[start : start + step]
            tokens = generator.sample(
                asked[start : start + step],
                per_prompt=size,
                seed=derived_seed(seed, number) if number else seed,
                sampling=sampling,
            ).tokens
            texts = [prompts[i] for i in part for _ in range(size)]
            places = [len(found[i]) + place for i in part for place in range(size)]
            drawn = candidates(generator, reward, texts, places, tokens)
            for place, i in enumerate(part):
                found[i] += drawn[place * size : (place + 1) * size]
            images += len(drawn)
    picks = [picked(prompt, own, len(own), keep) for prompt, own in zip(prompts, found, strict=True)]
    seconds = time.monotonic() - begun
    return Search(picks, Cost(images * generator.spec.tokens, finished=images, judged=looks, seconds=seconds))

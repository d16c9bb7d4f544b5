"""What a judge sees in an unfinished image, for `search.parm`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from rwk.policy_opt.generator import Generator
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.base import Reward

Judge = Callable[[Sequence[Image.Image], Sequence[str], int], Tensor]
"""(partial images, their prompts, tokens drawn) -> [B] potential, larger is better; NaN where it is not yet clear."""


@dataclass(frozen=True)
class RewardJudge:
    """Takes the score of a partial image for its potential; whether that tells anything of the final score is open.

    It is what the score is above that of a blank picture under the same prompt, where there is one. So potentials of
    different prompts compare, though a reward that has learnt from pairs under one prompt says nothing across prompts.
    """

    reward: Reward
    blank: Image.Image | None = None
    """What is shown of an image of which nothing is drawn."""
    clear_from: int = 1
    """Tokens from which on an image is clear enough to be judged."""

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str], drawn: int) -> Tensor:
        if drawn < self.clear_from:
            return torch.full([len(images)], math.nan)
        scores = self._scores(images, prompts)
        if self.blank is None:
            return scores
        asked = list(dict.fromkeys(prompts))
        before = dict(zip(asked, self._scores([self.blank] * len(asked), asked).tolist(), strict=True))
        return scores - torch.tensor([before[prompt] for prompt in prompts])

    def _scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        return self.reward.score(images, prompts if self.reward.spec.needs_prompt else (), batch_size=64).values


def blank_of(generator: Generator) -> Image.Image:
    """What the generator shows of an image of which nothing is drawn; raises ValueError where it shows none."""
    return generator.decode_partial(torch.empty([1, 0], dtype=torch.long))[0]


def potential_quantile(
    generator: Generator,
    judge: Judge,
    prompts: Sequence[str],
    share: float,
    *,
    per_prompt: int = 4,
    checkpoint: int,
    seed: int,
    sampling: Sampling | None = None,
) -> float:
    """The potential below which this share of candidates lies after `checkpoint` tokens, for `least` of `parm`.

    Args:
        prompts: others than those that are searched for.
        share: 0..1.
        per_prompt: candidates of each prompt.
    """
    texts = [prompt for prompt in prompts for _ in range(per_prompt)]
    places = list(range(per_prompt)) * len(prompts)
    none = torch.empty([len(texts), 0], dtype=torch.long)
    tokens = generator.continue_from(texts, none, places=places, seed=seed, until=checkpoint, sampling=sampling)
    return judge(generator.decode_partial(tokens), texts, checkpoint).nanquantile(share).item()

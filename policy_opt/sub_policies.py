"""Sub-policies: recipes by which the images of one group are drawn, so that one generator explores in several ways.

A recipe, such as a temperature of its own, makes another distribution of the same weights. Each image is trained under
the one that drew it, so that its ratio begins at 1, and is held against the whole group. After TEEN, Li et al., "Keep
Various Trajectories" (NeurIPS 2023), whose ensemble is of separate networks; its term for diversity is `variety`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from rwk.policy_opt.generator import Generator, Rollout, TokenStatistics
from rwk.policy_opt.journal import derived_seed
from rwk.policy_opt.policy import Statistics
from rwk.policy_opt.recipes import changes
from rwk.policy_opt.sampling import Sampling


def recipes_of(texts: Sequence[str], base: Sampling) -> tuple[Sampling, ...]:
    """The distribution of each sub-policy: the run's own but for what its text sets."""
    return tuple(replace(base, **changes(text)) for text in texts)  # type: ignore[arg-type]


def draw_mixed(
    draw: Callable[..., Rollout],
    generator: Generator,
    prompts: Sequence[str],
    *,
    per_prompt: int,
    seed: int,
    recipes: Sequence[Sampling],
) -> Rollout:
    """As `Generator.sample`, but each recipe draws an equal share of every group, one after another.

    Args:
        draw: `Generator.sample`, or what draws as it does.
        per_prompt: a multiple of the number of recipes.
        seed: each recipe draws by a seed of its own, derived from it.
    """
    share = per_prompt // len(recipes)
    parts = [
        draw(generator, prompts, per_prompt=share, seed=derived_seed(seed, number), sampling=recipe)
        for number, recipe in enumerate(recipes)
    ]

    def together(name: str) -> Any:
        columns = [getattr(part, name).unflatten(0, (len(prompts), share)) for part in parts]
        return torch.cat(columns, 1).flatten(0, 1)

    slices = [slice(place * share, (place + 1) * share) for place in range(len(prompts))]
    return Rollout(
        [prompt for own in slices for part in parts for prompt in part.prompts[own]],
        together("group"),
        together("tokens"),
        together("logprobs"),
        recipes[0],
        tuple(recipe for _ in prompts for recipe in recipes for _ in range(share)),
    )


def by_recipe(statistics: Statistics) -> Statistics:
    """The statistics of a rollout whose rows may be of several recipes, each row under its own.

    A deep copy is of the copied generator, as that of `statistics` is.
    """
    return functools.partial(_mixed, statistics)


def _mixed(statistics: Statistics, rollout: Rollout) -> TokenStatistics:
    if not rollout.recipes:
        return statistics(rollout)
    order: list[int] = []
    parts = []
    for recipe in dict.fromkeys(rollout.recipes):
        rows = [row for row, own in enumerate(rollout.recipes) if own == recipe]
        parts.append(statistics(replace(rollout[torch.tensor(rows)], sampling=recipe, recipes=())))
        order += rows
    back = torch.tensor(order).argsort()
    logprobs, entropy = (torch.cat(list(column)) for column in zip(*parts, strict=True))
    return TokenStatistics(logprobs[back.to(logprobs.device)], entropy[back.to(entropy.device)])

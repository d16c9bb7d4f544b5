"""Searches by name, with their judges of partial images and critics of whole ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from rwk.policy_opt.experiment import Drawing
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.journal import derived_seed
from rwk.policy_opt.potential import Judge, RewardJudge, blank_of, potential_quantile
from rwk.policy_opt.reflection import Critic, reflect
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.search import Search, best_of_n, parm
from rwk.rewards.base import Reward
from rwk.rewards.registry import load

PILOT, STOPPED = 64, 0.2
"""Prompts of the pilot that says what little potential is, and the share of its candidates that has less."""

JUDGES = {"shapes.potential": "rwk.adapters.shapes_potential:potential"}
"""Name -> `module:function` that is a `Judge`; any reward is one too."""
CRITICS = {"shapes.critic": "rwk.adapters.shapes_critic:remarks"}
"""Name -> `module:function` that is a `Critic`."""
VLM_CRITIC = "judge.critic"
Searcher = Callable[[Sequence[str]], Search]
"""From different prompts to what is found for them."""
_VLM_CRITIC = "rwk.adapters.judge_critic:VlmCritic"


def judge_of(name: str, generator: Generator, *, device: str = "cpu") -> Judge:
    """The judge of that name: one of `JUDGES`, or what a reward gives a partial image above a blank."""
    if name in JUDGES:
        found: Judge = _named(JUDGES[name])
        return found
    return RewardJudge(load(name, device=device), blank_of(generator))


def critic_of(name: str, *, device: str = "cpu") -> Critic:
    """The critic of that name: one of `CRITICS`, or a vision-language model as `judge.critic` or `judge.critic@PATH`.

    Raises:
        ValueError: for an unknown name.
    """
    kind, _, weights = name.partition("@")
    if kind == VLM_CRITIC:
        made: Critic = _named(_VLM_CRITIC)(weights=weights or None, device=device)
        return made
    if name not in CRITICS:
        known = ", ".join([*CRITICS, VLM_CRITIC, f"{VLM_CRITIC}@PATH"])
        raise ValueError(f"a critic must be one of {known}, got {name!r}.")
    found: Critic = _named(CRITICS[name])
    return found


def searcher(
    drawing: Drawing,
    generator: Generator,
    reward: Reward,
    prompts: Sequence[str],
    *,
    seed: int,
    sampling: Sampling,
    device: str = "cpu",
) -> Searcher:
    """The search that a drawing asks for.

    Args:
        reward: what chooses in the end.
        prompts: all that will be searched for; where parm is not told what little potential is, the first of them are
            drawn for, with a seed of their own.
    """
    n, name = drawing.best_of or 1, drawing.judge or ""
    shared: dict[str, Any] = {"seed": seed, "sampling": sampling, "keep": drawing.kept}
    if drawing.search == "best":
        return lambda texts: best_of_n(generator, reward, texts, n, **shared)
    if drawing.search == "reflect":
        critic = critic_of(name, device=device)
        return lambda texts: reflect(generator, reward, critic, texts, n, rounds=drawing.rounds, **shared)
    judge, checkpoints = judge_of(name, generator, device=device), drawing.checkpoint or (generator.spec.tokens // 2,)
    least = drawing.least
    if least is None:
        pilot: dict[str, Any] = {"checkpoint": checkpoints[0], "seed": derived_seed(seed, 0), "sampling": sampling}
        least = potential_quantile(generator, judge, prompts[:PILOT], STOPPED, **pilot)
    return lambda texts: parm(generator, reward, judge, texts, n, checkpoints=checkpoints, least=least, **shared)


def _named(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)

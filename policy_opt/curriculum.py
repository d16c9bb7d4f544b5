"""Rewards in two stages: after `then_after` updates a run learns from those that `then` names, in place of its own.

SRPO, Zhang et al. (2025), arXiv:2504.14286, learns one domain first and another after it; here the stages are rewards,
such as what the prompt says first and how the picture looks after it. A stage has its own pass over the prompts, so one
that the ledger left out under the first reward comes back under the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import NamedTuple

from rwk.policy_opt.advantage import Weighted, floors_of
from rwk.policy_opt.calibrated import preference_unit
from rwk.policy_opt.configs import Grpo


class Stage(NamedTuple):
    """What is learnt from for some time."""

    rewards: list[Weighted]
    """All that are measured, those that are not learnt from with weight 0."""
    unit: float
    """Margin of the combined reward that makes log-odds of 1; NaN where nobody asks."""
    floors: list[float]
    """As `combine` takes them."""


class Curriculum:
    """The stages of a run: one, or two where `then` names rewards."""

    def __init__(self, config: Grpo, rewards: Sequence[Weighted]) -> None:
        """
        Args:
            rewards: with the weights of the first stage; in the second one of weight 0 counts 1.

        Raises:
            ValueError: where `then` names what is not among them, or a stage has no unit though one is asked for.
        """
        unknown = sorted(set(config.then) - {part.name for part in rewards})
        if unknown:
            raise ValueError(f"then must name rewards of the run, got {unknown[0]}; add it with weight 0.")
        later = [part._replace(weight=(part.weight or 1.0) if part.name in config.then else 0.0) for part in rewards]
        self._after = config.then_after
        learnt = [part._replace(weight=part.weight or other.weight) for part, other in zip(rewards, later, strict=True)]
        floors = floors_of(learnt if config.then else rewards, config.std_floor, min_std=config.min_std)
        self.stages = [_stage(config, parts, floors) for parts in ([rewards, later] if config.then else [rewards])]
        """One or two."""

    def number(self, step: int) -> int:
        """Index of the stage that a draw after so many updates belongs to."""
        return int(len(self.stages) > 1 and step >= self._after)

    def at(self, step: int) -> Stage:
        """The stage that a draw after so many updates belongs to."""
        return self.stages[self.number(step)]

    @property
    def learnt(self) -> list[Weighted]:
        """The rewards that some stage learns from."""
        return [
            parts[0]
            for parts in zip(*(stage.rewards for stage in self.stages), strict=True)
            if any(part.weight for part in parts)
        ]


def _stage(config: Grpo, rewards: Sequence[Weighted], floors: list[float]) -> Stage:
    unit = preference_unit(rewards, config.aggregation) if config.margins_count else nan
    return Stage(list(rewards), unit, floors)

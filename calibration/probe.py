"""What a probe is: a question about a reward with a gate, and its answer with an interval, a status and a reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from rwk.calibration.counterparts import Counterparts
from rwk.calibration.domain import Codes as Codes
from rwk.calibration.domain import Domain as Domain
from rwk.calibration.judged import judged, judged_rows
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.run_log import Looks
from rwk.calibration.statistics import Interval, bootstrap_interval, mean_interval, pooled_sd, wilson
from rwk.calibration.temperature import Temperature
from rwk.rewards.base import Reward

Status = Literal["pass", "warn", "fail", "skip"]
FLOOR = 0.25
"""Margin in units of the scale below which a preference is noise: 0.25 of a temperature is 56 to 44."""


@dataclass(frozen=True)
class Probe:
    """A question about a reward."""

    name: str
    """`family.question`."""
    definition: str
    """What is measured, in one sentence."""
    gate: str
    """When it warns and when it fails, in one sentence."""
    unit: str
    version: int = 1
    """Goes up when the definition or the gate changes."""


class Level(NamedTuple):
    """What one severity, domain or slice came to."""

    name: str
    value: Interval
    measures: dict[str, Interval] = {}
    """What else was measured there, each with its interval."""


class Finding(NamedTuple):
    """An image whose score changed as it should not, or failed to change."""

    before: Image.Image
    after: Image.Image
    prompt: str
    prompt_after: str
    score_before: float
    score_after: float
    what: str
    """What was done between the two."""


class Result(NamedTuple):
    """The answer."""

    probe: Probe
    status: Status
    reason: str
    value: Interval | None = None
    """The number that the gate looks at; None where the probe was skipped."""
    levels: Sequence[Level] = ()
    findings: Sequence[Finding] = ()
    """The worst first."""


@dataclass(frozen=True)
class Sizes:
    """How much a probe looks at."""

    edited: int = 96
    """Images that are edited, as many of each prompt as there is room for."""
    attacked: int = 16
    """Images that are attacked by gradients."""
    attack_steps: int = 20
    refined: int = 72
    """Images whose codes climb the reward's gradient."""
    refine_steps: int = 8
    """Times that each is moved, which is 90 % of the way to where the proximal step ends."""
    again: int = 32
    """Images that are scored again, in another order, and alone."""
    mutants: int = 64
    """Images of other codes among which the best is taken, for each attacked image."""
    draws: int = 500
    """Bootstrap draws behind intervals of what is no mean."""
    findings: int = 3
    """Images that each probe shows."""


class Scale(NamedTuple):
    """How large a margin must be to mean something."""

    value: float
    """In the reward's unit; NaN where it tells no image of a prompt from another."""
    name: str


@dataclass(eq=False)
class Subject:
    """The reward that is probed, with the images that it is probed on; the first domain is its own."""

    reward: Reward
    domains: Sequence[Domain]
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0
    batch_size: int = 32
    advance: Callable[[int], None] = lambda _: None
    """Is told of every so many images scored."""
    others: Mapping[str, Reward] = field(default_factory=dict)
    """Rewards that this one is compared with, by name."""
    ideal: Domain | None = None
    """Images that all fit their prompts, for probes that need such; by default those of the first domain that do."""
    counterparts: Counterparts = field(default_factory=Counterparts)
    """Images that differ in one known thing."""
    run: Looks | None = None
    """What was seen of a generator while it learnt from the reward."""

    def __post_init__(self) -> None:
        if not self.domains:
            raise ValueError("a reward is probed on at least one domain, got none.")

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Floats:
        """[N] scores, NaN where there is none."""
        return self._score(self.reward, images, prompts)

    def _score(self, reward: Reward, images: Sequence[Image.Image], prompts: Sequence[str]) -> Floats:
        if not len(images):
            return np.empty(0)
        found = reward.score(list(images), list(prompts), batch_size=self.batch_size).values
        self.advance(len(images))
        return found.numpy().astype(np.float64)

    @cached_property
    def scores(self) -> list[Floats]:
        """[N] scores of the images of each domain."""
        return [self.score(domain.images, domain.prompts) for domain in self.domains]

    @cached_property
    def others_scores(self) -> dict[str, list[Floats]]:
        """What `scores` is, of each of the other rewards."""
        return {
            name: [self._score(other, domain.images, domain.prompts) for domain in self.domains]
            for name, other in self.others.items()
        }

    @cached_property
    def pairs(self) -> list[PairTable]:
        """The pairs of each domain; none where neither gold nor preferences are known."""
        return [judged(domain, scores) for domain, scores in zip(self.domains, self.scores, strict=True)]

    @cached_property
    def rows(self) -> list[Any]:
        """[K, 2] rows of the two images of each of the `pairs` of each domain."""
        return [judged_rows(domain, scores) for domain, scores in zip(self.domains, self.scores, strict=True)]

    @cached_property
    def within_sd(self) -> float:
        """Pooled standard deviation of the scores within a prompt, in the first domain."""
        held = np.isfinite(self.scores[0])
        return pooled_sd(self.scores[0][held], self.domains[0].groups[held])

    @cached_property
    def scale(self) -> Scale:
        """The temperature of the first domain's pairs where their fit is ok, else the spread within a prompt."""
        table = self.pairs[0]
        if table.decided.sum() > 0 and table.prompts > 1:
            fitted = Temperature().fit(table)
            if fitted.status_ == "ok" and fitted.temperature_ > 0:
                return Scale(fitted.temperature_, "temperatures")
        spread = self.within_sd
        return Scale(spread if spread > 0 else math.nan, "standard deviations within a prompt")

    def chosen(self, count: int, *, fitting: bool = False) -> Any:
        """Rows of the first domain to work on: scored ones, one of each prompt in turn.

        Args:
            count: how many, at most.
            fitting: only images that are known to fit their prompt, where there are any.
        """
        domain = self.domains[0]
        good = np.isfinite(self.scores[0])
        if fitting and (good & domain.fitting).any():
            good &= domain.fitting
        rows = np.flatnonzero(good)
        seen: dict[int, int] = {}
        rank = []
        for row in rows:
            group = int(domain.groups[row])
            rank.append(seen.get(group, 0))
            seen[group] = rank[-1] + 1
        return np.sort(rows[np.lexsort((rows, np.asarray(rank)))][:count])


def mean_of(values: Floats, clusters: Any, *, tests: int = 1) -> Interval:
    """The mean of the finite values, with an interval that covers with 95 % in all of so many tests at once."""
    held = np.isfinite(values)
    return mean_interval(values[held], np.asarray(clusters)[held], level=1 - 0.05 / tests) if held.any() else NONE


def share_of(values: Floats, clusters: Any, *, tests: int = 1) -> Interval:
    """As `mean_of`, of values in 0..1; where all are 0 or all 1, Wilson's interval of as many rows as clusters."""
    found = mean_of(values, clusters, tests=tests)
    if found.clusters > 1 and found.mean in (0, 1):
        return wilson(found.mean * found.clusters, found.clusters, level=1 - 0.05 / tests)
    return found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0)) if known(found) else found


NONE = Interval(math.nan, math.nan, math.nan, 0)


def quantile_of(values: Floats, clusters: Any, share: float, sizes: Sizes, seed: int) -> Interval:
    """A quantile of the finite values, with its 95 % interval under resampling of clusters."""
    held = np.isfinite(values)
    if not held.any():
        return NONE
    order = np.argsort(values[held], kind="stable")
    x, codes = values[held][order], np.asarray(clusters)[held][order]

    def statistic(weight: Floats) -> float:
        mass = np.cumsum(weight)
        return float(x[np.searchsorted(mass, share * mass[-1])])

    return bootstrap_interval(statistic, codes, draws=sizes.draws, seed=seed)


def known(interval: Interval) -> bool:
    """Whether a value has an interval."""
    return all(math.isfinite(number) for number in interval[:3])


def told(interval: Interval, digits: int = 2) -> str:
    """A value and its interval, such as "0.52 (0.48 to 0.56)"."""
    return f"{interval.mean:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def skipped(probe: Probe, reason: str) -> Result:
    """A probe that could not be run, and why."""
    return Result(probe, "skip", reason)

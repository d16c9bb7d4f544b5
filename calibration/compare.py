"""Several rewards on the same pairs: how good each is, which differ beyond chance, and whether they rank alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from rwk.calibration import metrics
from rwk.calibration.evaluate import TIES, Measure, cross_fitted
from rwk.calibration.kendall import tau_b
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.statistics import (
    Interval,
    PairedTest,
    bootstrap_draws,
    holm,
    mean_interval,
    paired_test,
    percentile_interval,
)
from rwk.calibration.temperature import Temperature
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.pictures import identity

_SURE = 2.0**-53
"""A probability that rounds to 0 or 1 is taken to be so far from it, which bounds a loss by 36.7 nats."""

Scored = tuple[str, Floats, Floats]
"""A reward's name, its scores [N] of the first images and those of the second ones."""


class Standing(NamedTuple):
    """One reward on the pairs that all rewards score."""

    name: str
    measures: dict[str, Measure]
    """`accuracy` under three rules for margins of 0, `nll` in nats, and `smooth_ece`."""


class Difference(NamedTuple):
    """Two rewards, as the first less the second."""

    first: str
    second: str
    accuracy: PairedTest
    """A margin of 0 is half a hit."""
    p_adjusted: float
    """Of the accuracy, after Holm over all pairs of rewards."""
    nll: Interval
    agreement: Interval
    """Mean over prompts of Kendall's tau-b between the two rankings of the prompt's images."""


@dataclass(frozen=True)
class Comparison:
    """What rewards come to on the same pairs; intervals are for 95 % and clustered by prompt."""

    standings: list[Standing]
    differences: list[Difference]
    pairs: int
    """Pairs with a preference that every reward scores."""
    prompts: int
    ties: int
    """Pairs that nobody has a preference in; they count in nothing but the agreement."""
    unscored: int
    """Pairs left out because some reward has no score for an image."""

    def document(self) -> dict[str, Any]:
        """The same for a JSON document."""
        return {
            "rewards": [
                {"name": one.name, "measures": {key: _measure(of) for key, of in one.measures.items()}}
                for one in self.standings
            ],
            "differences": [
                {
                    "first": one.first,
                    "second": one.second,
                    "accuracy": _interval(one.accuracy.difference)
                    | {"p": one.accuracy.p, "p_adjusted": one.p_adjusted, "discordant": one.accuracy.discordant}
                    | {"detectable": one.accuracy.detectable},
                    "nll": _interval(one.nll),
                    "agreement": _interval(one.agreement),
                }
                for one in self.differences
            ],
            "pairs": self.pairs,
            "prompts": self.prompts,
            "ties": self.ties,
            "unscored": self.unscored,
        }


def compare(
    data: PreferenceDataset, scored: Sequence[Scored], *, draws: int = 2000, null_draws: int = 200, seed: int = 0
) -> Comparison:
    """Compares rewards on the pairs that all of them score.

    Probabilities are those of one temperature a reward, each from a fit on other prompts, so rewards of any unit can be
    set side by side. Differences of accuracy are tested by flipping the sign of whole prompts; those of the NLL get an
    interval from a bootstrap of prompts, with the temperatures as they are.

    Args:
        data: the preferences.
        scored: two rewards or more.
        draws: of the bootstrap.
        null_draws: of labels that fit the probabilities, for `smooth_ece`.
        seed: of folds and draws.

    Raises:
        ValueError: for fewer rewards, and where no pair has a preference and scores, or all are of one prompt.
    """
    if len(scored) < 2:
        raise ValueError(f"compare needs at least 2 rewards, got {len(scored)}; add one.")
    common = ~np.isnan([scores for _, *both in scored for scores in both]).any(0)  # [N]
    held = data.take(np.flatnonzero(common).tolist())
    whole = [PairTable.from_preferences(held, first[common], second[common]) for _, first, second in scored]
    decided = whole[0].decided > 0
    if not decided.any():
        raise ValueError(
            f"compare needs pairs with a preference and every score, got none among {len(data)}; add some."
        )
    tables = [table.take(decided) for table in whole]
    chances = [np.clip(cross_fitted(Temperature(), table, seed=seed), _SURE, 1 - _SURE) for table in tables]
    losses = np.array([metrics.losses(q, table.label) for q, table in zip(chances, tables, strict=True)])  # [R, M]
    between = list(combinations(range(len(scored)), 2))
    drawn = _drawn(tables[0], chances, [losses[i] - losses[j] for i, j in between], draws, seed)  # [B, pairs + R]
    tests = [_tested(tables[i], tables[j], seed) for i, j in between]
    adjusted = holm([test.p for test in tests])
    rankings = [_rankings(held, whole[0], first[common], second[common]) for _, first, second in scored]
    one = tables[0]
    differences = [
        Difference(
            scored[i][0],
            scored[j][0],
            tests[k],
            float(adjusted[k]),
            percentile_interval(
                float(np.average(losses[i] - losses[j], weights=one.decided)), drawn[:, k], one.prompts
            ),
            _agreement(rankings[i], rankings[j]),
        )
        for k, (i, j) in enumerate(between)
    ]
    standings = [
        Standing(name, _measures(table, q, loss, drawn[:, len(between) + r], null_draws, seed))
        for r, ((name, *_), table, q, loss) in enumerate(zip(scored, tables, chances, losses, strict=True))
    ]
    return Comparison(standings, differences, len(one), one.prompts, int((~decided).sum()), int((~common).sum()))


def _drawn(table: PairTable, chances: list[Floats], losses: list[Floats], draws: int, seed: int) -> Floats:
    """[B, K] mean differences of losses and then smooth errors, under resampling of prompts."""

    def statistic(times: Floats) -> list[float]:
        w = table.decided * times
        means = [float(np.average(loss, weights=w)) for loss in losses]
        return means + [metrics.smooth_ece(q, table.label, w) for q in chances]

    return bootstrap_draws(statistic, table.clusters, draws=draws, seed=seed)


def _hits(table: PairTable, ties: metrics.Ties = "half") -> Floats:
    """[M] of the margins as they are, whatever a temperature makes of them."""
    return metrics.hits((np.sign(table.margin) + 1) / 2, table.label, ties)


def _tested(one: PairTable, two: PairTable, seed: int) -> PairedTest:
    difference = _hits(one) - _hits(two)
    counted = ~np.isnan(difference)
    return paired_test(difference[counted], one.clusters[counted], one.decided[counted], seed=seed)


def _measures(
    table: PairTable, q: Floats, losses: Floats, drawn: Floats, null_draws: int, seed: int
) -> dict[str, Measure]:
    found = {}
    for name, ties in TIES.items():
        hits = _hits(table, ties)
        found[name] = Measure(mean_interval(np.nan_to_num(hits), table.clusters, table.decided * ~np.isnan(hits)))
    found["nll"] = Measure(mean_interval(losses, table.clusters, table.decided))
    value = metrics.smooth_ece(q, table.label, table.decided)
    interval = percentile_interval(value, drawn, table.prompts)
    perfect = metrics.null_values(metrics.smooth_ece, q, table.decided, draws=null_draws, seed=seed)
    p = (1 + int((perfect >= value).sum())) / (1 + null_draws)
    null95 = float(np.quantile(perfect, 0.95))
    found["smooth_ece"] = Measure(interval._replace(low=max(interval.low, 0.0)), null95, p)
    return found


def _rankings(data: PreferenceDataset, table: PairTable, first: Floats, second: Floats) -> list[dict[str, float]]:
    """The scores of each prompt's images, in the same order for every reward."""
    found: list[dict[str, float]] = [{} for _ in range(table.prompts)]
    for row, cluster, one, two in zip(data, table.clusters, first, second, strict=True):
        found[cluster][identity(row.first)] = float(one)
        found[cluster][identity(row.second)] = float(two)
    return found


def _agreement(one: list[dict[str, float]], two: list[dict[str, float]]) -> Interval:
    """Mean tau-b; a prompt to whose images either reward gives one score has none."""
    found = [tau_b(list(a.values()), list(b.values())) for a, b in zip(one, two, strict=True)]
    taus = np.array([tau for tau in found if not math.isnan(tau)])
    if not len(taus):
        return Interval(math.nan, math.nan, math.nan, 0)
    return mean_interval(taus, np.arange(len(taus)))


def _interval(interval: Interval) -> dict[str, Any]:
    return {"value": interval.mean, "low": interval.low, "high": interval.high, "clusters": interval.clusters}


def _measure(measure: Measure) -> Mapping[str, Any]:
    perfect = {} if measure.null95 is None else {"null95": measure.null95, "null_p": measure.null_p}
    return _interval(measure.interval) | perfect

"""Every measure of some probabilities of preferences at once, each with its interval and its number of prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rwk.calibration import metrics
from rwk.calibration.calibrator import PairCalibrator
from rwk.calibration.folded import Folded, fold
from rwk.calibration.metrics import Ties
from rwk.calibration.pairs import Floats, PairTable, vector
from rwk.calibration.statistics import Interval, bootstrap_draws, mean_interval, percentile_interval

COVERAGES = (0.5, 0.8, 0.9)
"""Shares of the most confident pairs for which the accuracy is told."""
TIES: dict[str, Ties] = {
    "accuracy": "half",
    "accuracy_ties_wrong": "wrong",
    "accuracy_ties_excluded": "excluded",
}
BIASED = ("miscalibration", "debiased_l2", "ece", "smooth_ece")
"""Measures that are not judged by their interval but by what perfect probabilities would get."""


class Measure(NamedTuple):
    """One number and how far to trust it."""

    interval: Interval
    null95: float | None = None
    """What 19 in 20 samples of perfect probabilities stay below, for the measures in `BIASED`."""
    null_p: float | None = None
    """Chance of perfect probabilities to come out so large."""


@dataclass(frozen=True)
class Evaluation:
    """All measures of a table's pairs with a preference; intervals are for 95 % and clustered by prompt."""

    measures: dict[str, Measure]
    pairs: int
    prompts: int
    ties: int
    """Pairs that nobody has a preference in."""
    unscored: int
    """Pairs left out because an image has no score."""

    def document(self) -> dict[str, Any]:
        """The same in JSON's types, null for what is not finite."""
        return {
            "measures": {
                name: {
                    "value": _finite(of.interval.mean),
                    "low": _finite(of.interval.low),
                    "high": _finite(of.interval.high),
                    "clusters": of.interval.clusters,
                }
                | ({} if of.null95 is None else {"null95": of.null95, "null_p": of.null_p})
                for name, of in self.measures.items()
            },
            "pairs": self.pairs,
            "prompts": self.prompts,
            "ties": self.ties,
            "unscored": self.unscored,
        }


def evaluate(table: PairTable, q: Any, *, draws: int = 2000, null_draws: int = 200, seed: int = 0) -> Evaluation:
    """Measures probabilities q [N] that the first image is preferred.

    Means (nll, accuracies) get t intervals, the others percentiles of a bootstrap of prompts. Errors in `BIASED` are
    above 0 for perfect probabilities too: whether the intervals hold 0 says nothing, `null_p` does.

    Args:
        table: the pairs.
        q: see above.
        draws: of the bootstrap.
        null_draws: of labels that fit q.
        seed: of both.

    Raises:
        ValueError: where no pair has a preference.
    """
    given = vector("q", q, len(table), low=0, high=1)
    held = np.flatnonzero(table.decided > 0)
    if not len(held):
        raise ValueError(f"evaluate needs pairs with a preference, got none among {len(table)}; add some.")
    held = held[np.argsort(np.maximum(given, 1 - given)[held], kind="stable")]  # so that no draw has to be sorted
    q, pairs = given[held], table.take(held)
    found = _means(pairs, q) | _resampled(pairs, q, draws, null_draws, seed)
    return Evaluation(found, len(pairs), pairs.prompts, int((table.tie == 1).sum()), table.unscored)


def _means(table: PairTable, q: Floats) -> dict[str, Measure]:
    """The measures that are means over pairs."""
    losses, w = metrics.losses(q, table.label), table.decided
    found = {"nll": Measure(Interval(math.inf, math.nan, math.nan, table.prompts))}
    if np.isfinite(losses).all():
        found["nll"] = Measure(mean_interval(losses, table.clusters, w))
    for name, ties in TIES.items():
        hits = metrics.hits(q, table.label, ties)
        found[name] = Measure(mean_interval(np.nan_to_num(hits), table.clusters, w * ~np.isnan(hits)))
    return found


def _resampled(table: PairTable, q: Floats, draws: int, null_draws: int, seed: int) -> dict[str, Measure]:
    """The measures that are none, from a bootstrap of prompts, and what those in `BIASED` are for perfect q."""
    clusters, count, folded = table.clusters, table.prompts, fold(q, table.label, table.decided)
    whole = _values(folded, clusters)
    drawn = np.full((1, len(whole)), math.nan)
    if count > 1:
        drawn = bootstrap_draws(lambda times: _values(folded.times(times), clusters), clusters, draws=draws, seed=seed)
    rng = np.random.default_rng(seed)
    labels = ((rng.random(len(q)) < q).astype(np.float64) for _ in range(null_draws))
    null = np.array([_errors(fold(q, of, table.decided), clusters) for of in labels])
    found = {}
    for k, (name, value) in enumerate(zip(_NAMES, whole.tolist(), strict=True)):
        interval = Interval(value, math.nan, math.nan, count)
        if count > 1:
            interval = percentile_interval(value, drawn[:, k], count)
        if name != "debiased_l2":  # nothing else can lie below 0
            interval = interval._replace(low=max(interval.low, 0.0))
        found[name] = Measure(interval)
        if name in BIASED:
            perfect = null[:, BIASED.index(name)]
            p = (1 + int((perfect >= value).sum())) / (1 + null_draws)
            found[name] = Measure(interval, float(np.quantile(perfect, 0.95)), p)
    return found


def cross_fitted(calibrator: PairCalibrator, table: PairTable, *, folds: int = 5, seed: int = 0) -> Floats:
    """[N] probabilities of each pair by a calibrator that was fitted on other prompts alone.

    Args:
        calibrator: whose settings are used; it is not fitted itself.
        table: the pairs, of at least 2 prompts.
        folds: parts into which the prompts are dealt.
        seed: of the deal.
    """
    if table.prompts < 2:
        raise ValueError(f"cross_fitted needs pairs of at least 2 prompts, got {table.prompts}; add other prompts.")
    fold = np.random.default_rng(seed).permutation(table.prompts)[table.clusters] % min(folds, table.prompts)
    q = np.full(len(table), math.nan)
    for part in range(int(fold.max()) + 1):
        fitted = type(calibrator)(**calibrator.get_params()).fit(table.take(fold != part))
        q[fold == part] = fitted.of(table.take(fold == part))
    return q


_NAMES = (*BIASED, "brier", "discrimination", "auroc", "aurc", *(f"accuracy_at_{part:g}" for part in COVERAGES))


def _values(folded: Folded, clusters: Any) -> Floats:
    """[K] what `_NAMES` names."""
    selective = [folded.selective_accuracy(coverage) for coverage in COVERAGES]
    others = folded.corp.brier, folded.corp.discrimination, folded.auroc(), folded.aurc()
    return np.array([*_errors(folded, clusters), *others, *selective])


def _errors(folded: Folded, clusters: Any) -> list[float]:
    """What `BIASED` names."""
    debiased = folded.debiased_l2(metrics.BINS, clusters)
    return [folded.corp.miscalibration, debiased, folded.ece(metrics.BINS), folded.smooth_ece()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

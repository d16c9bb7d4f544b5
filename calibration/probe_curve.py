"""The curve of best of n: how fast gold rises with the distance from what was sampled, and where it would turn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rwk.calibration.best_of_n import best_of_n_kl
from rwk.calibration.pairs import Floats
from rwk.calibration.probe import Level, Probe, Result, Status, Subject, known, mean_of, skipped, told
from rwk.calibration.probe_optimisation import Groups, gold_curve, gold_groups
from rwk.calibration.statistics import Interval, bootstrap_interval

LEAST = 3
"""Sizes of n above 1 that two numbers are fitted to."""

PROBE = Probe(
    "optimisation.curve",
    "beta of gold = d (alpha - beta d) over its mean at n = 1, fitted by least squares to the best of n by the reward, "
    "d = sqrt(ln n - (n - 1) / n) being the root of the KL distance (Gao et al., arXiv:2210.10760); where beta is "
    "surely above 0 gold has its peak at d = alpha / (2 beta). The domain that turns, or else bends, most.",
    "Warns where the interval of beta, after Bonferroni over the domains, lies above 0, the peak lies within what was "
    "drawn, and the gold measured at the greatest n is surely below that at the n next to the peak; gold that levels "
    "off, as it must where nothing better can be had, is no turn.",
    "gold a nat",
)


class Fit(NamedTuple):
    """alpha and beta of each prompt, whose means are those of the mean curve, and what was drawn."""

    alpha: Floats
    beta: Floats
    places: Floats
    """[K] d of each n, the first 0."""
    gold: Floats
    """[P, K] gold of the best of each n."""


def curve(subject: Subject) -> Iterator[Result]:
    """The fit in every domain where gold is known of enough images of a prompt."""
    fits = [
        (domain.name, fit)
        for domain, scores in zip(subject.domains, subject.scores, strict=True)
        if (groups := gold_groups(domain, scores)) and (fit := fitted(groups)) is not None
    ]
    found = [_judged(name, fit, subject, len(fits)) for name, fit in fits]
    found = [one for one in found if known(one[0].value)]
    if not found:
        yield skipped(PROBE, "gold is not known for 8 images or more of two prompts")
        return
    worst, reason, turns = max(found, key=lambda one: (one[2], one[0].value.mean))
    status: Status = "warn" if turns else "pass"
    yield Result(PROBE, status, f"{worst.name}: {told(worst.value)}, {reason}", worst.value, [one[0] for one in found])


def fitted(groups: Groups) -> Fit | None:
    """The fit to all prompts' curves; None where there are too few n's, or fewer than two prompts."""
    ns, _, gold = gold_curve(groups)
    if len(ns) <= LEAST or len(groups) < 2:
        return None
    places = np.sqrt([best_of_n_kl(n) for n in ns])
    design = np.stack([places[1:], -(places[1:] ** 2)], 1)  # [K - 1, 2]
    alpha, beta = np.linalg.pinv(design) @ (gold[:, 1:] - gold[:, :1]).T  # linear, so prompts can be averaged after
    return Fit(alpha, beta, places, gold)


def _judged(name: str, fit: Fit, subject: Subject, tests: int) -> tuple[Level, str, bool]:
    """The level of a domain, what is said of it, and whether gold turns there."""
    rows = np.arange(len(fit.alpha))
    alpha, beta = mean_of(fit.alpha, rows), mean_of(fit.beta, rows, tests=tests)
    level, last = Level(name, beta, {"alpha": alpha}), float(fit.places[-1])
    if not (beta.low > 0 and alpha.low > 0):
        return level, "no turn is seen", False
    peak = _ratio(fit.alpha, 2 * fit.beta, subject)
    gain = _ratio(fit.alpha, 2 * fit.beta, subject, times=fit.alpha / 2)
    level = level._replace(measures={"alpha": alpha, "root of the KL at the peak": peak, "gain at the peak": gain})
    if peak.mean >= last:
        return level, f"its peak at a root of the KL of {told(peak)} lies beyond the {last:.2f} that was drawn", False
    near = int(np.abs(fit.places[:-1] - peak.mean).argmin())
    falls = mean_of(fit.gold[:, -1] - fit.gold[:, near], rows, tests=tests).high < 0
    end = "and it falls beyond" if falls else "but nothing beyond is surely lower: it levels off"
    return level, f"a peak at a root of the KL of {told(peak)}, {end}", falls


def _ratio(above: Floats, below: Floats, subject: Subject, *, times: Floats | None = None) -> Interval:
    """Mean `above` over mean `below`, perhaps times the mean of `times`, under resampling of prompts."""

    def statistic(weight: Floats) -> float:
        bottom = float(weight @ below)
        ratio = float(weight @ above) / bottom if bottom > 0 else math.nan
        return ratio if times is None else ratio * float(weight @ times) / float(weight.sum())

    return bootstrap_interval(statistic, np.arange(len(above)), draws=subject.sizes.draws, seed=subject.seed)

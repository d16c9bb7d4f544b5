"""Calibration: whether the odds that a fitted temperature gives are those at which preferences come out."""

from __future__ import annotations

import numpy as np

from rwk.calibration.evaluate import cross_fitted
from rwk.calibration.folded import fold
from rwk.calibration.metrics import smooth_ece
from rwk.calibration.probe import NONE, Level, Probe, Result, Status, Subject, known, mean_of, skipped, told
from rwk.calibration.statistics import Interval, bootstrap_interval
from rwk.calibration.temperature import Temperature

BINS, LEAST_PROMPTS, NULL_DRAWS = 8, 10, 200
SEEN, LARGE = 0.05, 0.1

PROBE = Probe(
    "accuracy.calibration",
    "Smooth calibration error in the first domain of the probabilities of temperatures fitted on other prompts.",
    f"Fails where the interval lies above {LARGE}; warns where the value is above {SEEN} and above what 19 in 20 "
    "samples of perfect probabilities stay below.",
    "probability",
)


def calibrated(subject: Subject) -> Result:
    """The error, and for bins of the confidence what share agrees, beside what perfect probabilities would show."""
    table = subject.pairs[0].take(subject.pairs[0].decided > 0)
    if table.prompts < LEAST_PROMPTS:
        return skipped(PROBE, f"needs pairs of {LEAST_PROMPTS} prompts whose preference is known")
    q = cross_fitted(Temperature(), table, seed=subject.seed)
    y, w, rng = table.label, table.decided, np.random.default_rng(subject.seed)
    value = bootstrap_interval(
        lambda times: smooth_ece(q, y, w * times), table.clusters, draws=subject.sizes.draws, seed=subject.seed
    )
    value = value._replace(low=max(value.low, 0.0))
    perfect = [(rng.random(len(q)) < q).astype(np.float64) for _ in range(NULL_DRAWS)]
    null95 = float(np.quantile([smooth_ece(q, of, w) for of in perfect], 0.95))
    levels = _bins(q, y, w, table.clusters, np.stack(perfect))
    status: Status = "fail" if value.low > LARGE else "warn" if value.mean > max(SEEN, null95) else "pass"
    reason = f"{told(value)}; perfect probabilities stay below {null95:.2f}"
    return Result(PROBE, status, reason, value, levels)


def _bins(q: np.ndarray, y: np.ndarray, w: np.ndarray, clusters: np.ndarray, perfect: np.ndarray) -> list[Level]:
    """Bins of as many pairs each, by confidence."""
    folded = fold(q, y, w)
    turned = (q < 0.5)[folded.rows]
    levels = []
    for places in np.array_split(np.arange(len(folded.rows)), BINS):
        if not len(places):
            continue
        rows = folded.rows[places]
        agreed = mean_of(folded.agreement[places], clusters[rows])
        confidence = float(folded.confidence[places].mean())
        drawn = np.where(turned[places], 1 - perfect[:, rows], perfect[:, rows]).mean(1)
        low, high = np.quantile(drawn, [0.05, 0.95])
        band = Interval(confidence, float(low), float(high), agreed.clusters) if known(agreed) else NONE
        if known(agreed):
            levels.append(Level(f"confidence {confidence:.3f}", agreed, {"perfect probabilities": band}))
    return levels

"""Other packages on the same numbers, where they are installed; their recorded values are in the tests of each measure.

    pip install relplot==1.0.3 model-diagnostics==1.5.0 statsmodels==0.15.0

They install beside the pinned numpy, scipy and scikit-learn, and no part of rwk needs them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rwk.calibration import metrics
from rwk.calibration.pairs import Floats
from rwk.calibration.statistics import false_discovery, holm, mcnemar, wilson
from rwk.calibration.two_way import two_way_interval

pytestmark = pytest.mark.weights
SAMPLES = [(n, true, seed) for seed, (n, true) in enumerate([(60, 1.0), (300, 1.0), (1000, 2.0), (3000, 0.5)])]


def mirrored(n: int, true: float, seed: int) -> tuple[Floats, Floats]:
    """[2 n] probabilities and labels of pairs both ways round; too sure by `true`, a tenth of them in ties."""
    rng = np.random.default_rng(seed)
    margin = rng.normal(0, 2, n)
    margin[: n // 10] = margin[: n // 10].round()
    q = 1 / (1 + np.exp(-margin))
    y = (rng.random(n) < 1 / (1 + np.exp(-margin / true))).astype(np.float64)
    return np.r_[q, 1 - q], np.r_[y, 1 - y]


@pytest.mark.parametrize(("n", "true", "seed"), SAMPLES)
def test_relplot_has_the_same_smooth_error(n: int, true: float, seed: int) -> None:
    """Within 3e-3: its grid is another."""
    relplot = pytest.importorskip("relplot", exc_type=ImportError)
    q, y = mirrored(n, true, seed)
    assert metrics.smooth_ece(q[:n], y[:n]) == pytest.approx(float(relplot.smECE(q, y)), abs=3e-3)


@pytest.mark.parametrize(("n", "true", "seed"), SAMPLES)
def test_model_diagnostics_has_the_same_parts_of_the_brier_score(n: int, true: float, seed: int) -> None:
    """Miscalibration, discrimination, uncertainty and their sum, to 1e-9."""
    scoring: Any = pytest.importorskip("model_diagnostics.scoring", exc_type=ImportError)
    q, y = mirrored(n, true, seed)
    (theirs,) = scoring.decompose(y, q, scoring_function=scoring.SquaredError()).to_dicts()
    ours = metrics.brier(q[:n], y[:n])
    for name, value in (("score", ours.brier), ("uncertainty", ours.uncertainty)):
        assert value == pytest.approx(theirs[name], abs=1e-9)
    for name in ("miscalibration", "discrimination"):
        assert getattr(ours, name) == pytest.approx(theirs[name], abs=1e-9)


def test_statsmodels_has_the_same_intervals_and_tests() -> None:
    """Wilson's interval of every count up to 30, McNemar's exact p of every table up to 12, both adjustments of p."""
    proportion = pytest.importorskip("statsmodels.stats.proportion", exc_type=ImportError)
    from statsmodels.stats.contingency_tables import mcnemar as theirs  # type: ignore[import-not-found,unused-ignore]
    from statsmodels.stats.multitest import multipletests  # type: ignore[import-not-found,unused-ignore]

    for count in range(1, 31):
        for hits in range(count + 1):
            for level in (0.9, 0.95):
                low, high = proportion.proportion_confint(hits, count, alpha=1 - level, method="wilson")
                found = wilson(hits, count, level=level)
                assert found[1:3] == pytest.approx((low, high), abs=1e-12)
    for first in range(13):
        for second in range(13):
            p = float(theirs([[5, first], [second, 7]], exact=True).pvalue) if first + second else 1.0
            assert mcnemar(first, second) == pytest.approx(p, abs=1e-12)
    given = np.random.default_rng(0).random(40) ** 3
    for ours, method in ((holm, "holm"), (false_discovery, "fdr_bh")):
        np.testing.assert_allclose(ours(given), multipletests(given, method=method)[1], atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_statsmodels_has_the_same_errors_in_two_ways(seed: int) -> None:
    """The interval of a constant, weighted or not, with errors clustered by two columns."""
    api: Any = pytest.importorskip("statsmodels.api", exc_type=ImportError)
    rng = np.random.default_rng(seed)
    both = np.stack([rng.integers(0, 25, 400), rng.integers(0, 6, 400)], 1)
    x = rng.normal(0, 1, 400) + rng.normal(0, 1, 25)[both[:, 0]] + rng.normal(0, 0.7, 6)[both[:, 1]]
    for weight in (np.ones(400), rng.integers(1, 4, 400).astype(float)):
        fitted = api.WLS(x, np.ones((400, 1)), weights=weight).fit()
        theirs = fitted.get_robustcov_results(cov_type="cluster", groups=both, use_correction=True, df_correction=True)
        found = two_way_interval(x, both[:, 0], both[:, 1], weight)
        assert found[1:3] == pytest.approx(theirs.conf_int()[0], abs=1e-10)

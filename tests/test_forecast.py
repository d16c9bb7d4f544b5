"""The forecast: known gains by hand, a reward that knows nothing and one that is the truth, and the command."""

from __future__ import annotations

import itertools
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwk.calibration.forecast import forecast

case = runpy.run_path(str(Path(__file__).with_name("probe_case.py")))
domain, subject, Fits = case["domain"], case["subject"], case["Fits"]


def subsets(values: Any, by: Any, n: int) -> float:
    """Mean value of the best by `by` over all choices of n."""
    chosen = [max(rows, key=lambda row: by[row]) for rows in itertools.combinations(range(len(values)), n)]
    return float(np.mean([values[row] for row in chosen]))


def test_gains_are_those_of_every_choice() -> None:
    """Of best of 4 and of all by the reward, and of best of 4 by the truth: means over all subsets of each prompt."""
    given = subject(Fits(), domain(), domain("elsewhere", seed=3))
    for found, held, scores in zip(forecast(given), given.domains, given.scores, strict=True):
        rows = [np.flatnonzero(held.groups == group) for group in np.unique(held.groups)]
        gold = [held.gold[row] for row in rows]
        score = [scores[row] for row in rows]
        mean = np.mean([g.mean() for g in gold])
        assert (found.domain, found.images, found.now.clusters) == (held.name, 6, 18)
        assert found.now.mean == pytest.approx(mean)
        pairs = list(zip(gold, score, strict=True))
        assert found.likely.mean == pytest.approx(np.mean([subsets(g, s, 4) for g, s in pairs]) - mean)
        assert found.most.mean == pytest.approx(np.mean([subsets(g, s, 6) for g, s in pairs]) - mean)
        assert found.by_truth.mean == pytest.approx(np.mean([subsets(g, g, 4) for g in gold]) - mean)
        assert found.eta.mean == pytest.approx(found.likely.mean / found.by_truth.mean)
        assert found.eta.low < found.eta.mean < found.eta.high
    first, other = forecast(given)
    assert first.retention is None
    assert other.retention is not None
    assert other.retention.mean == pytest.approx(other.eta.mean / first.eta.mean)
    assert other.retention.low < other.retention.mean < other.retention.high


def test_ends_of_the_scale() -> None:
    """The truth turned round loses as much as the truth gains, and then nothing is said of what is kept elsewhere."""
    turned = Fits(weight=-1.0)
    first, other = forecast(subject(turned, domain(), domain("elsewhere", seed=3)))
    assert first.eta.high < -0.5
    assert other.retention is None
    whole = forecast(subject(Fits()), fitting=True)[0]
    assert 0 <= whole.now.mean <= 1
    assert whole.likely.low > 0


def test_without_truth_there_is_no_forecast() -> None:
    """Nor with fewer than four images of a prompt."""
    held = domain()
    blind = type(held)(held.name, held.images, held.prompts)
    assert forecast(subject(Fits(), blind)) == []
    assert forecast(subject(Fits(), domain(per_prompt=3))) == []
    assert forecast(subject(Fits(), blind), fitting=True) == []


def test_command(rwk: Callable[..., Any], tmp_path: Path) -> None:
    """`rwk probe --forecast` prints a table for gold and one for accuracy, with intervals, and keeps no card."""
    words = ("probe", "shapes.verifier", "--forecast", "--prompt-count", "4", "--per-prompt", "4")
    done = rwk(*words, "--out", "here", "--json")
    assert done.code == 0, done.err
    for said in ("gold", "all facts hold", "in domain", "held out", "best of 4: likely", "neither is a"):
        assert said in done.err
    assert not (tmp_path / "here").exists()
    told = json.loads(done.out)["forecast"]["gold"]
    assert [one["domain"] for one in told] == ["in domain", "out of domain", "held out"]
    assert told[0]["eta"]["mean"] == pytest.approx(1)
    assert told[0]["likely"]["low"] <= told[0]["likely"]["mean"] == pytest.approx(told[0]["most"]["mean"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("data.jsonl", "--forecast"), "--forecast is by images whose truth is known, got DATA"),
        (("--forecast", "--per-prompt", "3"), "--forecast needs --per-prompt of at least 4, got 3"),
    ],
)
def test_wrong_calls(words: tuple[str, ...], error: str, rwk: Callable[..., Any]) -> None:
    """In one sentence, and nothing is drawn."""
    done = rwk("probe", "colorfulness", *words)
    assert done.code == 2
    assert error in done.err

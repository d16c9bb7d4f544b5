"""A calibrator of single scores: the probability that an image passes, where somebody has said which ones do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from rwk.calibration.calibrator import Calibrator, Status, few_prompts, finite, shrunk, sigmoid
from rwk.calibration.logistic import fit_logistic, robust_errors
from rwk.calibration.pairs import Floats, Strings, vector
from rwk.calibration.statistics import FEW_CLUSTERS

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Of how far slices may leave the common line, in units of its standardised coefficients; one is chosen by folds."""
FOLDS = 5


class AbsoluteCalibrator(Calibrator):
    """P(pass) = sigmoid(alpha_s + slope_s * score): from pairs alone nobody could say which score is good enough.

    Slices share a line and may leave it, the less so the larger the penalty; the penalty is the one of least loss on
    folds that keep a prompt whole. A slice that was not there in the fit has the common line.
    """

    kind = "absolute"
    classes_ = ("pass", "fail")

    intercept_: float
    slope_: float
    """Log-odds for one unit of score; 1 / slope is a temperature."""
    slices_: dict[str, tuple[float, float]]
    """Intercept and slope by slice."""

    def __init__(self, *, by_slice: bool = False) -> None:
        """
        Args:
            by_slice: whether slices, such as the category of the prompt, get lines of their own.
        """
        self.by_slice = by_slice

    def fit(
        self,
        score: Any,
        passed: Any,
        *,
        prompt: Sequence[str] | Strings | None = None,
        slices: Sequence[str] | Strings | None = None,
        weight: Any = None,
    ) -> Self:
        """Fits scores [N] of images to the shares [N] in 0..1 that say "pass".

        Args:
            score: see above.
            passed: see above.
            prompt: [N] what errors are clustered by; by default every image stands alone.
            slices: [N] the slice of each image, where `by_slice`.
            weight: [N], by default 1.

        Raises:
            ValueError: where all pass or none does, or slices are missing.
        """
        x = vector("score", score)
        n = len(x)
        y = vector("passed", passed, n, low=0, high=1)
        w = np.ones(n) if weight is None else vector("weight", weight, n, low=0)
        if self.by_slice != (slices is not None):
            raise ValueError(f"absolute needs slices just where by_slice is true, got by_slice = {self.by_slice}.")
        names = np.full(n, "") if slices is None else np.array(slices, dtype=np.str_)
        codes = np.arange(n) if prompt is None else np.unique(prompt, return_inverse=True)[1]
        if len(names) != n or len(codes) != n:
            raise ValueError(f"absolute needs one prompt and one slice a score, got {len(codes)}, {len(names)}, {n}.")
        if not (w * y).any() or not (w * (1 - y)).any():
            raise ValueError(f"absolute needs images that pass and images that fail, got one kind among {n}; add some.")
        centre = float(np.average(x, weights=w))
        scale = math.sqrt(float(np.average((x - centre) ** 2, weights=w))) or 1.0
        known = np.unique(names).tolist() if self.by_slice else []
        design = _design((x - centre) / scale, names, known)
        penalty, chosen = self._penalty(design, y, w, codes)
        found = fit_logistic(design, shrunk(y), w, penalty)
        error = robust_errors(found, design, y, w, penalty, codes)[1]

        def line(intercept: float, slope: float) -> tuple[float, float]:
            return float(intercept - slope * centre / scale), float(slope / scale)

        self.intercept_, self.slope_ = line(*found[:2])
        own = found[2:].reshape(-1, 2) + found[:2]
        self.slices_ = {name: line(*of) for name, of in zip(known, own, strict=True)}
        self.status_ = _status(x, y, w, self.slope_)
        wrong = [name for name, (_, slope) in self.slices_.items() if slope <= 0]
        prompts = int(codes.max()) + 1
        notes = [few_prompts(prompts)] if prompts < FEW_CLUSTERS else []
        notes += [f"no larger score passes more often in {', '.join(wrong)}"] if wrong else []
        self.fit_ = {
            "images": n,
            "prompts": prompts,
            "se_log_slope": float(error / found[1]) if found[1] > 0 else math.nan,
            "penalty": chosen,
            "notes": notes,
        }
        return self

    def _penalty(self, design: Floats, y: Floats, w: Floats, codes: Any) -> tuple[Floats, float]:
        """The penalties [K] of least held-out loss, and how much a slice's coefficients are held back."""
        none = np.zeros(design.shape[1])
        if design.shape[1] == 2:
            return none, 0.0
        fold = np.random.default_rng(0).permutation(int(codes.max()) + 1)[codes] % FOLDS
        losses = []
        for strength in PENALTIES:
            penalty = none + strength * (np.arange(len(none)) >= 2)
            total = 0.0
            for held_out in range(FOLDS):
                inside, outside = fold != held_out, fold == held_out
                found = fit_logistic(design[inside], shrunk(y[inside]), w[inside], penalty)
                x = design[outside] @ found
                total += float(w[outside] @ (np.logaddexp(0, x) - y[outside] * x))
            losses.append(total)
        chosen = PENALTIES[int(np.argmin(losses))]
        return none + chosen * (np.arange(len(none)) >= 2), chosen

    def probability(self, score: Any, slices: Sequence[str] | Strings | None = None) -> Floats:
        """[N] the probability that an image of that score passes."""
        self.check_fitted()
        x = vector("score", score)
        if self.by_slice != (slices is not None) or (slices is not None and len(slices) != len(x)):
            given = "none" if slices is None else len(slices)
            raise ValueError(f"absolute needs slices as it was fitted, one a score, got {given} for {len(x)} scores.")
        if slices is None:
            return sigmoid(self.intercept_ + self.slope_ * x)
        common = self.intercept_, self.slope_
        lines = np.array([self.slices_.get(str(name), common) for name in slices]).reshape(-1, 2)
        return sigmoid(lines[:, 0] + lines[:, 1] * x)

    def predict_proba(self, score: Any, slices: Sequence[str] | Strings | None = None) -> Floats:
        """[N, 2] probabilities in the order of `classes_`."""
        p = self.probability(score, slices)
        return np.stack([p, 1 - p], axis=1)

    def _state(self) -> dict[str, Any]:
        lines = {name: list(of) for name, of in self.slices_.items()}
        return {"intercept": self.intercept_, "slope": self.slope_, "slices": lines}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.intercept_, self.slope_ = finite(state["intercept"], "intercept"), finite(state["slope"], "slope")
        self.slices_ = {
            name: (finite(intercept, f"intercept of {name}"), finite(slope, f"slope of {name}"))
            for name, (intercept, slope) in state["slices"].items()
        }


def _design(x: Floats, names: Strings, known: Sequence[str]) -> Floats:
    """[N, 2 + 2 S]: 1 and the score for all, then for each slice."""
    line = np.stack([np.ones(len(x)), x], axis=1)
    return np.concatenate([line, *(line * (names == name)[:, None] for name in known)], axis=1)


def _status(x: Floats, y: Floats, w: Floats, slope: float) -> Status:
    if slope <= 0:
        return "uninformative"
    passing, failing = x[w * y > 0], x[w * (1 - y) > 0]
    return "separable" if failing.max() < passing.min() else "ok"

"""Logistic regression with a penalty of one's own on each coefficient, and errors that know the clusters."""

from __future__ import annotations

from typing import Any

import numpy as np

from rwk.calibration.calibrator import sigmoid
from rwk.calibration.pairs import Floats

_STEPS = 100


def fit_logistic(design: Floats, y: Floats, weight: Floats, penalty: Floats) -> Floats:
    """[K] coefficients of least sum_i w_i nll_i + 1/2 sum_k penalty_k coefficient_k^2, by Newton's method.

    Args:
        design: [N, K].
        y: [N] shares above 0 and below 1, so that there always is a finite least.
        weight: [N].
        penalty: [K], at least 0.
    """
    coefficients = np.zeros(design.shape[1])
    loss = _loss(coefficients, design, y, weight, penalty)
    for _ in range(_STEPS):
        p = sigmoid(design @ coefficients)
        slope = design.T @ (weight * (p - y)) + penalty * coefficients
        step = np.linalg.pinv(_curvature(design, p, weight, penalty), hermitian=True) @ slope
        size = 1.0
        while (less := _loss(coefficients - size * step, design, y, weight, penalty)) > loss and size > 1e-10:
            size /= 2
        coefficients = coefficients - size * step
        if loss - less <= 1e-14 * abs(loss):
            break
        loss = less
    return coefficients


def robust_errors(
    coefficients: Floats, design: Floats, y: Floats, weight: Floats, penalty: Floats, clusters: Any
) -> Floats:
    """[K] standard errors of the coefficients by the sandwich estimate, for rows that are alike within a cluster."""
    p = sigmoid(design @ coefficients)
    bread = np.linalg.pinv(_curvature(design, p, weight, penalty), hermitian=True)
    scores = (weight * (p - y))[:, None] * design
    totals = np.zeros((int(clusters.max()) + 1, design.shape[1]))
    np.add.at(totals, clusters, scores)
    count = len(totals)
    found: Floats = np.sqrt(np.diag(bread @ (totals.T @ totals) @ bread) * count / max(count - 1, 1))
    return found


def _loss(coefficients: Floats, design: Floats, y: Floats, weight: Floats, penalty: Floats) -> float:
    x = design @ coefficients
    nats = np.logaddexp(0, x) - y * x
    return float(weight @ nats + 0.5 * penalty @ coefficients**2)


def _curvature(design: Floats, p: Floats, weight: Floats, penalty: Floats) -> Floats:
    found: Floats = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(penalty)
    return found

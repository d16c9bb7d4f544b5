"""Backbones side by side: what a linear head on frozen features learns of preferences, and how far that reaches.

The head is the same for all: with the words of the prompt t(p) and the image features v(x), each reduced to a fixed
number of principal components, the margin is (1, t(p)) W (v(first) - v(second)). It has no intercept, so a swapped pair
has the opposite margin, and is a ridge logistic regression, whose strength is chosen on the pairs to learn from alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rwk.calibration.embedding import Embedding, embedded
from rwk.calibration.judged import judged, judged_rows
from rwk.calibration.metrics import hits
from rwk.calibration.pairs import Floats, PairTable
from rwk.calibration.probe import Domain, share_of
from rwk.calibration.statistics import Interval, bootstrap_draws, percentile_interval
from rwk.calibration.temperature import fit

WIDEST = 2.0
"""Standard error of the logarithm of a ratio of temperatures from which on it says nothing."""


@dataclass(frozen=True)
class Settings:
    """What is the same for every backbone."""

    image_rank: int = 32
    """Principal components of the features, whitened; fewer where there are not as many."""
    text_rank: int = 24
    """Principal components of which words a prompt holds; 0 makes a head of the image alone."""
    strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Inverse strengths of the ridge (C of scikit-learn) to choose from."""
    folds: int = 5
    """Parts into which the prompts are dealt to choose."""
    draws: int = 500
    """Bootstrap draws behind the intervals of robustness."""
    batch_size: int = 32
    seed: int = 0


class Judged(NamedTuple):
    """A domain's pairs with a preference."""

    name: str
    prompts: Sequence[str]
    """[K]"""
    rows: Any
    """[K, 2] of the domain's images."""
    label: Floats
    """[K] share that prefers the first."""
    weight: Floats
    """[K]"""


class Row(NamedTuple):
    """One backbone."""

    name: str
    architecture: str
    training: str
    width: int
    """D, features of an image."""
    strength: float
    """Chosen inverse strength of the ridge."""
    accuracy: Mapping[str, Interval]
    """By domain, the first is the one learnt in."""
    shift: Mapping[str, Interval]
    """Other domain -> log(T there / T in domain); above 0 is over-confident there. Absent where no T can be fitted."""
    robustness: Mapping[str, Interval]
    """Other domain -> logits of accuracy above the line through all backbones; absent for fewer than 3."""


def compare(
    backbones: Mapping[str, Embedding], train: Domain, tests: Sequence[Domain], settings: Settings | None = None
) -> list[Row]:
    """A row for each backbone, in their order.

    Args:
        backbones: by name; see `described` for how a name is read.
        train: what the heads learn from.
        tests: what they are judged on, of other prompts; the first is of the domain learnt in.
        settings: see `Settings`.

    Raises:
        ValueError: where a domain has no pairs with a preference, or the first shares a prompt with `train`.
    """
    chosen = settings or Settings()
    learnt, held = _judged(train), [_judged(domain) for domain in tests]
    if not held or set(learnt.prompts) & set(held[0].prompts):
        raise ValueError(
            "backbones are judged on prompts that no head learnt from, got some of those; split by prompt."
        )
    text = _words(learnt.prompts, chosen.text_rank)
    rows, margins = [], []
    for name, backbone in backbones.items():
        reduce, features, width = _reduced(backbone, train, chosen)
        head, strength = _head(_design(text, features, learnt), learnt, chosen)
        found = [_design(text, reduce(domain.images), one) @ head for domain, one in zip(tests, held, strict=True)]
        margins.append(found)
        rows.append(Row(name, *described(name), width, strength, *_measured(held, found), {}))
    robust = _robustness(held, margins, chosen)
    return [row._replace(robustness=of) for row, of in zip(rows, robust, strict=True)]


def described(name: str) -> tuple[str, str]:
    """Architecture and pre-training by the name of a backbone.

    >>> [described(name) for name in ("timm:resnet50.a1_in1k", "timm:resnet50", "timm:vit@w/scenes.safetensors")]
    [('resnet50', 'a1_in1k'), ('resnet50', 'random'), ('vit', 'scenes')]
    """
    scheme, colon, model = name.partition(":")
    if not colon:
        return name, "its own"
    model, _, file = model.partition("@")
    architecture, dot, tag = model.partition("." if scheme == "timm" else "/")
    if file:
        return architecture, file.rsplit("/", 1)[-1].rpartition(".")[0] or file
    return architecture, tag if dot else "random"


def _judged(domain: Domain) -> Judged:
    scores = np.zeros(len(domain.images))
    table, rows = judged(domain, scores), judged_rows(domain, scores)
    held = (table.decided > 0) & (table.label != 0.5)
    if not held.any():
        raise ValueError(f"backbones need pairs with a preference, got none in {domain.name}; give gold or judgements.")
    return Judged(domain.name, table.prompt[held].tolist(), rows[held], table.label[held], table.decided[held])


class _Text(NamedTuple):
    """From prompts to their words' principal components."""

    vectorizer: Any
    mean: Floats
    axes: Floats

    def __call__(self, prompts: Sequence[str]) -> Floats:
        """[N, 1 + R], 1 first."""
        ones = np.ones((len(prompts), 1))
        if not self.axes.size:
            return ones
        words: Floats = self.vectorizer.transform(prompts).toarray().astype(np.float64)
        return np.concatenate([ones, (words - self.mean) @ self.axes], axis=1)


def _words(prompts: Sequence[str], rank: int) -> _Text:
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b")
    words = vectorizer.fit_transform(sorted(set(prompts))).toarray().astype(np.float64)
    return _Text(vectorizer, *_axes(words, rank))


def _axes(values: Floats, rank: int) -> tuple[Floats, Floats]:
    """The mean [D], and the map [D, R] onto the first principal components, each of variance 1."""
    mean = values.mean(0)
    _, spread, axes = np.linalg.svd(values - mean, full_matrices=False)
    kept = min(rank, int((spread > 1e-6 * max(spread[0], 1e-12)).sum()))
    return mean, axes[:kept].T / spread[:kept] * math.sqrt(len(values))


class _Reduce(NamedTuple):
    """From images to their features' principal components."""

    backbone: Embedding
    centre: Floats
    scale: Floats
    mean: Floats
    axes: Floats
    batch_size: int

    def __call__(self, images: Sequence[Image.Image]) -> Floats:
        return self.of(embedded(self.backbone, images, batch_size=self.batch_size))

    def of(self, features: Floats) -> Floats:
        reduced: Floats = ((features - self.centre) / self.scale - self.mean) @ self.axes
        return reduced


def _reduced(backbone: Embedding, train: Domain, settings: Settings) -> tuple[_Reduce, Floats, int]:
    features = embedded(backbone, train.images, batch_size=settings.batch_size)
    centre, spread = features.mean(0), features.std(0)
    scale = np.where(
        spread > 1e-9 * max(spread.max(), 1e-12), spread, math.inf
    )  # a constant feature counts for nothing
    reduce = _Reduce(
        backbone, centre, scale, *_axes((features - centre) / scale, settings.image_rank), settings.batch_size
    )
    return reduce, reduce.of(features), features.shape[1]


def _design(text: _Text, features: Floats, pairs: Judged) -> Floats:
    """[K, (1 + R) V] products of what a prompt says and what its two images differ in."""
    differences = features[pairs.rows[:, 0]] - features[pairs.rows[:, 1]]
    design: Floats = np.einsum("kr,kv->krv", text(pairs.prompts), differences).reshape(len(differences), -1)
    return design


def _head(design: Floats, pairs: Judged, settings: Settings) -> tuple[Floats, float]:
    """Weights of the head, and the strength with the least loss on folds of prompts, all pairs each way round."""
    groups = np.unique(pairs.prompts, return_inverse=True)[1]
    fold = np.random.default_rng(settings.seed).permutation(groups.max() + 1)[groups] % settings.folds
    loss = dict.fromkeys(settings.strengths, 0.0)
    for part, strength in itertools.product(range(settings.folds), settings.strengths):
        inside, outside = fold != part, fold == part
        head = _fitted(design[inside], pairs.label[inside], pairs.weight[inside], strength)
        margin, label = design[outside] @ head, pairs.label[outside]
        loss[strength] += float(pairs.weight[outside] @ (np.logaddexp(0, margin) - label * margin))
    best = min(settings.strengths, key=lambda strength: loss[strength])
    return _fitted(design, pairs.label, pairs.weight, best), best


def _fitted(design: Floats, label: Floats, weight: Floats, strength: float) -> Floats:
    from sklearn.linear_model import LogisticRegression

    rows = np.concatenate([design, -design, design, -design])
    first, second = weight * label, weight * (1 - label)
    shares, side = np.concatenate([first, first, second, second]), np.repeat([1, 0, 0, 1], len(design))
    counted = shares > 0
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=500, tol=1e-3)
    found: Floats = model.fit(rows[counted], side[counted], shares[counted]).coef_[0]
    return found


def _hits(pairs: Judged, margin: Floats) -> Floats:
    return hits((np.sign(margin) + 1) / 2, pairs.label)


def _measured(held: Sequence[Judged], margins: Sequence[Floats]) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """Accuracy of every domain, and the shift of the temperature of all but the first."""
    from scipy.stats import t

    accuracy, temperatures = {}, []
    for pairs, margin in zip(held, margins, strict=True):
        accuracy[pairs.name] = share_of(_hits(pairs, margin), np.asarray(pairs.prompts))
        temperatures.append(fit(PairTable(margin, pairs.label, prompt=pairs.prompts, weight=pairs.weight)))
    base, error = temperatures[0]
    shift = {}
    for pairs, (value, other) in zip(held[1:], temperatures[1:], strict=True):
        spread = math.hypot(error, other)
        if spread < WIDEST and base > 0 and value > 0:
            count = min(len(set(pairs.prompts)), len(set(held[0].prompts)))
            ratio, reach = math.log(value / base), float(t.ppf(0.975, count - 1)) * spread
            shift[pairs.name] = Interval(ratio, ratio - reach, ratio + reach, count)
    return accuracy, shift


def _robustness(
    held: Sequence[Judged], margins: Sequence[Sequence[Floats]], settings: Settings
) -> list[dict[str, Interval]]:
    """For each backbone and other domain, how far it lies off the line logit(out) = a + b logit(in) of them all."""
    found: list[dict[str, Interval]] = [{} for _ in margins]
    if len(margins) < 3:
        return found
    inside = np.stack([_hits(held[0], of[0]) for of in margins])  # [B, K]
    for number, pairs in enumerate(held[1:], 1):
        outside = np.stack([_hits(pairs, of[number]) for of in margins])
        clusters = np.array([f"in {p}" for p in held[0].prompts] + [f"out {p}" for p in pairs.prompts])
        split = inside.shape[1]

        def statistic(w: Floats, outside: Floats = outside, split: int = split) -> Floats:
            return residuals(_logit(inside, w[:split]), _logit(outside, w[split:]))

        value = statistic(np.ones(len(clusters)))
        drawn = bootstrap_draws(statistic, clusters, draws=settings.draws, seed=settings.seed)
        for row, one, draws in zip(found, value, drawn.T, strict=True):
            row[pairs.name] = percentile_interval(float(one), draws, len(set(pairs.prompts)))
    return found


def residuals(x: Floats, y: Floats) -> Floats:
    """[B] what y lies above the least-squares line through x and y [B]; above their mean, where all x are alike."""
    centred = x - x.mean()
    total = float(centred @ centred)
    slope = float(centred @ y) / total if total > 1e-12 else 0.0
    found: Floats = y - y.mean() - slope * centred
    return found


def _logit(hit: Floats, weight: Floats) -> Floats:
    """[B] logits of the share of hits [B, K], half a hit and half a miss added."""
    right, total = hit @ weight + 0.5, weight.sum() + 1
    found: Floats = np.log(right / (total - right))
    return found

"""What a benchmark found: means and intervals by category, as a document and as a table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rwk.calibration.statistics import Interval
from rwk.policy_opt.evaluate import GOLD, balanced, clustered
from rwk.policy_opt.suites import Benchmark

ANY = "prompt accuracy"
"""1 where at least one image of a prompt and seed is wholly right."""
SHARES = (GOLD, ANY)
"""Scores that are made of a reward's."""
SIMILARITY = "similarity"
Found = tuple[dict[str, Tensor], Tensor, list[Tensor]]
"""Scores, similarity and answers of `Measured`."""


@dataclass(frozen=True)
class Measured:
    """What a benchmark found."""

    benchmark: Benchmark
    scores: dict[str, Tensor]
    """Name -> [P, S, n] float32 of P prompts, S seeds and n images, NaN where there is none. `GOLD` is the share of
    images of which every fact holds."""
    similarity: Tensor
    """[P] mean over all pairs of a prompt's images, of any seed; NaN for one image."""
    answers: list[Tensor] = field(default_factory=list)
    """[P] of [S, n, Q] answers to the benchmark's questions; empty where it has none."""

    @property
    def found(self) -> Found:
        return self.scores, self.similarity, self.answers

    @staticmethod
    def joined(benchmark: Benchmark, parts: Sequence[Found]) -> Measured:
        """What was found of all prompts of a benchmark, which were measured in lots, in their order."""
        scores, similarities, answers = zip(*parts, strict=True)
        whole = {name: torch.cat([part[name] for part in scores]) for name in scores[0]}
        return Measured(benchmark, whole, torch.cat(similarities), [told for part in answers for told in part])

    def interval(self, name: str, category: str | None = None, *, seed: int | None = None) -> Interval:
        """Mean of a score, or of the similarity, with its 95 % interval clustered by prompt.

        Of a balanced benchmark's gold it is the mean of the categories. Where nothing has a score, mean and bounds are
        NaN.

        Args:
            name: of the score.
            category: over its prompts alone, or its questions', each of them with its own answer.
            seed: over the images of that seed alone, by its place.
        """
        values, names = self._values(name, category, seed), [prompt.category for prompt in self.benchmark.prompts]
        if values.isnan().all():
            return Interval(math.nan, math.nan, math.nan, 0)
        if category is None and name == self.benchmark.gold and self.benchmark.balanced:
            return balanced(values, names)
        return clustered(values)

    def _values(self, name: str, category: str | None, seed: int | None) -> Tensor:
        """[p, N] the scores of the prompts that count, NaN where there is none."""
        if self.answers and category is not None:
            return self._answered(category)
        rows = [i for i, prompt in enumerate(self.benchmark.prompts) if category in (None, prompt.category)]
        if name == SIMILARITY:
            return self.similarity[rows, None]
        values = self.scores[name][rows]
        return (values if seed is None else values[:, seed]).flatten(1)

    def _answered(self, category: str) -> Tensor:
        """[P, N] the answers to a category's questions, NaN beyond those of a prompt."""
        rows = [
            answers[..., [q.category == category for q in questions]].flatten()
            for answers, questions in zip(self.answers, self.benchmark.questions, strict=True)
        ]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.nan)

    def categories(self, name: str) -> list[str]:
        """Those that a score has, in the prompts' order; of a benchmark of questions its gold alone has any."""
        if self.answers:
            asked = itertools.chain.from_iterable(self.benchmark.questions) if name == self.benchmark.gold else ()
            return list(dict.fromkeys(question.category for question in asked))
        return [name for name in dict.fromkeys(prompt.category for prompt in self.benchmark.prompts) if name]

    def document(self) -> dict[str, Any]:
        """What `result.json` holds of the benchmark."""
        found: dict[str, Any] = {}
        for name in [*self.scores, SIMILARITY]:
            found[name] = _fields(self.interval(name))
            if name != SIMILARITY:
                seeds = range(self.scores[name].shape[1])
                found[name]["seeds"] = [number(self.interval(name, seed=seed).mean) for seed in seeds]
                found[name]["missing"] = int(self.scores[name].isnan().sum())
            found[name]["categories"] = {c: _fields(self.interval(name, c)) for c in self.categories(name)}
        held = {"prompts": len(self.benchmark.prompts), "prompts_sha256": self.benchmark.digest(), "scores": found}
        if self.benchmark.rules:
            pairs = zip(self.benchmark.prompts, self.benchmark.rules, strict=True)
            rules = dict.fromkeys((prompt.category, rule) for prompt, rule in pairs)
            held["rules"] = [{"category": category, "mean_of": rule} for category, rule in rules]
        return held


def tabulated(found: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a table: a line for each benchmark and each of its categories, a column for each score."""
    names = [*dict.fromkeys(name for one in found for name in one.scores), SIMILARITY]
    lines = []
    for one in found:
        categories = dict.fromkeys(category for name in one.scores for category in one.categories(name))
        for category in [None, *categories]:
            cells = [_cell(one, name, category) for name in names]
            lines.append(["  " + category if category else one.benchmark.name, *cells])
    return ["benchmark", *names], lines


def _cell(one: Measured, name: str, category: str | None) -> str:
    """A mean and its interval, such as "0.52 (0.48 to 0.56)"."""
    known = name == SIMILARITY or name in one.scores
    if not known or category not in (None, *one.categories(name)):
        return ""
    mean, low, high, _ = one.interval(name, category)
    if math.isnan(mean):
        return "none"
    return f"{mean:.3g}" + ("" if math.isnan(low) else f" ({low:.3g} to {high:.3g})")


def _fields(found: Interval) -> dict[str, Any]:
    return {
        "mean": number(found.mean),
        "low": number(found.low),
        "high": number(found.high),
        "prompts": found.clusters,
    }


def number(value: float) -> float | None:
    """The value as JSON can hold it: None where it is not finite."""
    return value if math.isfinite(value) else None

"""Rewards made of rewards: weighted sum, least, lower confidence bound, standardised. Their parts stay visible.

Their names are expressions, which `registry.load` reads (`rewards.expression` has the grammar) and `spec.name` gives
back: `0.5*colorfulness+2*sharpness`, `min(a,b)`, `lcb(a,b,c,k=1)`, `z(a,mean=10,sd=3)`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from rwk.rewards.base import Reward, RewardSpec, Scores

RESERVED = '+*(),"'
"""Characters that mean something in an expression; a name that holds one is put in quotes."""


class Named(Reward):
    """A reward whose name is an expression."""


class Combination(Named):
    """A reward that is computed from the scores of its parts; it has a score where all of them have one."""

    def __init__(self, parts: Mapping[str, Reward], name: str, unit: str, low: float, high: float) -> None:
        """
        Args:
            parts: rewards by the names that they are loaded by.
            name: the expression that stands for the combination.
            unit: what one step of the combined score means.
            low: smallest score that the parts' ranges allow.
            high: largest such score.
        """
        super().__init__()
        self._parts = dict(parts)
        _refuse_homonyms(name, self._deep_parts())
        specs = [part.spec for part in self._parts.values()]
        self.spec = RewardSpec(
            name=name,
            unit=unit,
            low=low,
            high=high,
            licence="; ".join(dict.fromkeys(spec.licence for spec in specs)),
            source="; ".join(dict.fromkeys(spec.source for spec in specs)),
            needs_prompt=any(spec.needs_prompt for spec in specs),
            deterministic=all(spec.deterministic for spec in specs),
        )
        asked = [part for part in self._parts.values() if part.spec.needs_prompt] or list(self._parts.values())
        self.example_prompts = asked[0].example_prompts

    @abstractmethod
    def _combined(self, values: Tensor) -> Tensor:
        """[B] scores, from the scores [P, B] of the parts, none of them NaN."""

    def parts(self) -> dict[str, Reward]:
        return dict(self._parts)

    def example_images(self) -> list[Image.Image]:
        return next((images for part in self._parts.values() if (images := part.example_images())), [])

    def score_parts(
        self, images: Sequence[Image.Image], prompts: Sequence[str] = (), *, batch_size: int = 16
    ) -> dict[str, Scores]:
        scores: dict[str, Scores] = {}
        for name, part in self._deep_parts():
            if name not in scores and not isinstance(part, Combination):
                scores[name] = part.score(images, prompts, batch_size=batch_size)
        return self.score_with(scores)

    def score_with(self, scores: Mapping[str, Scores]) -> dict[str, Scores]:
        """What `score_parts` gives, of the scores of the parts that are no combinations."""
        found: dict[str, Scores] = {}
        for name, part in self._deep_parts():  # innermost first
            if name not in found:
                found[name] = part.combine(found) if isinstance(part, Combination) else scores[name]
        return found | {self.spec.name: self.combine(found)}

    def combine(self, scores: Mapping[str, Scores]) -> Scores:
        """The combined scores of the parts' scores, by name; NaN where a part is NaN, with a note that names it."""
        own = {name: scores[name] for name in self._parts}
        values = torch.stack([part.values for part in own.values()]).double()  # [P, B]
        scored = ~values.isnan().any(0)  # [B]
        combined = torch.full([values.shape[1]], math.nan, dtype=torch.float32)
        combined[scored] = self._combined(values[:, scored]).float()
        notes = []
        for row in range(values.shape[1]):
            said = {name: part.notes[row] or "no score" * bool(part.values[row].isnan()) for name, part in own.items()}
            notes.append("; ".join(f"{name}: {note}" for name, note in said.items() if note))
        return Scores(combined, notes)

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        return self.score_parts(images, prompts, batch_size=len(images))[self.spec.name]

    def _deep_parts(self) -> list[tuple[str, Reward]]:
        """Every part at every depth by its name, a part's own parts before it."""
        found: list[tuple[str, Reward]] = []
        for name, part in self._parts.items():
            found += part._deep_parts() if isinstance(part, Combination) else []
            found.append((name, part))
        return found


class WeightedSum(Combination):
    """The sum of the parts' scores, each times its weight; a negative weight turns a part round."""

    def __init__(self, parts: Mapping[str, Reward], weights: Sequence[float]) -> None:
        if len(weights) != len(parts) or not parts:
            raise ValueError(f"a weighted sum needs one weight per part, got {len(weights)} for {len(parts)} parts.")
        terms = zip(weights, parts.items(), strict=True)
        name = "+".join(f"{number(w)}*{_term(key, part)}" if w != 1 else _term(key, part) for w, (key, part) in terms)
        for weight in weights:
            if not math.isfinite(weight) or weight == 0:
                raise ValueError(f"{name} needs weights that are finite and not 0, got {weight}.")
        units = [part.spec.unit for part in parts.values()]
        same = len(set(units)) == 1 and math.isclose(sum(weights), 1)
        ranges = [
            sorted((w * part.spec.low, w * part.spec.high)) for w, part in zip(weights, parts.values(), strict=True)
        ]
        super().__init__(
            parts,
            name,
            units[0] if same else " + ".join(f"{number(w)} [{unit}]" for w, unit in zip(weights, units, strict=True)),
            sum(low for low, _ in ranges),
            sum(high for _, high in ranges),
        )
        self.weights = tuple(weights)

    @classmethod
    def tiny(cls) -> WeightedSum:
        return cls(_tiny_parts(), [0.5, -2.0])

    def _combined(self, values: Tensor) -> Tensor:
        return torch.tensor(self.weights, dtype=torch.float64) @ values


class Minimum(Combination):
    """The least of the parts' scores, which are in one unit."""

    def __init__(self, parts: Mapping[str, Reward]) -> None:
        name = f"min({arguments(parts)})"
        unit = _one_unit(name, parts)
        lows, highs = _bounds(parts)
        super().__init__(parts, name, unit, min(lows), min(highs))

    @classmethod
    def tiny(cls) -> Minimum:
        return cls(_tiny_parts())

    def _combined(self, values: Tensor) -> Tensor:
        return values.amin(0)


class LowerBound(Combination):
    """The mean of an ensemble less k of its standard deviations (divided by n): what its members agree on."""

    def __init__(self, parts: Mapping[str, Reward], k: float = 1.0) -> None:
        name = f"lcb({arguments(parts)},k={number(k)})"
        if not (math.isfinite(k) and k >= 0):
            raise ValueError(f"{name} needs a k that is finite and at least 0, got {k}.")
        unit = _one_unit(name, parts)
        lows, highs = _bounds(parts)
        low = sum(lows) / len(lows) if k == 0 else lower_bound_low(min(lows), max(highs), k)
        super().__init__(parts, name, unit, low, sum(highs) / len(highs))
        self.k = k

    @classmethod
    def tiny(cls) -> LowerBound:
        return cls(_tiny_parts())

    def _combined(self, values: Tensor) -> Tensor:
        return values.mean(0) - self.k * values.std(0, correction=0)


class Standardised(Combination):
    """A reward's distance from a stated mean, in stated standard deviations (z-score)."""

    def __init__(self, parts: Mapping[str, Reward], *, mean: float, sd: float) -> None:
        name = f"z({arguments(parts)},mean={number(mean)},sd={number(sd)})"
        if len(parts) != 1:
            raise ValueError(f"{name} needs one part, got {len(parts)}; standardise each by itself.")
        if not (math.isfinite(mean) and math.isfinite(sd) and sd > 0):
            raise ValueError(f"{name} needs a finite mean and an sd above 0, got mean {mean} and sd {sd}.")
        (low,), (high,) = _bounds(parts)
        super().__init__(parts, name, "standard deviations", (low - mean) / sd, (high - mean) / sd)
        self.mean, self.sd = mean, sd

    @classmethod
    def tiny(cls) -> Standardised:
        return cls(_tiny_part("contrast"), mean=0.2, sd=0.1)

    def _combined(self, values: Tensor) -> Tensor:
        return (values[0] - self.mean) / self.sd


def lower_bound_low(low: float, high: float, k: float) -> float:
    """The least that the mean of values in low..high can be, less k of their standard deviations."""
    if k == 0 or not math.isfinite(high - low):
        return low if k == 0 else -math.inf
    # For values in 0..1 of mean m the deviation is at most sqrt(m (1 - m)).
    return low + (high - low) * (1 - math.sqrt(1 + k * k)) / 2


def number(value: float) -> str:
    """The shortest text that reads back as the number: 2, 0.5, 1e-05."""
    return repr(float(value)).removesuffix(".0")


def quoted(name: str) -> str:
    """A name as it stands in an expression: in quotes where it holds a character that means something there."""
    if '"' in name:
        raise ValueError(f'reward name {name!r} holds a ", which no expression can hold; rename it.')
    return f'"{name}"' if any(char in RESERVED for char in name) else name


def _text(name: str, part: Reward) -> str:
    return part.spec.name if isinstance(part, Named) else quoted(name)


def _term(name: str, part: Reward) -> str:
    return f"({_text(name, part)})" if isinstance(part, WeightedSum) else _text(name, part)


def arguments(parts: Mapping[str, Reward]) -> str:
    """The parts' names, as they stand between the brackets of an expression."""
    return ",".join(_text(name, part) for name, part in parts.items())


def _bounds(parts: Mapping[str, Reward]) -> tuple[list[float], list[float]]:
    return [part.spec.low for part in parts.values()], [part.spec.high for part in parts.values()]


def _one_unit(name: str, parts: Mapping[str, Reward]) -> str:
    """The unit of all parts; raises ValueError for fewer than two parts, or where their units differ."""
    if len(parts) < 2:
        raise ValueError(f"{name} needs two parts or more, got {len(parts)}.")
    units = list(dict.fromkeys(part.spec.unit for part in parts.values()))
    if len(units) > 1:
        raise ValueError(
            f"{name} needs parts of one unit, got {' and '.join(units)}; standardise each as z(NAME,mean=M,sd=S)."
        )
    return units[0]


def _refuse_homonyms(name: str, parts: Iterable[tuple[str, Reward]]) -> None:
    known: dict[str, Reward] = {}
    for key, part in parts:
        if known.setdefault(key, part) is not part:
            raise ValueError(f"{name} needs one reward per name, got two that are called {key}; rename one.")


def _tiny_parts() -> dict[str, Reward]:
    tiny = [Standardised.tiny(), Standardised(_tiny_part("exposure"), mean=0.5, sd=0.2)]
    return {part.spec.name: part for part in tiny}


def _tiny_part(name: str) -> dict[str, Reward]:
    from rwk.rewards.registry import REWARDS  # reads expressions, so knows this module

    return {name: REWARDS.target(name).tiny()}

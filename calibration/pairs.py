"""Pairs as numbers: the margin that a reward gives, what people said, and the prompt that both images belong to."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rwk.rewards.base import UNREADABLE, Reward
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.pictures import Picture, identity, opened

Floats = NDArray[np.float64]
Strings = NDArray[np.str_]
_CHUNK = 256
"""Images that are open at once."""


def vector(
    who: str, values: Any, length: int | None = None, *, low: float = -math.inf, high: float = math.inf
) -> Floats:
    """[N] float64 of a list, an array or a tensor.

    Args:
        who: what the values are called in messages.
        values: N numbers.
        length: N, where it is known.
        low: the least that a value may be.
        high: the most.

    Raises:
        ValueError: for another shape, for NaN and infinities, and for values outside the bounds.
    """
    found = _numbers(values)
    if found.ndim != 1 or length not in (None, len(found)):
        wanted = f"[{'N' if length is None else length}]"
        raise ValueError(f"{who} must have the shape {wanted}, got {list(found.shape)}; give one number a row.")
    wrong = ~np.isfinite(found) | (found < low) | (found > high)
    if wrong.any():
        bounds = "finite" if math.isinf(high) and math.isinf(low) else f"in {low:g}..{high:g}"
        row = int(wrong.argmax())
        raise ValueError(f"{who} must be {bounds}, got {found[row]:g} in row {row}; leave out rows without a number.")
    return found


class PairTable:
    """Pairs of images of one prompt as columns of length N; it is not changed once made.

    Which image is called the first means nothing: `flip` gives the same pairs the other way round, and no fit and no
    measure in this package depends on it.
    """

    margin: Floats
    """score(first) - score(second)."""
    label: Floats
    """Share of those with a preference who prefer the first, 0..1."""
    tie: Floats
    """Share of votes for "equally good", 0..1."""
    prompt: Strings
    """What the pairs are clustered and split by."""
    weight: Floats
    """How much a pair counts, at least 0."""

    def __init__(
        self,
        margin: Any,
        label: Any,
        *,
        prompt: Sequence[str] | Strings | None = None,
        weight: Any = None,
        tie: Any = None,
        slices: Mapping[str, Sequence[str] | Strings] | None = None,
        covariates: Mapping[str, Any] | None = None,
        generator_first: Sequence[str] | Strings | None = None,
        generator_second: Sequence[str] | Strings | None = None,
        unscored: int = 0,
    ) -> None:
        """
        Args:
            margin: see the attribute.
            label: see the attribute; where nobody has a preference it does not count.
            prompt: by default every pair has a prompt of its own.
            weight: by default 1.
            tie: by default 1 where the label is 0.5, else 0.
            slices: names of groups by what they group by, such as {"category": ["counting", ...]}; a group must not
                depend on which image is the first.
            covariates: differences first minus second of what images are like, such as {"saturation": [0.1, ...]}.
            generator_first: what drew the first image.
            generator_second: what drew the second.
            unscored: pairs that were left out because an image has no score.
        """
        self.margin = vector("margin", margin)
        n = len(self.margin)
        self.label = vector("label", label, n, low=0, high=1)
        self.weight = np.ones(n) if weight is None else vector("weight", weight, n, low=0)
        self.tie = (self.label == 0.5).astype(np.float64) if tie is None else vector("tie", tie, n, low=0, high=1)
        self.prompt = _strings("prompt", [f"row {i}" for i in range(n)] if prompt is None else prompt, n)
        self.slices = {name: _strings(f"slice {name}", of, n) for name, of in (slices or {}).items()}
        self.covariates = {name: vector(f"covariate {name}", of, n) for name, of in (covariates or {}).items()}
        self.generator_first = None if generator_first is None else _strings("generator_first", generator_first, n)
        self.generator_second = None if generator_second is None else _strings("generator_second", generator_second, n)
        self.unscored = unscored
        _, self.clusters = np.unique(self.prompt, return_inverse=True)  # [N], numbers of the prompts
        for column in (self.margin, self.label, self.weight, self.tie, self.prompt, self.clusters):
            column.setflags(write=False)

    @classmethod
    def from_scores(cls, first: Any, second: Any, label: Any, **columns: Any) -> PairTable:
        """Pairs of the scores [N] of their images; a pair with a score of NaN is left out and counted in `unscored`.

        >>> PairTable.from_scores([2.0, float("nan")], [0.5, 1.0], [1, 0]).margin.tolist()
        [1.5]
        """
        one, two = _numbers(first), _numbers(second)
        if one.ndim != 1 or one.shape != two.shape:
            raise ValueError(
                f"scores must be one number for each image of each pair, got shapes {one.shape} and {two.shape}; "
                f"give both as [N]."
            )
        scored = ~(np.isnan(one) | np.isnan(two))

        def kept(name: str, column: Any) -> Any:
            if isinstance(column, Mapping):
                return {key: kept(f"{name} {key}", of) for key, of in column.items()}
            if column is None:
                return None
            if len(column) != len(scored):
                raise ValueError(f"{name} must have one value a pair, got {len(column)} for {len(scored)} pairs.")
            return [value for value, good in zip(column, scored, strict=True) if good]

        given = {name: kept(name, column) for name, column in columns.items()}
        margin = one[scored] - two[scored]
        return cls(margin, kept("label", label), **given, unscored=int((~scored).sum()))

    @classmethod
    def from_preferences(cls, data: PreferenceDataset, first: Any, second: Any, **columns: Any) -> PairTable:
        """The rows of a dataset with the scores [N] of their images; `p_first` of 0.5 is a tie.

        The generators are told where every row has both.
        """
        label, weight = [row.p_first for row in data], [row.weight for row in data]
        drawn = [[row.generator_first for row in data], [row.generator_second for row in data]]
        if len(data) and all(map(all, drawn)):
            columns = dict(zip(("generator_first", "generator_second"), drawn, strict=True)) | columns
        return cls.from_scores(first, second, label, prompt=data.groups(), weight=weight, **columns)

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def decided(self) -> Floats:
        """[N] the weight of those votes that prefer one of the two images."""
        return self.weight * (1 - self.tie)

    @property
    def prompts(self) -> int:
        """How many different prompts there are."""
        return int(self.clusters.max(initial=-1)) + 1

    def take(self, rows: Any) -> PairTable:
        """The pairs of these indices, in the order given, or those where a mask [N] is true."""
        return PairTable(
            self.margin[rows],
            self.label[rows],
            prompt=self.prompt[rows],
            weight=self.weight[rows],
            tie=self.tie[rows],
            slices={name: of[rows] for name, of in self.slices.items()},
            covariates={name: of[rows] for name, of in self.covariates.items()},
            generator_first=None if self.generator_first is None else self.generator_first[rows],
            generator_second=None if self.generator_second is None else self.generator_second[rows],
            unscored=self.unscored,
        )

    def flip(self, mask: Any) -> PairTable:
        """The same pairs, where the mask [N] is true with their images the other way round."""
        sign = np.where(mask, -1.0, 1.0)
        one, two = self.generator_first, self.generator_second
        return PairTable(
            self.margin * sign,
            np.where(mask, 1 - self.label, self.label),
            prompt=self.prompt,
            weight=self.weight,
            tie=self.tie,
            slices=self.slices,
            covariates={name: of * sign for name, of in self.covariates.items()},
            generator_first=one if one is None or two is None else np.where(mask, two, one),
            generator_second=two if one is None or two is None else np.where(mask, one, two),
            unscored=self.unscored,
        )

    def split(self, *, held_out: float, seed: int) -> tuple[PairTable, PairTable]:
        """Pairs to fit on and pairs held out, such that no prompt is in both.

        Args:
            held_out: share of the prompts that is held out, above 0 and below 1; at least one prompt on each side.
            seed: of the draw, which does not depend on the order of the pairs.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {held_out}.")
        if self.prompts < 2:
            raise ValueError(f"a split needs pairs of at least 2 prompts, got {self.prompts}; add other prompts.")
        order = random.Random(seed).sample(range(self.prompts), self.prompts)
        kept_out = order[: min(max(1, round(held_out * self.prompts)), self.prompts - 1)]
        outside = np.isin(self.clusters, kept_out)
        return self.take(~outside), self.take(outside)

    def one_per_prompt(self, *, seed: int) -> PairTable:
        """One pair of each prompt, drawn at random: pairs that can be exchanged for each other."""
        order = np.random.default_rng(seed).permutation(len(self))
        _, at = np.unique(self.clusters[order], return_index=True)
        return self.take(np.sort(order[at]))


def score_preferences(
    reward: Reward, data: PreferenceDataset, *, batch_size: int = 16, advance: Callable[[int], None] = lambda more: None
) -> tuple[Floats, Floats]:
    """[N] scores of the first images and [N] of the second ones; an image is scored once for each of its prompts.

    NaN where an image cannot be read or has no score.
    """
    wanted: dict[tuple[str, str], Picture] = {}
    for row in data:
        for picture in (row.first, row.second):
            wanted.setdefault((identity(picture), row.prompt), picture)
    items, scores = list(wanted.items()), dict[tuple[str, str], float]()
    for start in range(0, len(items), _CHUNK):
        held = {key: image for key, picture in items[start : start + _CHUNK] if (image := _opened(picture))}
        prompts = [prompt for _, prompt in held]
        given = prompts if reward.spec.needs_prompt or any(prompts) else []
        found = reward.score(list(held.values()), given, batch_size=batch_size).values
        scores.update(zip(held, found.tolist(), strict=True))
        advance(len(items[start : start + _CHUNK]))

    def of(pictures: Iterable[Picture]) -> Floats:
        keys = [(identity(picture), row.prompt) for picture, row in zip(pictures, data, strict=True)]
        return np.array([scores.get(key, math.nan) for key in keys], dtype=np.float64)

    return of(row.first for row in data), of(row.second for row in data)


def _opened(picture: Picture) -> Image.Image | None:
    """The picture, or None where it cannot be read."""
    try:
        return opened(picture)
    except UNREADABLE:
        return None


def _numbers(values: Any) -> Floats:
    """A float64 copy of a list, an array or a tensor."""
    held = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    return np.array(held, dtype=np.float64)


def _strings(who: str, values: Sequence[str] | Strings, length: int) -> Strings:
    found: Strings = np.array(values, dtype=np.str_).reshape(-1)
    if len(found) != length:
        raise ValueError(f"{who} must have one name a pair, got {len(found)} for {length} pairs.")
    return found

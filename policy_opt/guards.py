"""What a run is watched for update by update.

That it learns, at its beginning and later; that images have scores; that the policy stays varied; and that what is
trained is what drew: cached decoding and teacher forcing agree, and the ratio of an update that nothing went before
is 1. An alarm is a sentence in the update's line of `metrics.jsonl`, under `alarms`; the command prints it, and the
page of the run shows it. It sounds once, and again only after what it is about had passed. A run whose first updates
all learn nothing is ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rwk.rewards.errors import RunFailed

MOVED = 0.1
"""Share of the weights that an early update must move at least; many rows of a vocabulary never get a gradient."""
PATIENCE = 3
"""Updates from the start of a run that may be without effect, by bad luck, before it is stopped."""
STALLED = 10
"""Updates in a row without effect, later in a run, of which it tells: too many for bad luck, and no reason to end it,
since a run may have learnt all there is."""
DRIFT = 0.2
"""Share of the way to the clip, in nats, that a token may be away by drift alone: a ratio that is off by up to 2e-3
was reported to put half of a fresh draw beyond a clip of 1e-3, so a clip is to be five times the drift."""
CLIPPED = 0.5
"""Share of clipped tokens, which have no gradient, above which an update is mostly in vain."""
UNSCORED = 0.1
"""Share of the images without a reward from which on there is an alarm."""
VARIED = {"entropy": "token entropy, nats", "diversity": "variety within a group, share of tokens that differ"}
"""What must not collapse."""


class Guards:
    """Looks at the lines of a run in their order; what it says depends on them alone."""

    def __init__(self, collapse: float = 0.5, clip: float = 0.2, *, later: bool = False) -> None:
        """
        Args:
            collapse: share of its beginning below which a quantity of `VARIED` has collapsed; 0 is never.
            clip: by how much a ratio may differ from 1 until it is clipped.
            later: whether the generator learnt in a part before: no reason then to end it where nothing is left.
        """
        self.collapse, self.clip, self.later = collapse, clip, later
        self._silent = 0
        self._quiet, self._why = 0, ""
        self._beginning: dict[str, float] = {}
        self._sounding: set[str] = set()

    def anew(self) -> Guards:
        """Guards of the same settings that have seen nothing."""
        return Guards(self.collapse, self.clip, later=self.later)

    def look(self, row: dict[str, Any]) -> list[str]:
        """Alarms that an update's line begins to give cause for; what a guard looks for may be missing there."""
        alarms = []
        for name, text in self._judged(row):
            if text and name not in self._sounding:
                alarms.append(text)
            (self._sounding.add if text else self._sounding.discard)(name)
        return alarms

    def check(self, row: dict[str, Any], total: int) -> None:
        """Raises RunFailed when the gradient is not a number, or nothing has been learnt from the start of all on.

        Args:
            row: the update's line.
            total: updates of the whole run.
        """
        if not math.isfinite(row.get("grad_norm") or 0.0):
            raise RunFailed(f"update {row['step']} has a gradient of {row['grad_norm']}; lower learning_rate.")
        if not self.later and row["step"] <= PATIENCE and (why := why_silent(row)):
            self._silent += 1
            if self._silent >= min(PATIENCE, total):
                raise RunFailed(f"the first updates, {self._silent} in number, learnt nothing: {why}")

    def _judged(self, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Name and alarm, or "" where all is well, of everything that the line tells of."""
        if row.get("moved") is not None and row.get("grad_norm"):
            yield "still", why_still(row) if row["moved"] < MOVED else ""
        if row["step"] == 1 and "grad_norm" in row:  # else it closes a run of one update
            why = why_silent(row)
            yield "silent", why and f"the first update learnt nothing: {why}"
        yield "stalled", self._stalled(row)
        yield from self._ratios(row)
        if "images" in row:
            images, unscored = row["images"], row["unscored"]
            text = f"{unscored} of {images} images have no reward, and nothing is learnt from them"
            yield "unscored", text if unscored > UNSCORED * images else ""
        if "groups_short" in row:
            groups, short, draws = row["groups"], row["groups_short"], row["draws"]
            text = (
                f"only {groups} of the {groups + short} groups of an update differ after {draws} draws, the others are "
                f"groups of equal rewards; raise max_draws, or take easier or harder prompts"
            )
            yield "short", text if short else ""
        for name, words in VARIED.items():
            value = row.get(name)
            if value is not None and math.isfinite(value):
                begun = self._beginning.setdefault(name, value)
                text = f"{words}, has fallen to {value:.3g} from {begun:.3g} at the beginning"
                yield name, text if value < self.collapse * begun else ""

    def _stalled(self, row: dict[str, Any]) -> str:
        why = why_silent(row)
        self._quiet = self._quiet + 1 if why else 0
        if "images" in row or not self._why:  # the later updates from one draw do not know why
            self._why = why
        return f"the last {self._quiet} updates learnt nothing: {self._why or why}" if self._quiet >= STALLED else ""

    def _ratios(self, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Whether what is trained is what drew."""
        bound = DRIFT * math.log1p(self.clip)
        if (apart := row.get("drift")) is not None:
            text = (
                f"drawing and learning differ by {apart:.2g} nats a token with the same weights, which is above "
                f"{bound:.2g}, a fifth of the clip; draw in higher precision, take importance_cap, or see whether the "
                f"cache is right"
            )
            yield "drift", text if apart > bound else ""
        if (clipped := row.get("clip_fraction")) is not None:
            text = (
                f"{clipped:.2g} of the tokens are clipped in the first update from a draw, where each ratio is to be "
                f"1; see whether the generator's probabilities depend on the batch or on chance, as by dropout"
            )
            if "images" in row:
                yield "fresh", text if clipped > 0 else ""
            text = f"{clipped:.2g} of the tokens are clipped, without gradient; lower learning_rate or num_iterations"
            yield "clipped", text if clipped > CLIPPED else ""


def why_silent(row: dict[str, Any]) -> str:
    """Why an update learnt nothing, and what to do; "" where it did learn."""
    if row.get("unscored", 0) and row.get("unscored") == row.get("images"):
        return "no image got a score; score one by hand and read its note."
    if row.get("frac_solved") == 1:
        return "every image reached the top of the reward, so nothing is left to learn; take harder prompts, or end it."
    if row.get("frac_zero_std") == 1:
        return (
            "in every group all images got the same reward, so none is better than another; "
            "take a finer reward, a larger group_size, or a higher temperature."
        )
    if row.get("groups") == 0:
        return "no group differs by more than min_std or std_floor; lower that, or take a larger group_size."
    if row.get("advantage") == 0:
        return "every advantage is 0 though rewards differ; lower gate, or see that the weights do not cancel."
    if row.get("grad_norm") == 0:
        return "no gradient reaches the weights; see that generator.module holds what statistics computes with."
    return ""


def why_still(row: dict[str, Any]) -> str:
    """What is wrong where an update moves hardly a weight, and what to do."""
    begin = f"update {row['step']} moves {100 * row['moved']:.1f} % of the weights"
    if row["moved_in"] == "float32":
        return f"{begin}: most get no gradient, or one that is lost in float32; raise learning_rate."
    return (
        f"{begin}: updates are smaller than half precision ({row['moved_in']}) can hold; "
        f"raise learning_rate, or load the generator in float32."
    )


def diversity(tokens: Tensor, group_size: int) -> float:
    """Share of tokens, 0..1, in which two images of a group differ; mean over all pairs of all groups.

    Args:
        tokens: [B, L] long, rows of one group adjacent.
        group_size: rows of each, at least 2.

    >>> diversity(torch.tensor([[1, 2], [1, 3], [5, 5], [5, 5]]), 2)
    0.25
    """
    groups = tokens.reshape(-1, group_size, tokens.shape[1])
    apart = torch.stack([(group[:, None] != group[None]).double().mean() for group in groups]).mean().item()
    return apart * group_size / (group_size - 1)  # a row is not held against itself

"""What a pair judge is: two images of a prompt in, the probability that the first is better out.

A `Reward` scores every image by itself, so that no score depends on a neighbour. Who is shown two images side by side
has no such score: the answer is of the pair, and may depend on which of them comes first. What undoes that is to ask in
both orders, as `policy_opt.win_rates` does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from PIL import Image
from torch import Tensor

from rwk.rewards.base import Reward, RewardSpec, Scores, check_images_and_prompts, check_prompts, checked, decoded
from rwk.rewards.registry import Registry


def pair_spec(
    name: str, licence: str, source: str, *, needs_prompt: bool = True, deterministic: bool = True
) -> RewardSpec:
    """What can be known of a pair judge without running it; the fields are those of a reward."""
    return RewardSpec(name, "P(first is better)", 0, 1, licence, source, needs_prompt, deterministic)


class PairJudge(ABC):
    """Says which of two images is better. A subclass writes `spec`, `tiny` and `_compare`; users call `compare`."""

    spec: RewardSpec
    """Made by `pair_spec`."""
    example_prompts: Sequence[str] = Reward.example_prompts
    """Prompts that the judge can read, of unequal length; `rewards.pair_contract` asks about them."""

    def example_images(self) -> list[Image.Image]:
        """Images that the judge can tell apart, four or more; empty where any image will do."""
        return []

    def __init__(self, *, device: str = "cpu") -> None:
        self.device = torch.device(device)

    @classmethod
    @abstractmethod
    def tiny(cls) -> PairJudge:
        """The same judge with a small random network, built without a download."""

    @abstractmethod
    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        """Answers about one batch of pairs.

        Args:
            first: RGB, upright, any size of at least 1x1.
            second: as many, likewise.
            prompts: one per pair, or none where the spec needs none and none were given.

        Returns:
            [B] probabilities that the first is better, or `Scores` where some pairs get no answer.
        """

    @final
    def compare(
        self,
        first: Sequence[Image.Image],
        second: Sequence[Image.Image],
        prompts: Sequence[str] = (),
        *,
        batch_size: int = 16,
    ) -> Scores:
        """The probability that the first image is better than the second, for every pair.

        Args:
            first: PIL images of any size and mode.
            second: as many, one for each of the first.
            prompts: one per pair; none where `spec.needs_prompt` is false.
            batch_size: pairs that go through the model at once; no answer depends on it.

        Returns:
            `Scores` of as many values as pairs, in 0..1; NaN with a note where there is no answer, as where one of the
            images cannot be decoded.

        Raises:
            ValueError: when the numbers of images or prompts do not fit, or `batch_size` is below 1.
        """
        name = self.spec.name
        for images in (first, second):
            check_images_and_prompts(name, images, prompts)
        if len(first) != len(second):
            raise ValueError(
                f"{name} needs a second image for every first, got {len(first)} and {len(second)}; "
                f"repeat an image for every other that it is shown with."
            )
        check_prompts(self.spec, len(first), len(prompts))
        if batch_size < 1:
            raise ValueError(f"{name} needs batch_size of at least 1, got {batch_size}.")
        values, notes = torch.full([len(first)], math.nan), [""] * len(first)
        for start in range(0, len(first), batch_size):
            whole: list[int] = []
            pairs: list[tuple[Image.Image, Image.Image]] = []
            for row in range(start, min(start + batch_size, len(first))):
                one, two = decoded(name, first[row]), decoded(name, second[row])
                if isinstance(one, str):
                    notes[row] = f"the first image {one}"
                elif isinstance(two, str):
                    notes[row] = f"the second image {two}"
                else:
                    whole.append(row)
                    pairs.append((one, two))
            if whole:
                with torch.no_grad():
                    asked = [prompts[row] for row in whole] if prompts else []
                    result = self._compare([one for one, _ in pairs], [two for _, two in pairs], asked)
                found = checked(name, result, len(whole))
                values[whole] = found.values
                for row, note in zip(whole, found.notes, strict=True):
                    notes[row] = note
        return Scores(values, notes)


JUDGES: Registry[PairJudge] = Registry(
    "judge",
    "rwk.rewards.pair_judge:PairJudge",
    {
        "margin": "rwk.calibration.margin_judge:Margin",
        "pair.better": "rwk.adapters.judge_pair:Better",
        "pair.quality": "rwk.adapters.judge_pair:Quality",
        "unifiedreward.pair": "rwk.adapters.judge_pair:UnifiedPair",
        "unifiedreward.pair_alignment": "rwk.adapters.unified_pair:PairAlignment",
        "unifiedreward.pair_coherence": "rwk.adapters.unified_pair:PairCoherence",
        "unifiedreward.pair_style": "rwk.adapters.unified_pair:PairStyle",
        "unifiedreward.pair_think": "rwk.adapters.unified_pair:PairThink",
    },
)

load = JUDGES.load
names = JUDGES.names


def is_pair_judge(name: str) -> bool:
    """Whether a name stands for a pair judge: registered, as `NAME@PATH`, or `module:Class`; imports only the last.

    >>> is_pair_judge("margin@contrast"), is_pair_judge("contrast")
    (True, False)
    """
    if name.partition("@")[0] in JUDGES.names():
        return True
    module, colon, attribute = name.partition(":")
    if not colon or "/" in name or not attribute.isidentifier():
        return False
    try:
        JUDGES.target(name)
    except ValueError:
        return False
    return True

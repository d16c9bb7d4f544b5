"""UnifiedReward on two images where it writes: shares of each axis (2.0), and a verdict after thinking (Think)."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from PIL import Image

from rwk.adapters.judge_pair import VlmPairJudge
from rwk.adapters.pair_questions import UNIFIED_REWARD_AXES, UNIFIED_REWARD_THINK
from rwk.adapters.vlm import Vlm, tiny_writer
from rwk.rewards.base import Scores
from rwk.rewards.pair_judge import pair_spec

_SHARE = r"\s*Image 1:\s*(\d+(?:\.\d+)?)\s*Image 2:\s*(\d+(?:\.\d+)?)"


class Written(VlmPairJudge):
    """What stands in a text that the model writes, word by word the most probable (greedy), one pair at a time."""

    question: ClassVar[str]
    longest: int = 512
    """Tokens that the model may write."""

    @classmethod
    def of(cls, vlm: Vlm, *, longest: int) -> Self:
        """The judge around a model that is loaded already and may write that many tokens."""
        judge = cls.__new__(cls)
        judge.longest = longest
        return judge._take(vlm)

    @classmethod
    def tiny(cls) -> Self:
        """A random model whose every word is a verdict."""
        return cls.of(tiny_writer(cls.spec.name, cls.question, cls.verdicts()), longest=1)

    @classmethod
    @abstractmethod
    def verdicts(cls) -> list[str]:
        """Texts that `read` finds an answer in, for `tiny`."""

    @classmethod
    @abstractmethod
    def read(cls, text: str) -> float:
        """The probability that the first image is better, as a text says it; NaN where it does not."""

    def answers(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        values, notes = [], []
        for row, prompt in enumerate(prompts):
            asked = self.vlm.conversation([self.question.replace("{prompt}", prompt)], images=2)
            text = self.vlm.answer(images[2 * row : 2 * row + 2], asked, tokens=self.longest)
            values.append(self.read(text))
            notes.append(text if math.isfinite(values[-1]) else f"no verdict on the two images in: {text}")
        return Scores(torch.tensor(values), notes)


class PairAlignment(Written):
    """The share that the first image has of "Alignment Score:", of UnifiedReward 2.0: how well the content matches."""

    spec = pair_spec("unifiedreward.pair_alignment", "MIT", "arXiv:2503.05236")
    hub = "CodeGoat24/UnifiedReward-2.0-qwen-7b"
    question = UNIFIED_REWARD_AXES
    label: ClassVar[str] = "Alignment Score:"

    @classmethod
    def verdicts(cls) -> list[str]:
        return [f"{cls.label}\n Image 1: {share / 40}\n Image 2: {1 - share / 40}\n\n" for share in range(41)]

    @classmethod
    def read(cls, text: str) -> float:
        """The first share over the sum of both, which the model is told to make 1.

        >>> PairAlignment.read("Alignment Score:\\n Image 1: 0.75\\n Image 2: 0.25\\n")
        0.75
        """
        found = re.search(re.escape(cls.label) + _SHARE, text)
        first, second = (float(number) for number in found.groups()) if found else (math.nan, math.nan)
        return first / (first + second) if first + second > 0 else math.nan


class PairCoherence(PairAlignment):
    """The share that the first image has of "Coherence Score:", of UnifiedReward 2.0: how free of distortions it is."""

    spec = pair_spec("unifiedreward.pair_coherence", "MIT", "arXiv:2503.05236")
    label = "Coherence Score:"


class PairStyle(PairAlignment):
    """The share that the first image has of "Style Score:", of UnifiedReward 2.0: how it pleases."""

    spec = pair_spec("unifiedreward.pair_style", "MIT", "arXiv:2503.05236")
    label = "Style Score:"


class PairThink(Written):
    """1 or 0 by "Image 1 is better" or "Image 2 is better" between <answer> and </answer>, of UnifiedReward-Think.

    It compares the two images in writing first, and is what Pref-GRPO learns from. A text without a verdict is NaN;
    Pref-GRPO counts it as half a win for both.
    """

    spec = pair_spec("unifiedreward.pair_think", "MIT", "arXiv:2505.03318")
    hub = "CodeGoat24/UnifiedReward-Think-qwen-7b"
    question = UNIFIED_REWARD_THINK
    longest = 1024

    @classmethod
    def verdicts(cls) -> list[str]:
        spaces = [" " * count for count in range(20)]
        return [f"<answer>{space}Image {number} is better</answer>" for space in spaces for number in (1, 2)]

    @classmethod
    def read(cls, text: str) -> float:
        """1, 0, or NaN.

        >>> PairThink.read("<think>Image 2 is better</think>\\n<answer>Image 1 is better</answer>")
        1.0
        """
        found = re.search(r"<answer>\s*Image ([12]) is better\W*</answer>", text)
        return float(found[1] == "1") if found else math.nan

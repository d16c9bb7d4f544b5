"""UnifiedReward (Wang et al., 2025): a vision-language model that writes its assessment, and the number in it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import ClassVar, Self

import torch
from PIL import Image

from rwk.adapters.vlm import Refused, Vlm, tiny_writer
from rwk.rewards.base import Reward, RewardSpec, Scores

POINTWISE = (
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image "
    "based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided caption. Consider the accuracy "
    "of depicted objects, their relationships, and attributes as described in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail preservation, color "
    "accuracy, and overall aesthetic appeal.\n"
    "Extract key elements from the provided text caption, evaluate their presence in the generated image using the "
    "format: 'element (type): value' (where value=0 means not generated, and value=1 means generated), and assign a "
    "score from 1 to 5 after 'Final Score:'.\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
AXES = (
    "You are presented with a generated image and its associated text caption. Your task is to analyze the image "
    "across multiple dimensions in relation to the caption. Specifically:\n"
    "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
    "- Alignment Score: How well the image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent the image is (absence of visual glitches, object distortions, etc.).\n"
    "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
    "Output your evaluation using the format below:\n\n"
    "Alignment Score (1-5): X\n"
    "Coherence Score (1-5): Y\n"
    "Style Score (1-5): Z\n\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
LOW, HIGH = 1.0, 5.0


def number_after(label: str, text: str) -> float:
    """The first number after a label, from 1 to 5; NaN where there is none.

    The authors' pattern reads "10" as 1 and a missing number as 0.
    """
    found = re.search(re.escape(label) + r"\s*(\d+(?:\.\d+)?)", text)
    number = float(found.group(1)) if found else math.nan
    return number if LOW <= number <= HIGH else math.nan


class UnifiedReward(Reward):
    """The number after "Final Score:" in what the model writes about an image and its prompt; the note has the text.

    The checkpoints on Qwen2.5-VL, by default `CodeGoat24/UnifiedReward-qwen-7b`; those in LLaVA's own layout are not
    read. The text is the most probable word by word (greedy), under the checkpoint's repetition penalty,
    as in the authors' script; one image at a time, so that no neighbour tips a choice between two near-equal words.
    """

    spec = RewardSpec("unifiedreward.pointwise", "points, 1 to 5", LOW, HIGH, "MIT", "arXiv:2503.05236")
    hub: ClassVar[str] = "CodeGoat24/UnifiedReward-qwen-7b"
    question: ClassVar[str] = POINTWISE
    label: ClassVar[str] = "Final Score:"
    casts = True
    precision_note = (
        "published in bfloat16; a score is read out of words: from float32 the log-probability of a first word moves "
        "by up to 0.05, of 1.1 between words, and none of 4 pictures got another (on 4 of 28 layers)"
    )
    longest: int = 512
    """Tokens that the model may write."""

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> None:
        """
        Args:
            weights: hub id or folder of a UnifiedReward on Qwen2.5-VL or Qwen3-VL; by default `hub`.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.
            dtype: of the network; "auto" is that of the checkpoint.

        Raises:
            ValueError: for a model that cannot be asked.
            RunFailed: where the model cannot be had.
        """
        self._take(Vlm.load(weights or self.hub, name=self.spec.name, revision=revision, device=device, dtype=dtype))

    def _take(self, vlm: Vlm) -> Self:
        super().__init__(device=str(vlm.device))
        self.vlm = vlm
        return self

    @classmethod
    def of(cls, vlm: Vlm, *, longest: int) -> Self:
        """The reward around a model that is loaded already and may write that many tokens."""
        reward = cls.__new__(cls)
        reward.longest = longest
        return reward._take(vlm)

    @classmethod
    def tiny(cls) -> Self:
        """A random model whose every word is a verdict such as "Final Score: 2.7" and a line break."""
        verdicts = [f"{cls.label} {tenths / 10}\n" for tenths in range(10, 51)]
        return cls.of(tiny_writer(cls.spec.name, cls.question, verdicts), longest=1)

    def ask(self, image: Image.Image, prompt: str) -> str:
        """What the model writes; raises Refused where its processor cannot take the image."""
        return self.vlm.answer([image], self.text(prompt), tokens=self.longest)

    def text(self, prompt: str) -> str:
        """What the model reads, the image as a token of its own."""
        return self.vlm.conversation([self.question.replace("{prompt}", prompt)])

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        values, notes = torch.full([len(images)], math.nan), []
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            token = self.vlm.control_in(prompt)
            if token:
                notes.append(f"the prompt holds {token}, which the model would take for a command")
                continue
            try:
                text = self.ask(image, prompt)
            except Refused as error:
                notes.append(str(error))
                continue
            values[i] = number_after(self.label, text)
            notes.append(text if math.isfinite(values[i]) else f"no number from 1 to 5 after {self.label!r} in: {text}")
        return Scores(values, notes)


class Alignment(UnifiedReward):
    """The number after "Alignment Score (1-5):", of UnifiedReward 2.0: how well the content is that of the prompt."""

    spec = RewardSpec("unifiedreward.alignment", "points, 1 to 5", LOW, HIGH, "MIT", "arXiv:2503.05236")
    hub = "CodeGoat24/UnifiedReward-2.0-qwen-7b"
    question = AXES
    label = "Alignment Score (1-5):"


class Coherence(Alignment):
    """The number after "Coherence Score (1-5):", of UnifiedReward 2.0: how free of distortions the image is."""

    spec = RewardSpec("unifiedreward.coherence", "points, 1 to 5", LOW, HIGH, "MIT", "arXiv:2503.05236")
    label = "Coherence Score (1-5):"


class Style(Alignment):
    """The number after "Style Score (1-5):", of UnifiedReward 2.0: how the image pleases, whatever the prompt."""

    spec = RewardSpec("unifiedreward.style", "points, 1 to 5", LOW, HIGH, "MIT", "arXiv:2503.05236")
    label = "Style Score (1-5):"

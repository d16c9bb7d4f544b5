"""Vision-language models that are shown two images and asked which is better: the probabilities of their answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.judge import HUB
from rwk.adapters.pair_questions import PAIR_QUESTIONS
from rwk.adapters.questions import Question
from rwk.adapters.vlm import Refused, Vlm, tiny_vlm
from rwk.rewards.base import Scores
from rwk.rewards.pair_judge import PairJudge, pair_spec


class VlmPairJudge(PairJudge):
    """A pair judge that asks a chat model about two images in one message, the first shown first.

    A prompt that spells out a control token of the model gets NaN, and so does a pair of which the processor refuses an
    image.
    """

    hub: ClassVar[str] = HUB

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
            weights: hub id or folder of a chat model that reads several images and that `AutoModelForImageTextToText`
                knows; by default `hub`.
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

    def answers(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        """What the model says of pairs.

        Args:
            images: [2 B] the two of each pair after each other.
            prompts: [B]

        Raises:
            Refused: where the processor cannot take an image.
        """
        raise NotImplementedError

    def _compare(self, first: list[Image.Image], second: list[Image.Image], prompts: list[str]) -> Scores:
        prompts = prompts or [""] * len(first)
        control = [self.vlm.control_in(prompt) if self.spec.needs_prompt else "" for prompt in prompts]
        notes = [
            f"the prompt holds {token}, which the model would take for a command" if token else "" for token in control
        ]
        values = torch.full([len(first)], math.nan)
        taken = [row for row, note in enumerate(notes) if not note]
        found = self._answered([(first[row], second[row]) for row in taken], [prompts[row] for row in taken])
        values[taken] = found.values
        for row, note in zip(taken, found.notes, strict=True):
            notes[row] = note
        return Scores(values, notes)

    def _answered(self, pairs: list[tuple[Image.Image, Image.Image]], prompts: list[str]) -> Scores:
        """Answers about pairs, some of which the processor may refuse; then each goes alone."""
        if not pairs:
            return Scores(torch.empty(0), [])
        try:
            return self.answers([image for pair in pairs for image in pair], prompts)
        except Refused as error:
            if len(pairs) == 1:
                return Scores(torch.tensor([math.nan]), [f"an image of the pair {error}"])
        alone = [self._answered([pair], [prompt]) for pair, prompt in zip(pairs, prompts, strict=True)]
        return Scores(torch.cat([one.values for one in alone]), [one.notes[0] for one in alone])


class Better(VlmPairJudge):
    """P(first is better) among the answers to a question, from the logits of one forward pass; nothing is generated.

    The probabilities are of the answers among themselves. Where one says that both images are equally good, half of it
    counts for either.
    """

    spec = pair_spec("pair.better", "Apache-2.0", "rwk.adapters.pair_questions")
    asks: ClassVar[str] = "match"
    """The question asked, of `rwk.adapters.pair_questions`."""

    @property
    def question(self) -> Question:
        return PAIR_QUESTIONS[self.asks]

    def _take(self, vlm: Vlm) -> Self:
        super()._take(vlm)
        text = self.text("")
        if text.rstrip().endswith("<think>"):
            raise ValueError(f"{self.spec.name} needs a model that answers at once, got one that thinks first.")
        self.ids = [vlm.continuation(text, answer) for answer in self.question.answers]
        return self

    @classmethod
    def of(cls, vlm: Vlm) -> Self:
        """The judge around a model that is loaded already."""
        return cls.__new__(cls)._take(vlm)

    @classmethod
    def tiny(cls) -> Self:
        return cls.of(tiny_vlm(cls.spec.name, ("Image", "Both")))

    def text(self, prompt: str) -> str:
        """What the model reads before it answers, the images as tokens of their own."""
        return self.vlm.conversation(self.question.asked(prompt), images=2) + self.question.opening

    def log_probs(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """[B, A] float32 log-probability of each answer; arguments are those of `answers`."""
        texts = [self.text(prompt) for prompt in prompts]
        return self.vlm.chances(images, texts, self.question.answers, self.ids)

    def answers(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Scores:
        chances = self.log_probs(images, prompts).softmax(1).cpu()
        tie = chances[:, 2] if chances.shape[1] > 2 else 0
        return Scores((chances[:, 0] + 0.5 * tie).clamp(0, 1), [""] * len(prompts))


class Quality(Better):
    """`Better` of the picture alone, whatever the prompt."""

    spec = pair_spec("pair.quality", "Apache-2.0", "rwk.adapters.pair_questions", needs_prompt=False)
    asks = "quality"


class UnifiedPair(Better):
    """UnifiedReward's ranking of two images: how its answer begins, "Image 1", "Image 2" or "Both".

    Its authors have the answer written. Where it would begin otherwise, with an assessment say, what is read here are
    the three among themselves all the same.
    """

    spec = pair_spec("unifiedreward.pair", "MIT", "arXiv:2503.05236")
    hub = "CodeGoat24/UnifiedReward-qwen-7b"
    asks = "unifiedreward"

"""Vision-language models as judges: asked about an image, scored by the probabilities of their answers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from rwk.adapters.questions import QUESTIONS, Question
from rwk.adapters.timm_head import Head
from rwk.adapters.vlm import Refused, Vlm, tiny_vlm
from rwk.rewards.base import PixelReward, RewardSpec, Scores
from rwk.rewards.precision import UNMEASURED
from rwk.rewards.tunable import HeadKind, ScaledHead, Tunable

HUB = "Qwen/Qwen2.5-VL-7B-Instruct"

MEASURED_ON = "measured in the shape of Qwen2-VL-2B"
"""`precision_note` of judges whose `drift` is known."""


class Judge(Tunable, PixelReward):
    """A function of the probabilities with which a vision-language model would give each of a question's answers.

    They are read off the logits of a forward pass, never sampled and never taken from `generate`, whose scores have
    been through temperature, top-k and repetition penalty. An answer of more than one token has the product of its
    tokens' probabilities, each given the ones before (teacher forcing). Answers of one token share a single pass.

    `score_pixels` prepares images by torch, where transformers can for that model, and stands from `score` as far as
    its resize in float32 from Pillow's on 8 bits.

    An image that the processor refuses gets NaN, and so does a prompt that spells out a control token of the model.
    """

    asks: ClassVar[str]
    """The question asked where none is named, of `rwk.adapters.questions`."""
    hub: ClassVar[str] = HUB
    casts = True
    precision_note = UNMEASURED
    temperature: float = 1.0
    """What logits are divided by before the softmax."""
    tolerance = 0.01

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        question: str | Question | None = None,
        temperature: float | None = None,
    ) -> None:
        """
        Args:
            weights: hub id or folder of any chat model that `AutoModelForImageTextToText` knows; by default `hub`.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.
            dtype: of the network; "auto" is that of the checkpoint. Scores of a batch and of one image alone agree
                to the rounding of this type.
            question: a name of `rwk.adapters.questions.QUESTIONS`, or one's own.
            temperature: see the class.

        Raises:
            ValueError: for a question or a model that cannot be asked.
            RunFailed: where the model cannot be had.
        """
        asked = self._question(question)
        self._take(self.load(weights or self.hub, revision, device, dtype), asked, temperature)

    def load(self, weights: str | Path, revision: str | None, device: str, dtype: str) -> Vlm:
        """The model behind a hub id or folder."""
        return Vlm.load(weights, name=self.spec.name, revision=revision, device=device, dtype=dtype)

    def _take(self, vlm: Vlm, question: Question, temperature: float | None = None) -> Self:
        super().__init__(device=str(vlm.device))
        self.vlm, self.question = vlm, question
        self.temperature = self.temperature if temperature is None else temperature
        if not self.temperature > 0:
            raise ValueError(f"{self.spec.name} needs a temperature above 0, got {self.temperature}; 1 leaves it out.")
        text = self.text("")
        if text.rstrip().endswith("<think>"):
            raise ValueError(f"{self.spec.name} needs a model that answers at once, got one that thinks first.")
        self.ids = [vlm.continuation(text, answer) for answer in question.answers]
        return self

    @classmethod
    def of(cls, vlm: Vlm, *, question: str | Question | None = None, temperature: float | None = None) -> Self:
        """The judge around a model that is loaded already."""
        return cls.__new__(cls)._take(vlm, cls._question(question), temperature)

    @classmethod
    def tiny(cls) -> Self:
        return cls.of(tiny_vlm(cls.spec.name, cls._question(None).answers))

    @classmethod
    def _question(cls, question: str | Question | None) -> Question:
        if isinstance(question, str) and question not in QUESTIONS:
            known = ", ".join(QUESTIONS)
            raise ValueError(f"{cls.spec.name} needs a question by name, got {question!r}; known are {known}.")
        asked = question if isinstance(question, Question) else QUESTIONS[question or cls.asks]
        if asked.needs_prompt and not cls.spec.needs_prompt:
            raise ValueError(f"{cls.spec.name} gets no prompt, got a question that asks for one; take another judge.")
        return asked

    @abstractmethod
    def value(self, log_probs: Tensor) -> Tensor:
        """[B] scores of the answers' log-probabilities [B, A]."""

    def log_odds(self, log_probs: Tensor) -> Tensor:
        """[B] what training moves, of the answers' log-probabilities: the score as log-odds, where it is a chance."""
        return self.value(log_probs)

    def text(self, prompt: str) -> str:
        """What the model reads before it answers, the image as a token of its own."""
        asked = self.question
        return self.vlm.conversation(asked.asked(prompt), before=asked.said_before(prompt)) + asked.opening

    def log_probs(self, images: Sequence[Image.Image] | Tensor, prompts: Sequence[str]) -> Tensor:
        """[B, A] float32 log-probability of each answer of the question, in their order.

        Args:
            images: or pixels [B, 3, H, W] in 0..1, to which the gradient leads back.

        Raises:
            Refused: where the processor cannot take an image.
        """
        texts = [self.text(prompt) for prompt in prompts]
        return self.vlm.chances(images, texts, self.question.answers, self.ids, temperature=self.temperature)

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        return self.value(self.log_probs(pixels, prompts or [""] * len(pixels)))

    def prepared_pixels(self, pixels: Tensor) -> Tensor:
        return pixels

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        prompts = prompts or [""] * len(images)
        notes = [self.refusal(prompt) for prompt in prompts]
        values = torch.full([len(images)], math.nan)
        taken = [i for i, note in enumerate(notes) if not note]
        if taken:
            scored = self._scored([images[i] for i in taken], [prompts[i] for i in taken])
            values[taken] = scored.values
            for i, note in zip(taken, scored.notes, strict=True):
                notes[i] = note
        return Scores(values, notes)

    def _scored(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        """Scores of images some of which the processor may refuse; then each goes alone."""
        try:
            return Scores(self.value(self.log_probs(images, prompts)).cpu(), [""] * len(images))
        except Refused as error:
            if len(images) == 1:
                return Scores(torch.tensor([math.nan]), [str(error)])
        alone = [self._scored([image], [prompt]) for image, prompt in zip(images, prompts, strict=True)]
        return Scores(torch.cat([one.values for one in alone]), [one.notes[0] for one in alone])

    def trunk(self) -> nn.Module:
        network: nn.Module = self.vlm.network
        return network

    def take_head(self, kind: HeadKind, *, probe: bool) -> nn.Module:
        """The log-odds of the answer; `scalar`, a linear map of the state before it."""
        self.scalar = kind == "scalar"
        width: int = self.vlm.network.get_input_embeddings().weight.shape[1]
        return Head(width) if self.scalar else ScaledHead(nn.Identity())

    def prepare(self, image: Image.Image) -> Tensor | str:
        whole: Tensor = pil_to_tensor(image)
        return self.vlm.refusal(image) or whole

    def prepared(self, ready: Sequence[Tensor]) -> list[Image.Image]:
        return [to_pil_image(each) for each in ready]

    def features(self, prepared: list[Image.Image] | Tensor, prompts: Sequence[str]) -> Tensor:
        if not self.scalar:
            return self.log_odds(self.log_probs(prepared, prompts))[:, None]
        return self.vlm.states(self.vlm.batch(prepared, [self.text(prompt) for prompt in prompts])).float()

    def refusal(self, prompt: str) -> str:
        token = self.vlm.control_in(prompt) if self.question.needs_prompt else ""
        return f"the prompt holds {token}, which the model would take for a command" if token else ""


def _spec(name: str, unit: str, source: str, high: float = 1, low: float = 0, **more: Any) -> RewardSpec:
    return RewardSpec(name, unit, low, high, "Apache-2.0", source, differentiable=True, **more)


class YesNo(Judge):
    """P(yes) / (P(yes) + P(no)): how sure the model is of yes rather than no, whatever else it might say."""

    spec = _spec("judge.yes_no", "P(yes) among yes and no", "rwk.adapters.questions")
    drift = {"bfloat16": 7.2e-3}
    precision_note = MEASURED_ON
    asks = "match"

    def value(self, log_probs: Tensor) -> Tensor:
        yes, no = log_probs.unbind(1)
        return (yes - no).sigmoid()

    def log_odds(self, log_probs: Tensor) -> Tensor:
        yes, no = log_probs.unbind(1)
        return yes - no


class Answer(YesNo):
    """P(yes) among yes and no, in answer to the prompt itself, which is a question about the picture."""

    spec = _spec("judge.question", "P(yes) among yes and no", "rwk.adapters.questions")
    drift = {"bfloat16": 1.4e-2}
    asks = "question"


class Yes(Judge):
    """P(yes) among all that the model might say; low, too, where it would answer in other words."""

    spec = _spec("judge.yes", "P(yes)", "rwk.adapters.questions")
    drift = {"bfloat16": 1.1e-2}
    precision_note = MEASURED_ON
    asks = "match"

    def value(self, log_probs: Tensor) -> Tensor:
        return log_probs[:, 0].exp()

    def log_odds(self, log_probs: Tensor) -> Tensor:
        yes = log_probs[:, 0].clamp(max=-1e-7)  # of a certain yes the odds are infinite
        return yes - (-yes.expm1()).log()


class VqaScore(Yes):
    """P(Yes) in answer to VQAScore's question, for chat models as t2v_metrics 3.1 asks it (Lin et al., 2024).

    Its code has the repetition penalty of the checkpoint (1.05 of Qwen2.5-VL) weigh on the words of the question, Yes
    and No among them; that is left out here, and is all by which the two differ. The original with CLIP-FlanT5 is
    `vqascore.flant5`.
    """

    spec = _spec("vqascore.vlm", "P(Yes)", "arXiv:2404.01291")
    drift = {"bfloat16": 5.9e-3}
    asks = "vqascore"


class Levels(Judge):
    """Expected level, 5 for excellent to 1 for bad: the probabilities of the five words among themselves (Q-Align).

    Wu et al. (2023) trained mPLUG-Owl2 to answer so, and use 1 to 5 in the paper and 0 to 1 in their code. Here it is
    their question for any model; the word is the next after "The quality of the image is". Where it is several tokens
    they count the first alone.
    """

    spec = _spec("judge.quality", "level, 1 to 5", "arXiv:2312.17090", 5, 1, needs_prompt=False)
    drift = {"bfloat16": 1.7e-2}
    tolerance = 0.04
    precision_note = MEASURED_ON
    asks = "qalign.quality"

    def value(self, log_probs: Tensor) -> Tensor:
        levels = torch.arange(log_probs.shape[1], 0, -1, device=log_probs.device)
        return (log_probs.softmax(1) * levels).sum(1)  # a product of matrices would be one in half precision


class Aesthetics(Levels):
    """`Levels` of how the picture pleases rather than of its quality."""

    spec = _spec("judge.aesthetics", "level, 1 to 5", "arXiv:2312.17090", 5, 1, needs_prompt=False)
    drift = {"bfloat16": 2.7e-2}
    asks = "qalign.aesthetics"

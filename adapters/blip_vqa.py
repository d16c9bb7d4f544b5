"""BLIP-VQA of T2I-CompBench (Huang et al., 2023): is each thing that the prompt names in the picture?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwk.adapters.blip_towers import (
    BASE,
    SMALL,
    bert_tokenizer,
    cut_tokens,
    randomised,
    small_tokenizer,
    small_vocabulary,
    text_config,
    text_tower,
    tower_keys,
    vision_tower,
    vocabulary,
)
from rwk.adapters.clip_towers import seeded
from rwk.adapters.noun_phrases import noun_phrases
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.published import Origin, PublishedReward
from rwk.adapters.released import released
from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.precision import in_float32
from rwk.rewards.staged import Ready

ADDRESS = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_base_vqa_capfilt_large.pth"
PLACES = ("top", "the side", "the left", "the right")
"""Phrases that the benchmark does not ask about."""
MOST = 8
"""Phrases of one prompt that are asked about."""
_MARKS = re.compile(r"[.!\"()*#:;~]")


def question(phrase: str) -> str:
    """The phrase as BLIP was asked in training: small letters, no marks, at most 50 words, and a question mark."""
    return " ".join(_MARKS.sub("", f"{phrase}?".lower()).rstrip(" ").split(" ")[:50])


class VqaNetwork(nn.Module):
    """BLIP for questions: a picture's tokens, a text that looks at them, and a decoder that looks at the text."""

    def __init__(self, vision: nn.Module, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.text_encoder = encoder
        self.text_decoder = decoder

    def see(self, pixels: Tensor) -> Tensor:
        """[B, N, D] states of a picture's tokens, for pixels [B, 3, size, size]."""
        states: Tensor = self.vision(pixels).last_hidden_state
        return states

    def forward(self, pictures: Tensor, ids: Tensor, start: int) -> Tensor:
        """[Q, vocabulary] logits of the first word of the answer.

        There is no mask, as transformers ignores that of a text which BLIP's decoder looks at (in 5.23 at least).

        Args:
            pictures: [Q, N, D] what `see` gave, for each question.
            ids: [Q, L] questions of one length.
            start: id of [DEC], with which an answer begins.
        """
        asked = self.text_encoder(ids, encoder_hidden_states=pictures).last_hidden_state
        begin = torch.full([len(ids), 1], start, device=ids.device)
        decoder: Any = self.text_decoder
        states = decoder.bert(begin, encoder_hidden_states=asked, is_decoder=True, use_cache=False).last_hidden_state
        return in_float32(decoder.cls, states)[:, 0]


def decoder(width: int, **shape: Any) -> nn.Module:
    """BERT that writes a text looking at states of that width."""
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    return BlipTextLMHeadModel(text_config(width, **shape))


class BlipVqa(PublishedReward):
    """BLIP-VQA: the product, over the prompt's noun phrases, of `p(yes) / (p(yes) + p(no))` for the question "PHRASE?".

    p is the distribution of the first word of BLIP's answer. As in the benchmark a question begins with [ENC], and an
    answer with [DEC]; pictures are squashed to 480 by 480 pixels; of a prompt the first eight phrases count, and "top",
    "the side", "the left", "the right" do not. Each question is read up to 35 word pieces.

    The benchmark finds the phrases with spaCy's en_core_web_sm, which is not a dependency of this package. The default
    is the rule of `noun_phrases`: on the 654 validation prompts of colour, shape and texture that read "a ... and a
    ..." it gives spaCy's phrases for 638 (spaCy 3.8; in the other 16 spaCy drops or breaks one), on all 900 of these
    attributes for 756, on the 300 complex ones for 95. For figures to be compared with published ones, give spaCy's:

        parse = spacy.load("en_core_web_sm")
        BlipVqa(phrases=lambda prompt: [chunk.text for chunk in parse(prompt).noun_chunks])

    The benchmark rounds each answer and the product to four decimals, which is left out here; a score differs by at
    most 0.00005 for each phrase and once more. A prompt without a phrase gets no score, where the benchmark gives 1.

    The file is Salesforce's own, for pictures of 480 pixels. Conversions on the hub have theirs interpolated to 384.
    Pillow 11 and 13 resize unlike a picture that becomes wider and less tall, by up to 16 grey levels in noise.
    `score_pixels` stands from `score` as far as float32 bicubic stands from Pillow's on 8 bits.
    """

    spec = RewardSpec(
        "blip_vqa.compbench",
        "product of probabilities",
        0,
        1,
        "BSD-3-Clause",
        "arXiv:2307.06350",
        differentiable=True,
    )
    origin = Origin("github.com/salesforce/BLIP", ADDRESS.rpartition("/")[2], "BSD-3-Clause", 1446)
    preprocess = Preprocess(480, "squash")
    drift = {"bfloat16": 2.1e-3}
    context = 35
    tolerance = 0.01
    example_prompts = (*(prompt for prompt in Reward.example_prompts if prompt), "a green bench and a blue bowl")
    phrases: Callable[[str], Sequence[str]] = staticmethod(noun_phrases)

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        phrases: Callable[[str], Sequence[str]] = noun_phrases,
        tokenizer: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            weights: the published file, or a folder that holds it; by default it comes from Salesforce's address.
            phrases: the noun phrases of a prompt, in their order.
            tokenizer: hub repository or folder of BERT's uncased vocabulary; by default see `vocabulary`.
            device: where the network runs.
        """
        super().__init__(weights=weights or released(self.spec.name, ADDRESS, self.origin.megabytes), device=device)
        self.phrases = phrases
        self.vocabulary = tokenizer or vocabulary(weights)

    @cached_property
    def tokenizer(self) -> Any:
        """BERT's tokenizer, loaded when the first prompt comes."""
        return bert_tokenizer(self.spec.name, self.vocabulary)

    @classmethod
    def build(cls) -> nn.Module:
        return VqaNetwork(vision_tower(480, **BASE), text_tower(768), decoder(768))

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tower_keys(tensors)

    @classmethod
    def tiny(cls) -> BlipVqa:
        tokenizer = small_tokenizer((*cls.example_prompts, "yes no ?"))
        words = small_vocabulary(tokenizer)
        with seeded():
            towers = text_tower(48, **SMALL, **words), decoder(48, **SMALL, **words)
            network = VqaNetwork(vision_tower(32, **SMALL), *towers)
        return cls.of(randomised(network), preprocess=Preprocess(32, "squash"), tokenizer=tokenizer)

    def questions(self, prompt: str) -> list[str]:
        """What is asked about a picture for that prompt; empty where it names nothing."""
        return [question(phrase) for phrase in self.phrases(prompt) if phrase not in PLACES][:MOST]

    def refusal(self, prompt: str) -> str:
        return "" if self.questions(prompt) else "the prompt has no noun phrase, so there is nothing to ask"

    def score_ready(self, ready: Sequence[Ready], prompts: Sequence[str]) -> Scores:
        values = super().score_ready(ready, prompts).values
        return Scores(values, [self.refusal(prompt) for prompt in prompts])

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        asked = [self.questions(prompt) for prompt in prompts]
        counts = [len(questions) for questions in asked]
        owner = [row for row, count in enumerate(counts) for _ in range(count)]
        none = pixels.new_tensor(torch.nan)
        if not owner:
            return none.expand(len(prompts))
        yes = self.answers(pixels, owner, [text for questions in asked for text in questions]).split(counts)
        return torch.stack([part.prod() if len(part) else none for part in yes])

    def answers(self, pixels: Tensor, owner: Sequence[int], questions: Sequence[str]) -> Tensor:
        """[Q] probability of yes, of yes or no, for questions about the pictures of these numbers."""
        ids, mask = cut_tokens(self, self.tokenizer, questions)
        start, encode, yes, no = self.tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]", "yes", "no"])
        ids[:, 0] = encode
        network: Any = self.network
        pictures = network.see(pixels)
        about, lengths = torch.tensor(owner, device=self.device), mask.sum(1)
        likely = pixels.new_empty(len(ids))
        for length in lengths.unique():
            rows = (lengths == length).nonzero()[:, 0]
            logits = network(pictures[about[rows]], ids[rows, :length], start)
            likely[rows] = (logits[:, yes] - logits[:, no]).sigmoid()
        return likely

"""EvalMuse's FGA-BLIP2 (Han et al., 2024): BLIP-2 trained to say how much of a prompt is in a picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rwk.adapters.blip_towers import (
    SMALL,
    bert_tokenizer,
    cut_tokens,
    randomised,
    small_tokenizer,
    tower_keys,
    vocabulary,
)
from rwk.adapters.clip_towers import seeded
from rwk.adapters.noun_phrases import noun_phrases
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.published import Origin, PublishedReward
from rwk.rewards.base import Reward, RewardSpec, Scores
from rwk.rewards.precision import in_float32
from rwk.rewards.staged import Ready

WORDS = 50
"""Words of a prompt that are read."""
PLACES = 512
"""Tokens that the network has places for."""
_MARKS = re.compile(r"[.!\"()*#:;~]")
_QFORMER = (
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.embeddings\.", "embeddings."),
    (r"^Qformer\.bert\.encoder\.", "qformer.encoder."),
    (r"attention\.self\.", "attention.attention."),
    (r"^ln_vision\.", "vision.post_layernorm."),
)
"""Names of LAVIS's Q-Former, and what transformers calls them; first to last."""
_UNUSED = ("Qformer.cls.", "mask_proj.", "temp")
"""Of the published file: the head that writes text, the head that finds elements in training, and a temperature."""


def cleaned(prompt: str) -> str:
    """The prompt as LAVIS reads captions, of any length: small letters, a blank for each mark, single blanks.

    >>> cleaned('A sign: "Open"  (blue).')
    'a sign open blue'
    """
    return re.sub(r"\s{2,}", " ", _MARKS.sub(" ", prompt.lower())).rstrip("\n").strip(" ")


def caption(prompt: str) -> str:
    """The first 50 words of the prompt, cleaned."""
    return " ".join(cleaned(prompt).split(" ")[:WORDS])


class FgaNetwork(nn.Module):
    """BLIP-2's first stage: queries that look at a picture and at the text beside them, and a head for all states."""

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], queries: int) -> None:
        """
        Args:
            vision: shape of EVA's vision transformer in the terms of transformers.
            text: shape of the Q-Former, likewise.
            queries: how many there are.
        """
        from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel
        from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

        super().__init__()
        self.vision = Blip2VisionModel(Blip2VisionConfig(**vision))
        width: int = self.vision.config.hidden_size
        self.vision.post_layernorm = nn.LayerNorm(width)  # epsilon 1e-5, where the layers inside have 1e-6
        config = Blip2QFormerConfig(encoder_hidden_size=width, use_qformer_text_input=True, **text)
        self.embeddings = Blip2TextEmbeddings(config)
        self.qformer = Blip2QFormerModel(config)
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, config.hidden_size))
        self.itm_head = nn.Linear(config.hidden_size, 2)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of a match as each query [B, Q] and each token [B, L] sees it.

        Args:
            pixels: [B, 3, size, size].
            ids: [B, L] tokens.
            mask: [B, L], 0 where a text is filled up.
        """
        queries = self.query_tokens.expand(len(ids), -1, -1)
        count = queries.shape[1]
        states = self.qformer(
            query_embeds=self.embeddings(input_ids=ids, query_embeds=queries),
            query_length=count,
            attention_mask=torch.cat([mask.new_ones(len(ids), count), mask], 1),
            encoder_hidden_states=self.vision(pixels).last_hidden_state,
        ).last_hidden_state
        likely = in_float32(self.itm_head, states).softmax(2)[..., 1]  # [B, Q + L]
        return likely[:, :count], likely[:, count:]


class FgaBlip2(PublishedReward):
    """FGA-BLIP2's overall score: `4 p + 1`, p the mean over 32 queries of the probability that picture and text match.

    Each query has its own softmax, and these are averaged; `Blip2ForImageTextRetrieval` of transformers gives the
    softmax of averaged logits, which is another number. A picture is squashed to 364 by 364 pixels. A prompt is read in
    small letters, with blanks for the marks .!"()*#:;~, and after that up to 32 word pieces, as the authors' `forward`
    and their demonstration read it; `evalmuse.fga_blip2_whole` reads on. `score_pixels` stands from `score` as far as
    float32 bicubic stands from Pillow's on 8 bits.
    """

    spec = RewardSpec(
        "evalmuse.fga_blip2", "points, 1 to 5", 1, 5, "Apache-2.0", "arXiv:2412.18150", differentiable=True
    )
    origin = Origin("hanshuhao/FGA-BLIP2", "fga_blip2.pth", "Apache-2.0; BLIP-2: BSD-3-Clause", 4694)
    preprocess = Preprocess(364, fit="squash")
    drift = {"bfloat16": 6.5e-4}
    context = 32
    tolerance = 0.02

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        tokenizer: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            weights: the published file, or a folder that holds it; by default it comes from the hub.
            revision: branch, tag or commit of the hub's repository.
            tokenizer: hub repository or folder of BERT's uncased vocabulary; by default it is looked for beside
                `weights`, and then on the hub.
            device: where the network runs.
        """
        super().__init__(weights=weights, revision=revision, device=device)
        self.vocabulary = tokenizer or vocabulary(weights)

    @cached_property
    def tokenizer(self) -> Any:
        """BERT's tokenizer, loaded when the first prompt comes."""
        return bert_tokenizer(self.spec.name, self.vocabulary)

    @classmethod
    def build(cls) -> nn.Module:
        return FgaNetwork({"image_size": cls.preprocess.size}, {"vocab_size": 30523}, 32)

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {}
        for key, value in tower_keys(tensors).items():
            if key.startswith(_UNUSED):
                continue
            for pattern, name in _QFORMER:
                key = re.sub(pattern, name, key)
            named[key] = value
        for key in [key for key in named if key.endswith(".q_bias")]:
            query, value = named.pop(key), named.pop(key.replace("q_bias", "v_bias"))
            named[key.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
        return named

    @classmethod
    def tiny(cls) -> FgaBlip2:
        tokenizer = small_tokenizer(cls.example_prompts)
        with seeded():
            network = FgaNetwork({**SMALL, "image_size": 56}, {**SMALL, "vocab_size": len(tokenizer)}, 4)
        return cls.of(randomised(network), preprocess=Preprocess(56, fit="squash"), tokenizer=tokenizer)

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        queries, _ = self.network(pixels, *self.tokens(prompts))
        return queries.mean(1) * 4 + 1  # type: ignore[no-any-return]

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, L] of what is read of the prompts, filled up to the longest."""
        return cut_tokens(self, self.tokenizer, [caption(prompt) for prompt in prompts])


class FgaBlip2Whole(FgaBlip2):
    """`evalmuse.fga_blip2`, reading 50 words of a prompt whatever their pieces, as the authors' `eval.py` does.

    Where a prompt has at most 32 word pieces the two scores are one.
    """

    spec = RewardSpec(
        "evalmuse.fga_blip2_whole", "points, 1 to 5", 1, 5, "Apache-2.0", "arXiv:2412.18150", differentiable=True
    )
    context = WORDS

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        self.warn_of_cut(prompts, [len(cleaned(prompt).split(" ")) for prompt in prompts], unit="words")
        texts = [caption(prompt) for prompt in prompts]
        read = self.tokenizer(texts, truncation=True, max_length=PLACES, padding=True, return_tensors="pt")
        return read["input_ids"].to(self.device), read["attention_mask"].to(self.device)


class FgaElement(FgaBlip2Whole):
    """FGA-BLIP2's score of elements: the mean, over the prompt's elements, of the probability that each is there.

    An element is a stretch of the prompt; its probability is the mean over its word pieces of the probability of a
    match that the network gives at each. In EvalMuse a language model has split the prompts into elements. The default
    here is the rule of `noun_phrases`; `elements=` takes another. An element that is not in the text that is read is
    left out, where the authors' evaluation gives it 0; without any there is no score.
    """

    drift = {"bfloat16": 2.1e-3}
    spec = RewardSpec(
        "evalmuse.element", "mean probability of elements", 0, 1, "Apache-2.0", "arXiv:2412.18150", differentiable=True
    )
    example_prompts = (*(prompt for prompt in Reward.example_prompts if prompt), "a green bench and a blue bowl")
    tolerance = 0.005
    elements: Callable[[str], Sequence[str]] = staticmethod(noun_phrases)

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        elements: Callable[[str], Sequence[str]] = noun_phrases,
        revision: str | None = None,
        tokenizer: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            weights: the published file, or a folder that holds it; by default it comes from the hub.
            elements: the elements of a prompt, in its words.
            revision: branch, tag or commit of the hub's repository.
            tokenizer: hub repository or folder of BERT's uncased vocabulary; by default it is looked for beside
                `weights`, and then on the hub.
            device: where the network runs.
        """
        super().__init__(weights=weights, revision=revision, tokenizer=tokenizer, device=device)
        self.elements = elements

    def score_ready(self, ready: Sequence[Ready], prompts: Sequence[str]) -> Scores:
        values = super().score_ready(ready, prompts).values
        absent = "the prompt has no element in the text that is read"
        return Scores(values, [absent if missing else "" for missing in values.isnan().tolist()])

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        ids, mask = self.tokens(prompts)
        _, likely = self.network(pixels, ids, mask)
        scores = []
        for prompt, row, read in zip(prompts, likely, ids.tolist(), strict=True):
            found = [row[start:end].mean() for start, end in self.spans(prompt, read)]
            scores.append(torch.stack(found).mean() if found else row.new_tensor(torch.nan))
        return torch.stack(scores)

    def spans(self, prompt: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where each element first stands among the ids of the prompt, from and to, without those that do not."""
        found = []
        for element in self.elements(prompt):
            wanted = self.tokenizer(cleaned(element), add_special_tokens=False)["input_ids"]
            starts = range(len(ids) - len(wanted) + 1) if wanted else ()
            start = next((start for start in starts if ids[start : start + len(wanted)] == wanted), None)
            if start is not None:
                found.append((start, start + len(wanted)))
        return found

"""Janus-Pro that writes a text before it draws, after T2I-R1 (2025), arXiv:2505.00703; github.com/CaraJ7/T2I-R1.

An image takes two draws from one language model:

* It is asked to describe what the prompt asks for, and answers with its text head, without guidance, up to the end of
  the sentence or `text` tokens.
* Prompt and answer, "PROMPT. ANSWER", are then the prompt of an image, which is drawn as `janus.pro_1b` draws it.

Both probabilities are exact: the first is of the tokens of the answer, the second of the codes after its words. What
stands behind the end of an answer is padding, which is no choice: nothing reads it, its log-probability and its entropy
are 0, and no gradient comes of it. The roles of the chat are "User" and "Assistant", as the authors have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.janus import BOI, BOS, PAD, JanusPro, random_network
from rwk.adapters.transformers_generator import byte_tokenizer
from rwk.policy_opt.compiled import CompiledSteps
from rwk.policy_opt.generator import Generator, GeneratorSpec, Rollout, TokenStatistics
from rwk.policy_opt.sampling import Sampling

END = "<｜end▁of▁sentence｜>"
SYSTEM = "You are a helpful assistant that receives an image prompt and generate a visualization of the prompt."
QUESTION = """You are asked to generate an image based on this prompt: "{}"
Provide a brief, precise visualization of all elements in the prompt. Your description should:
1. Include every object mentioned in the prompt
2. Specify visual attributes (color, number, shape, texture) if specified in the prompt
3. Clarify relationships (e.g., spatial) between objects if specified in the prompt
4. Be concise (50 words or less)
5. Focus only on what's explicitly stated in the prompt
6. Do not elaborate beyond the attributes or relationships specified in the prompt
Do not miss objects. Output your visualization directly without explanation: """
"""Both are the authors'."""
TEXT = 128
"""Tokens of a text at most; the 50 words that are asked for are some 70."""
SHUT = -1e4
"""Log-probability of a token that cannot be drawn, which is finite."""
View = TypeVar("View", bound=JanusPro)


class JanusPlan(JanusPro):
    """Janus-Pro 1B with a text before each image; the tokens of a row are `spec.text` of text, and then the codes."""

    spec = replace(
        JanusPro.spec,
        name="janus.pro_1b_plan",
        tokens=TEXT + JanusPro.spec.tokens,
        codes=102400,
        text=TEXT,
        source="arXiv:2505.00703",
    )
    roles = ("User", "Assistant")

    def _take(self, network: Any, tokenizer: Any, device: str) -> Self:
        super()._take(network, tokenizer, device)
        (self.end,) = self.ids_of((END,))
        self.module.lm_head = network.lm_head.requires_grad_(True)
        self._drawing = replace(self.spec, text=0)
        text, words = self.spec.text, network.config.text_config.vocab_size
        self._writing = replace(self.spec, tokens=text, codes=words, text=0)
        self.spec = replace(self.spec, tokens=text + self.spec.tokens, codes=max(words, self.spec.codes))
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Up to six bytes before 16 codes; its end of a sentence is likely, so that texts are of many lengths."""
        tokenizer = byte_tokenizer(BOS, PAD, BOI, "<image_placeholder>", *JanusPro.roles, END)
        network, end = random_network(words=len(tokenizer), tied=False), tokenizer.convert_tokens_to_ids(END)
        with torch.no_grad():
            network.lm_head.weight[end] *= 4
        return cls.of(network, tokenizer, text=6)

    def sample(
        self, prompts: Sequence[str], *, per_prompt: int = 1, seed: int, sampling: Sampling | None = None
    ) -> Rollout:
        """See `Generator.sample`."""
        recipe = sampling or self.spec.sampling
        text = self._writer().sample(prompts, per_prompt=per_prompt, seed=seed, sampling=replace(recipe, guidance=1.0))
        # Rows of one prompt whose texts are alike are places of one group, and so draw different images.
        image = self._painter().sample(self._asked(text.prompts, text.tokens), seed=seed, sampling=recipe)
        return replace(
            text,
            tokens=torch.cat([text.tokens, image.tokens], 1),
            logprobs=torch.cat([text.logprobs, image.logprobs], 1),
            sampling=recipe,
        )

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        """See `Generator.statistics`."""
        tokens = rollout.tokens.to(self.device)
        words, codes = tokens[:, : self.spec.text], tokens[:, self.spec.text :]
        plain = replace(rollout.sampling, guidance=1.0)
        text = self._writer().statistics(replace(rollout, tokens=words, sampling=plain))
        outside = codes >= self._drawing.codes
        shown = replace(rollout, prompts=self._asked(rollout.prompts, words), tokens=codes.masked_fill(outside, 0))
        image = self._painter().statistics(shown)
        return TokenStatistics(
            torch.cat([text.logprobs, image.logprobs.masked_fill(outside, SHUT)], 1),
            torch.cat([text.entropy, image.entropy], 1),
        )

    def continue_from(self, prompts: Sequence[str], tokens: Tensor, **options: Any) -> NoReturn:
        """Raises ValueError: the image of a row depends on how many rows before it wrote the same text."""
        Generator.continue_from(self, prompts, tokens, **options)
        raise AssertionError

    def chosen(self, tokens: Tensor) -> Tensor:
        """See `Generator.chosen`; padding is none."""
        codes = torch.ones_like(tokens[:, self.spec.text :], dtype=torch.bool)
        return torch.cat([~_behind(tokens[:, : self.spec.text], self.end), codes], 1)

    def texts(self, tokens: Tensor) -> list[str]:
        """See `Generator.texts`; control tokens are left out, spelled out ones too."""
        texts = []
        for row in tokens[:, : self.spec.text].tolist():
            ids = row[: row.index(self.end)] if self.end in row else row
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            while found := [name for name in self.tokenizer.get_added_vocab() if name in text]:
                text = text.replace(found[0], "")
            texts.append(text)
        return texts

    def _levels(self, tokens: Tensor) -> Tensor:
        return super()._levels(tokens[:, self.spec.text :])

    def code_embeddings(self) -> Tensor:
        return Generator.code_embeddings(self)  # words have none

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        return Generator.decode_partial(self, tokens)  # judges of partial images count codes, not words

    def _asked(self, prompts: Sequence[str], words: Tensor) -> list[str]:
        """[B] prompts of images, of the prompts and the words [B, T] written for them."""
        return [f"{prompt}. {text}" for prompt, text in zip(prompts, self.texts(words), strict=True)]

    def _writer(self) -> _Writer:
        return self._seen_as(_Writer)

    def _painter(self) -> _Painter:
        return self._seen_as(_Painter)

    def _seen_as(self, kind: type[View]) -> View:
        """This generator as another kind, which holds nothing of its own: what either is given, the other has too."""
        view = kind.__new__(kind)
        view.__dict__ = vars(self)
        return view


class JanusPlan7B(JanusPlan):
    """Janus-Pro 7B, otherwise as `janus.pro_1b_plan`; T2I-R1's own weights are of this one."""

    spec = replace(JanusPlan.spec, name="janus.pro_7b_plan")
    hub = "deepseek-community/Janus-Pro-7B"


class _Painter(JanusPro):
    """`JanusPlan`, asked for the codes alone."""

    roles = JanusPlan.roles
    _drawing: GeneratorSpec

    @property
    def spec(self) -> GeneratorSpec:  # type: ignore[override]
        return self._drawing


class _Writer(JanusPro):
    """`JanusPlan`, asked for the text alone: its tokens are ids of words, and then padding."""

    roles: ClassVar[tuple[str, str]] = JanusPlan.roles
    end: int
    _writing: GeneratorSpec

    @property
    def spec(self) -> GeneratorSpec:  # type: ignore[override]
        return self._writing

    @cached_property
    def _compiled_words(self) -> CompiledSteps:
        return CompiledSteps()

    @property
    def _compiled(self) -> CompiledSteps:
        """Its own, since words take a room of another shape than codes."""
        return self._compiled_words

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the question and the begin of the answer; raises ValueError where `janus.pro_1b` does."""
        self.words(prompt)
        user, assistant = self.roles
        chat = f"{SYSTEM}\n\n{user}: {QUESTION.format(prompt).strip()}\n\n{assistant}:"
        return [self.bos, *self.tokenizer.encode(chat, add_special_tokens=False)]

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.embed_ids(codes)

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.causal_lm.lm_head(hidden)  # type: ignore[no-any-return]

    def sample(
        self, prompts: Sequence[str], *, per_prompt: int = 1, seed: int, sampling: Sampling | None = None
    ) -> Rollout:
        drawn = super().sample(prompts, per_prompt=per_prompt, seed=seed, sampling=sampling)
        behind = _behind(drawn.tokens, self.end)
        return replace(
            drawn,
            tokens=drawn.tokens.masked_fill(behind, self.pad),
            logprobs=drawn.logprobs.masked_fill(behind, 0.0),
        )

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        found, behind = super().statistics(rollout), _behind(rollout.tokens, self.end)
        strange = behind & (rollout.tokens != self.pad)
        logprobs = found.logprobs.masked_fill(behind, 0.0).masked_fill(strange, SHUT)
        return TokenStatistics(logprobs, found.entropy.masked_fill(behind, 0.0))


def _behind(words: Tensor, end: int) -> Tensor:
    """[B, T] whether a token stands behind an end."""
    ends = (words == end).long()
    return (ends.cumsum(1) - ends) > 0

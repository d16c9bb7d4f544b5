"""Vision-language models of transformers: images and a text in, log-probabilities of the next tokens out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.pretrained import load_whole, not_loaded
from rwk.adapters.published import hub_is_near
from rwk.adapters.vlm_pixels import of_pixels

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with a slot for each image, the chat template of `tiny_vlm`."""
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)


class Refused(ValueError):
    """What a processor says of an image that it cannot take."""


class Vlm:
    """A decoder-only model that reads one or more images and a text, with its processor.

    Rows of a batch are padded on the right, whatever side the processor would take. Attention is causal, so what
    follows a token has no say in it, and no model needs to be told positions that start late.
    """

    def __init__(self, network: Any, processor: Any, *, name: str, device: str = "cpu") -> None:
        """
        Args:
            network: what `AutoModelForImageTextToText` makes.
            processor: what `AutoProcessor` makes, with a chat template.
            name: the reward that asks, for messages.
            device: where the network runs.

        Raises:
            ValueError: where the model is no decoder, or the processor has no chat template.
        """
        kind = type(network).__name__
        if network.config.is_encoder_decoder or "logits_to_keep" not in inspect.signature(network.forward).parameters:
            raise ValueError(f"{name} needs a decoder-only model of transformers, got {kind}; name another.")
        if not processor.chat_template:
            raise ValueError(f"{name} needs a model with a chat template, got none for {kind}; name an instruct model.")
        self.name = name
        self.network = network.eval().requires_grad_(False).to(device)
        self.processor, self.tokenizer, self.device = processor, processor.tokenizer, torch.device(device)
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        slot = getattr(processor, "image_token", None)
        self.control = sorted({*self.tokenizer.all_special_tokens, *([slot] if isinstance(slot, str) else [])})

    @classmethod
    def load(
        cls, weights: str | Path, *, name: str, revision: str | None = None, device: str = "cpu", dtype: str = "auto"
    ) -> Self:
        """The model of a hub id or folder, whose images Pillow resizes, as in the code that models come with.

        Args:
            dtype: "auto" for that of the checkpoint, else "float32", "bfloat16" or "float16".

        Raises:
            RunFailed: where it cannot be had.
            ValueError: where a folder lacks files, or the checkpoint is of another network or kind.
        """
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

        where = str(Path(weights).expanduser()) if Path(weights).expanduser().is_dir() else str(weights)
        options: dict[str, Any] = {"revision": revision, "local_files_only": not hub_is_near()}
        try:
            processor = AutoProcessor.from_pretrained(where, **options)
            processor.image_processor = AutoImageProcessor.from_pretrained(where, backend="pil", **options)
        except (OSError, ValueError) as error:
            raise not_loaded(name, "vision-language model", where, revision, error) from error
        try:
            network = load_whole(name, AutoModelForImageTextToText, where, faults=["missing"], dtype=dtype, **options)
        except OSError as error:
            raise not_loaded(name, "vision-language model", where, revision, error) from error
        return cls(network, processor, name=name, device=device)

    def conversation(self, turns: Sequence[str], *, images: int = 1, before: str = "") -> str:
        """Text of a chat that begins with the images: turns of user, assistant, user and so on; the next is to come.

        The first turn says `before` in front of the images, or behind them in a template that puts images first.
        """
        messages: list[dict[str, Any]] = [
            {"role": "assistant" if i % 2 else "user", "content": [{"type": "text", "text": turn}]}
            for i, turn in enumerate(turns)
        ]
        messages[0]["content"][:0] = [{"type": "text", "text": before}] * bool(before) + [{"type": "image"}] * images
        # Where a model may think first, it is told to answer at once: the template then closes its thoughts itself.
        options = {"enable_thinking": False} if "enable_thinking" in str(self.processor.chat_template) else {}
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options))

    def control_in(self, prompt: str) -> str:
        """The first control token of the model that a prompt spells out, or ""."""
        return next((token for token in self.control if token in prompt), "")

    def continuation(self, text: str, answer: str) -> list[int]:
        """Ids that the answer adds to a text.

        Raises:
            ValueError: where the answer melts with the end of the text, so that no ids are its own.
        """
        both, alone = (self.tokenizer(t, **self._options(t)).input_ids for t in (text + answer, text))
        if both[: len(alone)] != alone or len(both) == len(alone):
            raise ValueError(
                f"an answer must be tokens of its own, got {answer!r} after {text[-20:]!r}; begin it with a space."
            )
        return list(both[len(alone) :])

    @cached_property
    def _of_pixels(self) -> Any:
        return of_pixels(self.processor, self.name)

    def batch(self, images: Sequence[Image.Image] | Tensor, texts: Sequence[str]) -> Any:
        """What the network takes, a row for each text.

        Args:
            images: as many for each text, those of a text after each other; or pixels [N, 3, H, W] in 0..1, to which
                the gradient leads back.

        Raises:
            Refused: where an image cannot be taken.
        """
        each = len(images) // len(texts)
        try:
            made = (self._of_pixels if isinstance(images, Tensor) else self.processor)(
                text=list(texts),
                images=[list(images[start : start + each]) for start in range(0, len(images), each)],
                padding=True,
                return_tensors="pt",
                **self._options(texts[0]),
            )
        except ValueError as error:
            raise Refused(f"is refused by the model's processor: {error}") from error
        return made.to(self.device, self.network.dtype)

    def refusal(self, image: Image.Image) -> str:
        """Why the processor cannot take an image, or ""; any thread may ask, which a tokenizer does not allow."""
        try:
            self.processor.image_processor(images=[image], return_tensors="pt")
        except ValueError as error:
            return f"is refused by the model's processor: {error}"
        return ""

    def log_probs(self, inputs: Any, *, skip: int, count: int) -> Tensor:
        """[B, count, V] float32 log-probabilities of tokens, from one forward pass.

        Each row's text ends in `skip` tokens that are given; the first of the distributions is that of the token before
        which they stand, the next that of the one after it, and so on.
        """
        ends = inputs["attention_mask"].sum(1) - skip - 1  # [B]
        positions = ends[:, None] + torch.arange(count, device=self.device)  # [B, count]
        kept, where = positions.unique(return_inverse=True)  # the head is as wide as the vocabulary: few positions
        logits = self.network(**inputs, logits_to_keep=kept, use_cache=False).logits  # [B, K, V]
        rows = torch.arange(len(ends), device=self.device)[:, None]
        return logits[rows, where].float().log_softmax(2)  # type: ignore[no-any-return]

    def chances(
        self,
        images: Sequence[Image.Image] | Tensor,
        texts: Sequence[str],
        answers: Sequence[str],
        ids: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
    ) -> Tensor:
        """[B, A] float32 log-probability of each of some answers to texts.

        An answer of several tokens has the product of their probabilities, each given the ones before. Answers share a
        forward pass where one begins as the other does, up to its own last token.

        Args:
            images: as in `batch`.
            ids: what each answer adds to a text, by `continuation`.
            temperature: what logits are divided by before the softmax.
        """
        columns: dict[int, Tensor] = {}
        for longest in sorted(range(len(ids)), key=lambda answer: -len(ids[answer])):
            if longest in columns:
                continue
            own = list(ids[longest])
            given = len(own) if len(own) > 1 else 0
            inputs = self.batch(images, [text + answers[longest] for text in texts] if given else texts)
            log_probs = (self.log_probs(inputs, skip=given, count=len(own)) / temperature).log_softmax(2)
            for answer, other in enumerate(ids):
                if answer not in columns and list(other[:-1]) == own[: len(other) - 1]:
                    columns[answer] = log_probs[:, range(len(other)), list(other)].sum(1)
        return torch.stack([columns[answer] for answer in range(len(ids))], 1)

    def answer(self, images: Sequence[Image.Image], text: str, *, tokens: int) -> str:
        """The likeliest answer, word by word, to a text about images, of so many tokens.

        Of how the checkpoint would have words drawn its repetition penalty alone is kept, as it is by `generate` when
        it is not to sample.

        Raises:
            Refused: where the processor cannot take an image.
        """
        from transformers import GenerationConfig

        inputs, ends = self.batch(images, [text]), self.network.generation_config
        plain = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=ends.repetition_penalty,
            eos_token_id=ends.eos_token_id or self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.no_grad():
            written = self.network.generate(**inputs, generation_config=plain)
        said: str = self.tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return said.strip()

    def states(self, inputs: Any) -> Tensor:
        """[B, D] last state of the last token of each text, with gradient."""
        made = self.network.base_model(**inputs, use_cache=False).last_hidden_state  # [B, L, D]
        return made[torch.arange(len(made), device=self.device), inputs["attention_mask"].sum(1) - 1]  # type: ignore[no-any-return]

    def _options(self, text: str) -> dict[str, Any]:
        """Chat templates that write the first token themselves must not get a second one."""
        first = self.tokenizer.bos_token
        return {"add_special_tokens": False} if first and text.startswith(first) else {}


def tiny_vlm(name: str, words: Sequence[str] = ("yes", "no", "Yes", "No"), added: Sequence[str] = ()) -> Vlm:
    """A random Qwen2-VL of two layers with `tiny_processor`; built without a download."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    processor = tiny_processor(words, added)
    ids = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            **{"vocab_size": len(processor.tokenizer), "hidden_size": 32, "intermediate_size": 48},
            **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
            **{"bos_token_id": None, "eos_token_id": ids("<|im_end|>")},
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Qwen2VLForConditionalGeneration(config)
        for weight in network.parameters():  # the usual init is so small that every image would score the same
            torch.nn.init.normal_(weight, std=1.5 * weight.shape[-1] ** -0.5)
    return Vlm(network, processor, name=name)


def tiny_writer(name: str, question: str, verdicts: Sequence[str]) -> Vlm:
    """A random model, as `tiny_vlm`, whose every word is one of some verdicts."""
    vlm = tiny_vlm(name, re.findall(" ?[a-zA-Z]+", question), added=verdicts)
    with torch.no_grad():
        for key, weight in vlm.network.named_parameters():
            if key == "lm_head.weight":
                weight[: -len(verdicts)] = 0  # no other word is ever the most probable
            elif key.endswith(("embed_tokens.weight", "bias")):
                weight *= 1e-3  # so that what the words and biases add does not drown the image
    return vlm


def tiny_processor(words: Sequence[str], added: Sequence[str] = ()) -> Any:
    """A processor of Qwen2-VL whose tokenizer reads bytes, the first words and what is added as one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil, Qwen2VLProcessor, Qwen2VLVideoProcessor

    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for word in words:
        symbols = word.replace(" ", "Ġ")  # how byte-level BPE writes a space
        for end in range(2, len(symbols) + 1):
            if symbols[:end] not in vocabulary:
                vocabulary[symbols[:end]] = len(vocabulary)
                merges.append((symbols[: end - 1], symbols[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(list(added))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL),
    )
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84})
    return Qwen2VLProcessor(images, fast, Qwen2VLVideoProcessor(), chat_template=CHAT)

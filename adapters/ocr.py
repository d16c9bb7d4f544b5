"""Is the text that the prompt wants in the picture? GOT-OCR 2.0 (Wei et al., 2024) reads, and letters are compared."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image

from rwk.adapters.clip_towers import seeded
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.pretrained import load_tokenizer, load_whole
from rwk.adapters.published import Origin, find
from rwk.adapters.vlm import tiny_processor
from rwk.rewards.base import Reward, RewardSpec, Scores

_DOUBLE = re.compile(r'["“”]([^"“”]*)["“”]')
_SINGLE = re.compile(r"(?<!\w)['‘](.+?)['’](?!\w)", re.DOTALL)
END = "<|im_end|>"
BEFORE = (
    "<|im_start|>system\nYou should follow the instructions carefully and explain your answers in detail."
    f"{END}<|im_start|>user\n<img>"
)
AFTER = f"</img>\n OCR: {END}<|im_start|>assistant\n"
"""What the network reads before and after the picture, as it was trained."""


def quoted(prompt: str) -> str:
    """The text between the first pair of double quotes, straight or curly, else of single ones; "" without any.

    An apostrophe inside a word is no quote.

    >>> quoted('A sign that says "Open", by a mug that says “Tea”')
    'Open'
    >>> quoted("the baker's window with 'Don't stop' on it")
    "Don't stop"
    """
    found = _DOUBLE.search(prompt) or _SINGLE.search(prompt)
    return found.group(1) if found else ""


def letters(text: str) -> str:
    """The text in small letters, without blanks and line breaks."""
    return "".join(text.lower().split())


def levenshtein(first: str, second: str) -> int:
    """The least number of letters to insert, delete or replace that makes one text the other.

    >>> levenshtein("kitten", "sitting")
    3
    """
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (letter != other))
    return row[-1]


def agreement(read: str, wanted: str) -> float:
    """1 where the wanted letters stand in those that were read, else 1 - min(levenshtein, length) / length.

    Length is that of `wanted`, which is not empty.

    >>> agreement("welcome", "come"), agreement("cone", "come"), agreement("", "come")
    (1.0, 0.75, 0.0)
    """
    wrong = 0 if wanted in read else min(levenshtein(read, wanted), len(wanted))
    return 1 - wrong / len(wanted)


class GotOcr(Reward):
    """How much of the text that the prompt has in quotes GOT-OCR 2.0 reads in the picture; the note has what it read.

    1 where the wanted text is part of what was read, else `1 - min(d, n) / n`, where d is the Levenshtein distance of
    the two and n the length of the wanted text, in small letters without blanks. The formula is Flow-GRPO's (Liu et
    al., 2025), which reads with PaddleOCR; with this reader it is UniRL's. A prompt without a text in quotes gets no
    score: Flow-GRPO fails there, and UniRL wants the whole prompt to be read.

    The picture is squashed to 1024 by 1024 pixels. The network is not told of the prompt. It writes the most probable
    word by word, one picture at a time, so that no neighbour tips a choice between two near-equal words.
    """

    spec = RewardSpec("ocr.got", "share of the wanted letters", 0, 1, "Apache-2.0", "arXiv:2505.05470")
    origin = Origin("stepfun-ai/GOT-OCR-2.0-hf", "model.safetensors", "Apache-2.0", 1121)
    preprocess = Preprocess(1024, fit="squash")
    casts = True
    precision_note = (
        "published in bfloat16; a score is read out of words: from float32 the log-probability of a first letter moves "
        "by up to 0.019, of 0.54 between letters, and none of 4 pictures was read otherwise"
    )
    example_prompts = (
        'a sign that says "cab"',
        "the words “Abba cab” on a wall",
        "a mug with 'baa baa' on it",
        'a red cube, "A" on it',
    )

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        longest: int = 4096,
    ) -> None:
        """
        Args:
            weights: a folder as `GotOcr2ForConditionalGeneration.save_pretrained` writes it, with the tokenizer; by
                default all comes from the hub.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.
            dtype: of the network; "auto" is that of the checkpoint.
            longest: tokens that the network may write about a picture.

        Raises:
            ValueError: where the checkpoint does not fill the network.
            RunFailed: where a file cannot be had.
        """
        from transformers import GotOcr2ForConditionalGeneration

        name, hub = self.spec.name, self.origin.hub
        by_hand = f"copy the folder of {hub} here and name it as {{name}}@PATH"
        path = find(name, self.origin, weights, revision, by_hand=by_hand)
        config = replace(self.origin, file="config.json", megabytes=1)
        find(name, config, weights and path.parent, revision, by_hand=by_hand)  # comes to lie beside the weights
        tokenizer = load_tokenizer(name, hub, weights, revision)
        network = load_whole(name, GotOcr2ForConditionalGeneration, str(path.parent), faults=["missing"], dtype=dtype)
        self._take(network, tokenizer, device, longest)

    def _take(self, network: Any, tokenizer: Any, device: str, longest: int) -> Self:
        super().__init__(device=device)
        self.network = network.eval().requires_grad_(False).to(device)
        self.tokenizer, self.longest = tokenizer, longest
        seen = (self.preprocess.size // 64) ** 2  # a token for 64 by 64 pixels
        text = f"{BEFORE}{'<imgpad>' * seen}{AFTER}"
        self.ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(device)  # [1, L]
        return self

    @classmethod
    def of(cls, network: Any, tokenizer: Any, *, longest: int, preprocess: Preprocess) -> Self:
        """The reward around a network that is loaded already."""
        reward = cls.__new__(cls)
        reward.preprocess = preprocess
        return reward._take(network, tokenizer, "cpu", longest)

    @classmethod
    def tiny(cls) -> Self:
        """A random network that writes six letters of a, b and c."""
        tokenizer = tiny_processor((), added=("<img>", "</img>", "<imgpad>")).tokenizer
        return cls.of(_small_network(tokenizer), tokenizer, longest=6, preprocess=Preprocess(128, fit="squash"))

    def read(self, image: Image.Image) -> str:
        """What the network reads in a picture, at most `longest` tokens."""
        from transformers import GenerationConfig

        pixels = self.preprocess.exact([image]).to(self.device, self.network.dtype)
        rules = GenerationConfig(
            max_new_tokens=self.longest,
            do_sample=False,
            eos_token_id=self.tokenizer.convert_tokens_to_ids(END),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        written = self.network.generate(
            input_ids=self.ids,
            attention_mask=torch.ones_like(self.ids),
            pixel_values=pixels,
            generation_config=rules,
        )
        text: str = self.tokenizer.decode(written[0, self.ids.shape[1] :], skip_special_tokens=True)
        return text.strip()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        values, notes = torch.full([len(images)], math.nan), []
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            wanted = letters(quoted(prompt))
            if not wanted:
                notes.append("the prompt has no text in quotes, so there is nothing to look for")
                continue
            read = self.read(image)
            values[i] = agreement(letters(read), wanted)
            notes.append(f"read {read!r}")
        return Scores(values, notes)


def _small_network(tokenizer: Any) -> Any:
    """GOT-OCR 2.0 of two layers a side for pictures of 128 pixels; its most probable word is always a, b or c."""
    from transformers import GotOcr2Config, GotOcr2ForConditionalGeneration

    config = GotOcr2Config(
        vision_config={
            **{"hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"output_channels": 16, "image_size": 128, "window_size": 4, "global_attn_indexes": [1]},
        },
        text_config={
            **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False},
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"),
        tie_word_embeddings=False,
    )
    with seeded():
        network: Any = GotOcr2ForConditionalGeneration(config)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=1.5 * weight[0].numel() ** -0.5)
    said = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    with torch.no_grad():
        rows = network.lm_head.weight[said]
        network.lm_head.weight.zero_()
        network.lm_head.weight[said] = rows - rows.mean(0)  # the largest of three that sum to 0 is above the rest
    return network

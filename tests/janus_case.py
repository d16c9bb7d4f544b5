"""Weights of Janus under the authors' names, a tokenizer, prompts and tokens on which the authors' code was run."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

PROMPTS = ("a photo of a red cat", "", "  Two naïve birds\nabove a café \n", "漢字 🦓")
LAYERS, WIDTH, HEADS, CODES, SIDE, GUIDANCE = 2, 32, 2, 32, 4, 5.0
LATENT = 32
"""Channels of the latents of the VQ, which has two resolutions; all else is that of the published one."""
BOS, PAD, BOI = "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"
SPECIAL = [BOS, PAD, BOI, "<|User|>", "<|Assistant|>"]
WORDS = 256 + len(SPECIAL)
TOKENS = np.random.RandomState(3).randint(0, CODES, (len(PROMPTS), SIDE**2))
"""[prompts, L] codes whose log-probabilities are compared, and that are decoded."""


def weight(name: str, *shape: int) -> np.ndarray:
    """A parameter by the authors' name, drawn from what the name is."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape).astype(np.float32)
    if len(shape) == 1:
        return (1 + 0.2 * drawn) if name.endswith("weight") else 0.2 * drawn
    return drawn * np.float32(np.prod(shape[1:]) ** -0.5)


def tokenizer() -> Any:
    """A tokenizer that reads bytes and puts the begin of the text first, as the published one does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({symbol: place for place, symbol in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, made.token_to_id(BOS))])
    return made

"""Sizes, weights by the authors' names, ids, prompts and tokens of Emu3, on which the authors' code was run."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np

WEIGHTS = runpy.run_path(str(Path(__file__).with_name("llamagen_case.py")))["weights"]
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2}
VQ = {"codebook_size": 32, "num_res_blocks": 1, "attn_resolutions": []}
CHANNELS, MULTIPLES = 32, (1, 2)
CODES, SIDE, GUIDANCE = 32, 3, 3.0
CONTROL = ("<|extra_203|>", "<|endoftext|>", "<image>", "<|image start|>", "<|image token|>", "<|extra_200|>")
CLOSING = ("<|extra_201|>", "<|image end|>", "<|extra_204|>")
"""Tokens that come after an image; like the others they lie behind 256 bytes, and the codes behind them."""
VOCABULARY = (*CONTROL, *CLOSING, *(f"<|visual token {code:06d}|>" for code in range(CODES)))
WORDS = 256 + len(VOCABULARY)
PROMPTS = ("a photo of a red cat", "", "two naïve birds above a café")
QUALITY = " masterpiece, film grained, best quality."
FAULTS = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
    "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""Both as in the authors' image_generation.py, which is no module that could be asked."""
TOKENS = np.random.RandomState(3).randint(0, CODES, (len(PROMPTS), SIDE**2))
"""[prompts, L] codes whose log-probabilities are compared, and that are decoded."""


def ids(text: str) -> list[int]:
    """Of a text in which control tokens stand."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: place for place, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(VOCABULARY))
    found: list[int] = tokenizer.encode(text).ids
    return found

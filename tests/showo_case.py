"""Weights of Show-o in the published layout, only smaller, with prompts and recipes on which its own code was run."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np

LLAMAGEN: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("llamagen_case.py")))
BLIP: dict[str, Any] = LLAMAGEN["BLIP"]
weights = LLAMAGEN["weights"]
PHI = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
BITS, SIDE, DRAWS = 5, 4, 6
VQ_WIDTH, MULTIPLES, BLOCKS, DECODER_MULTIPLES, DECODER_BLOCKS = 32, (1, 2), (2, 1), (1, 2), (1, 2)
PROMPTS = ("a cat", "", "<|endoftext|>begins so", "zebra " * 30)
"""Of some letters, of none, with its begin, and of more than the 129 places."""
GUIDANCE = (0.0, 1.75)
"""As the authors' `t2i_generate` takes it."""
TEMPERATURE = 1.0


def tokenizer() -> Any:
    """Bytes, and the begin and end of a text, as Phi's tokenizer has them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({symbol: place for place, symbol in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    ends = {name: "<|endoftext|>" for name in ("bos_token", "eos_token")}
    return PreTrainedTokenizerFast(tokenizer_object=made, **ends)


def pixels() -> np.ndarray:
    """Pictures [2, 3, 8, 8] in -1..1."""
    found: np.ndarray = np.tanh(BLIP["drawn"]("show-o pictures", 2, 3, 8, 8))
    return found

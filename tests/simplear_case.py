"""Sizes, weights, prompts and tokens of SimpleAR and of Cosmos' decoder, on which the authors' code was run."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np

WEIGHTS = runpy.run_path(str(Path(__file__).with_name("llamagen_case.py")))["weights"]
QWEN = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
QWEN |= {"num_key_value_heads": 2}
COSMOS = {"channels": 8, "channels_mult": [2, 4, 4], "z_channels": 4, "levels": [4, 4, 2], "embedding_dim": 3}
CODES, SIDE, GUIDANCE = 32, 3, 6.0
CONTROL = ("<|endoftext|>", "<|t2i|>", "<|i2t|>", "<|soi|>", "<|vtokens|>", "<|t2v|>", "<|v2t|>", "<|sov|>")
WORDS = 256 + len(CONTROL)
PROMPTS = ("a photo of a red cat", "", "two naïve birds above a café")
LIKENESS = "A highly realistic image of "
FAULTS = (
    "An image of aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, "
    "bad eyes, bad limbs, distortion"
)
"""Both as in the authors' generate.py, which is no module that could be asked."""
TOKENS = np.random.RandomState(3).randint(0, CODES, (len(PROMPTS), SIDE**2))
"""[prompts, L] codes whose log-probabilities are compared, and that are decoded."""


def ids(text: str) -> list[int]:
    """Bytes of a text, behind which the control tokens lie."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [alphabet.index(letter) for piece, _ in pieces for letter in piece]


def prefix(text: str) -> list[int]:
    """Ids of a text in its template."""
    return [256 + CONTROL.index("<|t2i|>"), *ids(text), 256 + CONTROL.index("<|soi|>")]


def qwen() -> dict[str, np.ndarray]:
    """The tensors of model.safetensors, but for the table out, which is the table in."""
    width, inner, keys = QWEN["hidden_size"], QWEN["intermediate_size"], 16
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS + CODES, width)}
    shapes["model.norm.weight"] = (width,)
    for layer in range(QWEN["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        for part, out in (("q", width), ("k", keys), ("v", keys)):
            shapes[f"{name}.self_attn.{part}_proj.weight"] = (out, width)
            shapes[f"{name}.self_attn.{part}_proj.bias"] = (out,)
        shapes[f"{name}.self_attn.o_proj.weight"] = (width, width)
        shapes |= {f"{name}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{name}.{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    return WEIGHTS(shapes, "simplear")  # type: ignore[no-any-return]

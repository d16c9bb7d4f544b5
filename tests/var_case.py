"""Weights of VAR in the published layout, only smaller, with classes and recipes on which its own code was run."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np

LLAMAGEN: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("llamagen_case.py")))
SIDES = (1, 2, 3, 4)
GPT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "codes": 48, "latent": 8}
VQ = {"codes": 48, "latent": 8, "width": 32}
LABELS = (207, 0, 999)
RECIPES: tuple[dict[str, float], ...] = (
    {"cfg": 0.0, "top_k": 0, "top_p": 0.0},
    {"cfg": 4.0, "top_k": 20, "top_p": 0.0},
    {"cfg": 1.5, "top_k": 30, "top_p": 0.8},
)
"""As the authors' `autoregressive_infer_cfg` takes them."""
LEFT_OUT = ("encoder.", "quant_conv.")
COMPUTED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")
"""How keys begin of what encodes, and end of what is no weight."""
PUBLISHED = {
    "var.d16": (16, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    "var.d20": (20, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    "var.d24": (24, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    "var.d30": (30, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    "var.d36": (36, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)),
}
"""Depth and sides of the published networks; the last alone shares its modulation."""


def weights(shapes: dict[str, tuple[int, ...]], seed: str) -> dict[str, np.ndarray]:
    """Weights under these keys, by which attention is sharp, and here and there as sharp as it may be."""
    found: dict[str, np.ndarray] = LLAMAGEN["weights"](shapes, seed)
    return {key: value + 4 if key.endswith("scale_mul_1H11") else value for key, value in found.items()}

"""Weights of FGA-BLIP2 in LAVIS's layout, pictures, prompts and elements on which its code was run; numpy and Pillow.

The numbers come from the same streams as those of tests/blip_case.py.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BLIP: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("blip_case.py")))
VOCABULARY: list[str] = BLIP["VOCABULARY"]
SIZE, PATCH, QUERIES = 364, 14, 32
WIDTH, HIDDEN, DEPTH, HEADS = BLIP["WIDTH"], BLIP["HIDDEN"], BLIP["DEPTH"], BLIP["HEADS"]
PROMPTS = (*BLIP["PROMPTS"], "  Two\n\n cats~~and a TABLE.\n", "zzyzx " * 12)
"""Of BLIP's, with one of lines and blanks, and one of 12 words that are more than 32 pieces."""
ELEMENTS = (
    ("a photo of a red cat on a wooden table", ("a red cat", "Wooden Table", "a")),
    ('Two CAFÉs; the "blue" cat!', ("two cafés", "the  blue cat", "cat")),
    ("the red cat and the blue cat on a wooden table " * 4, ("on a wooden table", "table the red cat")),
)
"""Prompts, and stretches of them; the pieces of one stand after the first 32."""


def published() -> dict[str, np.ndarray]:
    """What LAVIS saves below `model`."""
    linear, norm, drawn = BLIP["linear"], BLIP["norm"], BLIP["drawn"]
    words = len(VOCABULARY) + 1  # and [DEC]
    found = {
        "query_tokens": drawn("queries", 1, QUERIES, HIDDEN),
        "temp": np.array(0.07, np.float32),
        "visual_encoder.cls_token": drawn("fga class", 1, 1, WIDTH),
        "visual_encoder.pos_embed": 0.5 * drawn("fga places", 1, (SIZE // PATCH) ** 2 + 1, WIDTH),
        "visual_encoder.patch_embed.proj.weight": 0.08 * drawn("fga patch", WIDTH, 3, PATCH, PATCH),
        "visual_encoder.patch_embed.proj.bias": 0.2 * drawn("fga patch bias", WIDTH),
        "Qformer.bert.embeddings.position_ids": np.arange(512)[None],
        "Qformer.bert.embeddings.word_embeddings.weight": drawn("fga words", words, HIDDEN),
        "Qformer.bert.embeddings.position_embeddings.weight": drawn("fga positions", 512, HIDDEN),
    }
    for i in range(DEPTH):
        block, layer = f"visual_encoder.blocks.{i}.", f"Qformer.bert.encoder.layer.{i}."
        found |= norm(f"{block}norm1", WIDTH) | norm(f"{block}norm2", WIDTH)
        found |= linear(f"{block}attn.qkv", 3 * WIDTH, WIDTH, bias=False) | linear(f"{block}attn.proj", WIDTH, WIDTH)
        found |= {f"{block}attn.{name}": 0.5 * drawn(f"{block}{name}", WIDTH) for name in ("q_bias", "v_bias")}
        found |= linear(f"{block}mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{block}mlp.fc2", WIDTH, 4 * WIDTH)
        for kind, into in (("attention", HIDDEN), *([("crossattention", WIDTH)] if i % 2 == 0 else [])):
            found |= linear(f"{layer}{kind}.self.query", HIDDEN, HIDDEN)
            found |= linear(f"{layer}{kind}.self.key", HIDDEN, into)
            found |= linear(f"{layer}{kind}.self.value", HIDDEN, into)
            found |= linear(f"{layer}{kind}.output.dense", HIDDEN, HIDDEN)
            found |= norm(f"{layer}{kind}.output.LayerNorm", HIDDEN)
        for side in ("", "_query"):
            found |= linear(f"{layer}intermediate{side}.dense", 4 * HIDDEN, HIDDEN)
            found |= linear(f"{layer}output{side}.dense", HIDDEN, 4 * HIDDEN)
            found |= norm(f"{layer}output{side}.LayerNorm", HIDDEN)
    found |= norm("ln_vision", WIDTH) | norm("Qformer.bert.embeddings.LayerNorm", HIDDEN)
    return found | linear("itm_head", 2, HIDDEN) | _unused(found["Qformer.bert.embeddings.word_embeddings.weight"])


def _unused(words: np.ndarray) -> dict[str, np.ndarray]:
    """What no score uses: the head that writes text with the table of words, projections, and what finds elements."""
    linear, last = BLIP["linear"], "Qformer.cls.predictions."
    found = linear(f"{last}transform.dense", HIDDEN, HIDDEN) | BLIP["norm"](f"{last}transform.LayerNorm", HIDDEN)
    found |= linear("vision_proj", 256, HIDDEN) | linear("text_proj", 256, HIDDEN)
    bias = 0.2 * BLIP["drawn"](f"{last}bias", len(words))
    found |= {f"{last}decoder.weight": words, f"{last}decoder.bias": bias, f"{last}bias": bias}
    widths = (HIDDEN, 256, 128, 64, 16, 1)
    for i in range(5):
        found |= linear(f"mask_proj.layers.{2 * i}", widths[i + 1], widths[i])
    return found


def pictures() -> list[Image.Image]:
    """One to shrink, of a palette; one to enlarge; one to shrink across and enlarge down; one grey.

    None becomes wider and less tall, which Pillow 11 and 13 resize unlike.
    """
    sizes = [(640, 480), (97, 131), (501, 250), (413, 390)]
    modes = ["P", "RGB", "RGB", "L"]
    return [BLIP["picture"](f"{w}x{h}", w, h, mode) for (w, h), mode in zip(sizes, modes, strict=True)]

"""Weights of GIT in the published layout, and pictures and phrases on which T2I-R1's code was run; numpy and Pillow."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BLIP: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("blip_case.py")))
PATCH, SIZE, WORDS = 42, 420, 30522
SHAPE = {"num_hidden_layers": BLIP["DEPTH"], "num_attention_heads": BLIP["HEADS"]}
VISION = {"image_size": SIZE, "patch_size": PATCH, "hidden_size": 48, "intermediate_size": 192, **SHAPE}
TEXT = {"hidden_size": 64, "intermediate_size": 256, **SHAPE}
"""Configurations in the terms of transformers; all else is that of the published file."""
PHRASES = ("a red cat", "The CAFÉ's (blue) table!", "the " + "very " * 60 + "red cat", "cat [SEP] table", "漢字 🦓", "")


def published() -> dict[str, np.ndarray]:
    """pytorch_model.bin as transformers of its time wrote it, position numbers among the weights."""
    drawn, linear, norm = BLIP["drawn"], BLIP["linear"], BLIP["norm"]
    width, hidden, places = VISION["hidden_size"], TEXT["hidden_size"], (SIZE // PATCH) ** 2 + 1
    tower, inside = "git.image_encoder.vision_model.", "git.image_encoder.vision_model.embeddings."
    found = {
        f"{inside}class_embedding": drawn("git class", width),
        f"{inside}patch_embedding.weight": 0.03 * drawn("git patch", width, 3, PATCH, PATCH),
        f"{inside}position_embedding.weight": 0.5 * drawn("git places", places, width),
        f"{inside}position_ids": np.arange(places)[None],
        "git.embeddings.position_ids": np.arange(1024)[None],
        "git.embeddings.word_embeddings.weight": drawn("git words", WORDS, hidden),
        "git.embeddings.position_embeddings.weight": drawn("git positions", 1024, hidden),
    }
    found |= BLIP["clip_tower"](tower, "pre_layrnorm", "post_layernorm", 1.5) | norm("git.embeddings.LayerNorm", hidden)
    found |= linear("git.visual_projection.visual_projection.0", hidden, width)
    found |= norm("git.visual_projection.visual_projection.1", hidden)
    for i in range(BLIP["DEPTH"]):
        layer = f"git.encoder.layer.{i}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            found |= linear(f"{layer}attention.{name}", hidden, hidden)
        found |= linear(f"{layer}intermediate.dense", 4 * hidden, hidden)
        found |= linear(f"{layer}output.dense", hidden, 4 * hidden)
        found |= norm(f"{layer}attention.output.LayerNorm", hidden) | norm(f"{layer}output.LayerNorm", hidden)
    return found | linear("output", WORDS, hidden)


def pictures() -> list[Image.Image]:
    """Those of BLIP, and one that is shrunk to an odd margin."""
    return [*BLIP["pictures"](), BLIP["picture"]("900x701", 900, 701)]

"""DINOv2's weights in the layout of the hub and in that of the authors' own file, and the pictures of its tests."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
from PIL import Image

CASE = runpy.run_path(str(Path(__file__).with_name("blip_case.py")))
WIDTH, DEPTH, HEADS = 32, 2, 2
pictures = CASE["pictures"]


def references() -> list[Image.Image]:
    return [CASE["picture"]("first", 301, 400), CASE["picture"]("second", 290, 257, "L")]


def published() -> dict[str, np.ndarray]:
    """Random numbers under the keys of facebook/dinov2-base, which here are written out."""
    width, drawn, linear, norm = WIDTH, CASE["drawn"], CASE["linear"], CASE["norm"]
    found = {
        "embeddings.cls_token": 0.2 * drawn("dino cls", 1, 1, width),
        "embeddings.mask_token": np.zeros((1, width), np.float32),
        "embeddings.position_embeddings": 0.2 * drawn("dino places", 1, 37 * 37 + 1, width),
        "embeddings.patch_embeddings.projection.weight": 0.15 * drawn("dino patch", width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": 0.2 * drawn("dino bias", width),
    }
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}."
        for name in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
            found |= linear(layer + name, width, width)
        found |= linear(f"{layer}attention.output.dense", width, width) | linear(f"{layer}mlp.fc1", 4 * width, width)
        found |= linear(f"{layer}mlp.fc2", width, 4 * width)
        found |= norm(f"{layer}norm1", width) | norm(f"{layer}norm2", width)
        found |= {f"{layer}layer_scale{n}.lambda1": 1 + 0.1 * drawn(f"{layer}{n}", width) for n in (1, 2)}
    return found | norm("layernorm", width)


def authors() -> dict[str, np.ndarray]:
    """The same numbers under the keys of dinov2_vitb14_pretrain.pth."""
    held = published()
    found = {key: held[f"embeddings.{key}"] for key in ("cls_token", "mask_token")}
    found["pos_embed"] = held["embeddings.position_embeddings"]
    for end in ("weight", "bias"):
        found[f"patch_embed.proj.{end}"] = held[f"embeddings.patch_embeddings.projection.{end}"]
        found[f"norm.{end}"] = held[f"layernorm.{end}"]
        for i in range(DEPTH):
            here, there = f"blocks.{i}.", f"encoder.layer.{i}."
            parts = [held[f"{there}attention.attention.{part}.{end}"] for part in ("query", "key", "value")]
            found[f"{here}attn.qkv.{end}"] = np.concatenate(parts)
            found[f"{here}attn.proj.{end}"] = held[f"{there}attention.output.dense.{end}"]
            found |= {f"{here}{part}.{end}": held[f"{there}{part}.{end}"] for part in ("norm1", "norm2")}
            found |= {f"{here}mlp.{part}.{end}": held[f"{there}mlp.{part}.{end}"] for part in ("fc1", "fc2")}
            found |= {f"{here}ls{n}.gamma": held[f"{there}layer_scale{n}.lambda1"] for n in (1, 2)}
    return found

"""CLIP's weights in the layout of transformers, under the keys that open_clip and OpenAI give them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # sic
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
}
"""What keys start with in transformers, and in open_clip."""
INSIDE = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
}
"""What they hold inside a layer."""
TURNED = ("visual.proj", "text_projection")
"""Maps that the two hold transposed."""
_PART = re.compile(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)")


def under_open_clip_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers' `CLIPModel` as open_clip holds them; a file that is no such is left as it is.

    Queries, keys and values are one tensor in open_clip. The position numbers that transformers 4 wrote are left out.
    """
    if "vision_model.embeddings.class_embedding" not in tensors:
        return dict(tensors)
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.endswith(".position_ids"):
            continue
        part = _PART.fullmatch(key)
        if part:
            parts.setdefault(f"{_named(part[1])}.attn.in_proj_{part[3]}", {})[part[2]] = value
        else:
            name = _named(key)
            found[name] = value.T.contiguous() if name in TURNED else value
    whole = {name: [three[letter] for letter in "qkv" if letter in three] for name, three in parts.items()}
    return found | {name: torch.cat(values) for name, values in whole.items()}


def _named(key: str) -> str:
    """A key of transformers in open_clip's words, attention's three maps apart."""
    for old, new in NAMES.items():
        if key.startswith(old):
            key = new + key.removeprefix(old)
            break
    for old, new in INSIDE.items():
        key = key.replace(old, new)
    return key


def refuse_other_gelu(name: str, path: Path, quick: bool) -> None:
    """Raises ValueError where the config.json beside a file of transformers names another GELU than the reward runs.

    The weights do not tell it, and with the wrong one every score is off.

    Args:
        name: the reward that asks.
        path: the file of weights.
        quick: whether the reward runs the approximate one.
    """
    try:
        config: Any = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if not isinstance(config, Mapping) or config.get("model_type") != "clip":
        return
    mine = "quick_gelu" if quick else "gelu"
    for part in ("vision_config", "text_config"):
        theirs = (config.get(part) or {}).get("hidden_act", "quick_gelu")
        if theirs != mine:
            raise ValueError(
                f"{name} runs its network with {mine}, got a config.json in {path.parent} whose {part} has {theirs}; "
                f"name it as transformers:{path.parent}, which runs what the folder says."
            )

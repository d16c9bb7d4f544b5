"""Chameleon's checkpoints as Meta and those after it publish them, under the keys of the networks here."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from rwk.adapters.llamagen_vq import Vq, VqConfig
from rwk.adapters.published import fill

PARTS = {
    "tok_embeddings": "model.embed_tokens",
    "output": "lm_head",
    "norm": "model.norm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_normalization": "self_attn.q_norm",
    "attention.k_normalization": "self_attn.k_norm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""What transformers calls the parts of the transformer, or of one of its layers."""


def transformer_of(name: str, tensors: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """transformers' config of an unsharded transformer, and its tensors under transformers' keys.

    In a head the authors turn each number against the one next to it, transformers against the one half a head away:
    queries, keys and their norms change places. Their norm is one for all heads, that of transformers one for each.

    Raises:
        ValueError: where a tensor is missing that tells a size.
    """
    from transformers import ChameleonConfig

    try:
        words, width = tensors["tok_embeddings.weight"].shape
        size = len(tensors["layers.0.attention.q_normalization.weight"])
        heads = {kind: len(tensors[f"layers.0.attention.w{kind}.weight"]) // size for kind in "qk"}
        inner = len(tensors["layers.0.feed_forward.w1.weight"])
    except KeyError as error:
        raise ValueError(f"{name} cannot take this checkpoint, which lacks {error}; give the published one.") from error
    config = ChameleonConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("layers.")),
        num_attention_heads=heads["q"],
        num_key_value_heads=heads["k"],
        vocabulary_map={},
        vq_config={"base_channels": 32, "channel_multiplier": (1,), "num_res_blocks": 1},  # which is not kept
    )
    found = {}
    for key, value in tensors.items():
        if key == "rope.freqs":  # a table that is computed
            continue
        layer = re.match(r"layers\.\d+\.|", key)[0]  # type: ignore[index]  # it matches at least nothing
        part, _, leaf = key[len(layer) :].rpartition(".")
        kind = re.fullmatch(r"attention\.(?:w([qk])|([qk])_normalization)", part)
        if kind and kind[1]:
            value = value.unflatten(0, (heads[kind[1]], -1, 2)).transpose(1, 2).flatten(0, 2)
        elif kind:
            value = value.unflatten(0, (-1, 2)).T.reshape(1, -1).repeat(heads[kind[2]], 1)
        found[f"{layer and 'model.'}{layer}{PARTS.get(part, part)}.{leaf}"] = value
    return config, found


def vq_of(name: str, tensors: dict[str, Tensor]) -> Vq:
    """The VQ of these tensors; what else the file holds served its training.

    Raises:
        ValueError: where they are not those of a VQ of this kind.
    """
    try:
        width, latent = len(tensors["encoder.conv_in.weight"]), len(tensors["encoder.conv_out.weight"])
        codes, code_width = tensors["quantize.embedding.weight"].shape
        stages = 1 + max(int(key.split(".")[2]) for key in tensors if key.startswith("encoder.down."))
        widths = [len(tensors[f"encoder.down.{stage}.block.0.conv1.weight"]) for stage in range(stages)]
    except KeyError as error:
        raise ValueError(f"{name} cannot take this VQ, which lacks {error}; give the published one.") from error
    vq = Vq(VqConfig(codes, code_width, width, latent, tuple(w // width for w in widths), attends=False, unit=False))
    found = {}
    for key, value in tensors.items():
        if not key.startswith(("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")):
            continue
        key = re.sub(r"\.(down|up)\.(\d+)\.(block\b)?", lambda at: _stage(at[1], int(at[2]), stages, at[3]), key)
        key = re.sub(r"\.mid\.(block_1|attn_1|block_2)\.", lambda at: f".mid.{MIDDLE.index(at[1])}.", key)
        found[key] = value
    fill(name, vq, found)
    return vq


MIDDLE = ("block_1", "attn_1", "block_2")


def _stage(way: str, stage: int, stages: int, block: str | None) -> str:
    """The part of a key that names a stage, which the authors count from the finest, here in the order of use."""
    return f".conv_blocks.{stage if way == 'down' else stages - 1 - stage}.{'res' if block else ''}"

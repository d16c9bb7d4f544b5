"""Weights of Anole in the published layout, only smaller, prompts and tokens on which the authors' code was run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np

WEIGHTS = runpy.run_path(str(Path(__file__).with_name("llamagen_case.py")))["weights"]
WIDTH, HEADS, LAYERS, INNER, CODES, SIDE = 32, 4, 2, 88, 32, 4
VQ = {"ch": 32, "ch_mult": (1, 2), "z_channels": 16}
BOS, PAD, EOT, BOI = "<s>", "<pad>", "<reserved08706>", "<racm3:break>"
CONTROL = (BOS, PAD, "</s>", "<unk>")
"""They come first in the vocabulary, then the codes, then what else is no text."""
PROMPTS = ("a photo of a red cat", "", "two naïve birds above a café")
GUIDANCE, TEMPERATURE = 3.0, 0.7
TOKENS = np.random.RandomState(3).randint(0, CODES, (len(PROMPTS), SIDE**2))
"""[prompts, L] codes whose log-probabilities are compared, and that are decoded."""


def vocabulary() -> dict[str, int]:
    """Bytes behind control tokens and codes, whose names are those of Chameleon."""
    from tokenizers import pre_tokenizers

    digits = (str(code).translate(str.maketrans("0123456789", "ABCDEFGHIJ")) for code in range(CODES))
    names = [*CONTROL, *(f"IMGIMG{letters}Z" for letters in digits), BOI, "<eoss>", EOT]
    return {name: place for place, name in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])}


def tokenizer() -> str:
    """The text of tokenizer/text_tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocabulary(), []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([*CONTROL, BOI, "<eoss>", EOT])
    return json.dumps(json.loads(made.to_str()))


def transformer() -> dict[str, np.ndarray]:
    """The tensors of models/7b/consolidated.pth."""
    words, size = len(vocabulary()), WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (words, WIDTH), "norm.weight": (WIDTH,)}
    shapes["output.weight"] = (words, WIDTH)
    for layer in range(LAYERS):
        shapes |= {f"layers.{layer}.attention.{name}.weight": (WIDTH, WIDTH) for name in ("wq", "wk", "wv", "wo")}
        for kind in "qk":
            shapes |= {f"layers.{layer}.attention.{kind}_normalization.{leaf}": (size,) for leaf in ("weight", "bias")}
        shapes |= {f"layers.{layer}.feed_forward.{name}.weight": (INNER, WIDTH) for name in ("w1", "w3")}
        shapes[f"layers.{layer}.feed_forward.w2.weight"] = (WIDTH, INNER)
        shapes |= {f"layers.{layer}.{name}.weight": (WIDTH,) for name in ("attention_norm", "ffn_norm")}
    return WEIGHTS(shapes, "anole")  # type: ignore[no-any-return]


def vq() -> dict[str, np.ndarray]:
    """The tensors of tokenizer/vqgan.ckpt."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def block(name: str, before: int, width: int) -> None:
        layer(f"{name}.norm1", before)
        layer(f"{name}.norm2", width)
        layer(f"{name}.conv1", width, before, 3, 3)
        layer(f"{name}.conv2", width, width, 3, 3)
        if before != width:
            layer(f"{name}.nin_shortcut", width, before, 1, 1)

    def coder(name: str, coarsest: int) -> None:
        for place in (1, 2):
            block(f"{name}.mid.block_{place}", coarsest, coarsest)
        layer(f"{name}.mid.attn_1.norm", coarsest)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.mid.attn_1.{part}", coarsest, coarsest, 1, 1)

    fine, coarse, latent = 32, 64, VQ["z_channels"]
    coder("encoder", coarse)
    coder("decoder", coarse)
    for stage, (before, width) in enumerate([(fine, fine), (fine, coarse)]):
        for place in range(2):
            block(f"encoder.down.{stage}.block.{place}", before if place == 0 else width, width)
    for stage, (before, width) in enumerate([(coarse, fine), (coarse, coarse)]):
        for place in range(3):
            block(f"decoder.up.{stage}.block.{place}", before if place == 0 else width, width)
    layer("encoder.down.0.downsample.conv", fine, fine, 3, 3)
    layer("decoder.up.1.upsample.conv", coarse, coarse, 3, 3)
    layer("encoder.conv_in", fine, 3, 3, 3)
    layer("encoder.norm_out", coarse)
    layer("encoder.conv_out", latent, coarse, 3, 3)
    layer("decoder.conv_in", coarse, latent, 3, 3)
    layer("decoder.norm_out", fine)
    layer("decoder.conv_out", 3, fine, 3, 3)
    layer("quant_conv", latent, latent, 1, 1)
    layer("post_quant_conv", latent, latent, 1, 1)
    shapes["quantize.embedding.weight"] = (CODES, latent)
    return WEIGHTS(shapes, "chameleon vq")  # type: ignore[no-any-return]

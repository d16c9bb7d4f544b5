"""Weights in the official layouts, pictures and prompts on which official code was run; numpy and Pillow alone.

Everything is drawn from numpy's RandomState, whose stream is fixed for all versions, seeded by what it is for.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from PIL import Image

EMBED, DEPTH, VISION, TEXT, HEAD = 48, 2, 128, 64, 64
"""Width of the embedding, layers of each tower, width of each, and of an attention head, which OpenAI fixes at 64."""
SIZE, PATCH, CONTEXT, WORDS = 224, 32, 77, 49408
PROMPTS = (
    "a photo of a red cat on a wooden table",
    "",
    "Two CAFÉs & “the” blue cat’s table &amp; a ﬁre!",
    " ".join(["the red cat and the blue cat on a wooden table,"] * 20),  # of some 220 tokens
    'zebra crossing;  "quoted" (x2) 漢字 🦓',
    "three small yellow birds on the branch of a tree",
)


def drawn(name: str, *shape: int) -> np.ndarray:
    """Standard normal float32 numbers that depend on the name and shape alone."""
    return np.random.RandomState(zlib.crc32(name.encode())).randn(*shape).astype(np.float32)


def linear(name: str, out: int, into: int, gain: float = 1.5) -> dict[str, np.ndarray]:
    weight = gain / np.float32(math.sqrt(into)) * drawn(f"{name}.weight", out, into)
    return {f"{name}.weight": weight, f"{name}.bias": 0.2 * drawn(f"{name}.bias", out)}


def norm(name: str, width: int) -> dict[str, np.ndarray]:
    return {
        f"{name}.weight": 1 + 0.2 * drawn(f"{name}.weight", width),
        f"{name}.bias": 0.2 * drawn(f"{name}.bias", width),
    }


def layers(prefix: str, width: int) -> dict[str, np.ndarray]:
    found = {}
    for i in range(DEPTH):
        block = f"{prefix}transformer.resblocks.{i}."
        attention = linear(f"{block}attn.in_proj_", 3 * width, width)
        found |= {key.replace("_.", "_"): value for key, value in attention.items()}
        found |= linear(f"{block}attn.out_proj", width, width)
        found |= norm(f"{block}ln_1", width) | norm(f"{block}ln_2", width)
        found |= linear(f"{block}mlp.c_fc", 4 * width, width) | linear(f"{block}mlp.c_proj", width, 4 * width)
    return found


def towers(embed: int = EMBED) -> dict[str, np.ndarray]:
    """Both towers as OpenAI's, open_clip's and HPSv2's files hold them; half precision holds every number exactly."""
    found = {
        "logit_scale": np.array(math.log(100), dtype=np.float32),
        "positional_embedding": 0.5 * drawn("positional_embedding", CONTEXT, TEXT),
        "text_projection": drawn("text_projection", TEXT, embed) / np.float32(math.sqrt(TEXT)),
        "token_embedding.weight": drawn("token_embedding.weight", WORDS, TEXT),
        "visual.class_embedding": drawn("visual.class_embedding", VISION),
        "visual.positional_embedding": 0.5 * drawn("visual.positional_embedding", (SIZE // PATCH) ** 2 + 1, VISION),
        "visual.conv1.weight": 0.05 * drawn("visual.conv1.weight", VISION, 3, PATCH, PATCH),
        "visual.proj": drawn("visual.proj", VISION, embed) / np.float32(math.sqrt(VISION)),
    }
    found |= norm("visual.ln_pre", VISION) | norm("visual.ln_post", VISION) | norm("ln_final", TEXT)
    found |= layers("visual.", VISION) | layers("", TEXT)
    return {key: value.astype(np.float16).astype(np.float32) for key, value in found.items()}


_RENAMED = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("text_projection", "text_projection.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
)
LAION_WIDTHS, LAION_NAMES = (768, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7)
"""Of LAION's second predictor, which its authors' script fixes."""
_INSIDE = ((".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."), (".c_fc.", ".fc1."), (".c_proj.", ".fc2."))


def hugging_towers() -> dict[str, np.ndarray]:
    """The same towers as files of transformers 4 hold them, position numbers among the weights."""
    found = {
        "text_model.embeddings.position_ids": np.arange(CONTEXT)[None],
        "vision_model.embeddings.position_ids": np.arange((SIZE // PATCH) ** 2 + 1)[None],
    }
    for key, value in towers().items():
        name = key
        for old, new in _RENAMED:
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        for old, new in _INSIDE:
            name = name.replace(old, new)
        name = name.replace(".attn.", ".self_attn.")
        if "in_proj_" in name:
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                found[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            found[name] = value.T.copy() if name.endswith("_projection.weight") else value
    return found


def head(widths: tuple[int, ...], names: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Linear maps in a row, as LAION's second predictor holds them: `layers` and their numbers."""
    found = {}
    for name, into, out in zip(names, widths, widths[1:], strict=False):
        found |= linear(f"layers.{name}", out, into, gain=2.0)
    return found


def picture(name: str, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Coarse shapes under fine noise: a shift of one pixel and a lack of antialias both change it."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    coarse = Image.fromarray(rng.randint(0, 256, (7, 6, 3)).astype(np.uint8)).resize((width, height), Image.NEAREST)
    noise = rng.randint(-60, 61, (height, width, 3))
    pixels = np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pictures() -> list[Image.Image]:
    """Margins that are odd in width and in height, one that is even, one to enlarge, one exact, one grey."""
    sizes = [(501, 380), (333, 517), (640, 480), (97, 131), (224, 224), (413, 301)]
    return [picture(f"{w}x{h}", w, h, "L" if w == 413 else "RGB") for w, h in sizes]

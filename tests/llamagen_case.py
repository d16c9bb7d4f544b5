"""Weights of LlamaGen in the published layout, only smaller, with prompts and recipes on which its own code was run."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np

BLIP: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("blip_case.py")))
GPT = {"layers": 2, "heads": 2, "width": 32, "grid": 4, "codes": 48, "caption_tokens": 120}
CAPTION_WIDTH, INNER, CLASSES = 24, 256, 1000
VQ = {"codes": 48, "code_width": 8, "width": 32, "latent": 16, "multiples": (1, 2, 2)}
T5 = {"d_model": CAPTION_WIDTH, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 2}
LABELS = (207, 0, 999, 360)
PROMPTS = ("A cat", "", "A <b>blue</b> cat &amp; the dog.jpg sat-on_a-mat", "zebra " * 30)
"""Of 3 tokens, of one, of some 20, and of more than the 120 that are read."""
RECIPES: tuple[dict[str, float], ...] = (
    {"guidance": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    {"guidance": 4.0, "temperature": 1.0, "top_k": 20, "top_p": 1.0},
    {"guidance": 7.5, "temperature": 0.7, "top_k": 10, "top_p": 0.9},
)
PUBLISHED = {
    "GPT-B": ("c2i", 16),
    "GPT-L": ("c2i", 24),
    "GPT-XL": ("c2i", 24),
    "GPT-XXL": ("c2i", 24),
    "GPT-3B": ("c2i", 24),
    "GPT-XL t2i": ("t2i", 32),
}
"""Published networks by the name that the authors' code has for them: kind and grid."""
TEXTS = (
    "A Fox & a <b>red</b> DOG, 2x4 #12 — “hello”…",
    "Photo.jpg of http://example.com/page?x=1 and www.site.org @someone free shipping",
    "this-is_my-cute_cat-picture 6640vc231 jc6640vc abc1234 #12345678 1234567890",
    "Das ist schön &lt;i&gt;sehr&lt;/i&gt; ™ ½ 漢字 ㇀ page 12 click here for more",
    '"quoted text"',
    "'it’s a ``fine'' day...' . and (brackets) [x] {y} a|b c\\d e/f *g*",
    "<person> stands 10:30 192.168.0.1 at 3x3 grid,next.to:me ; x : y",
    "a%20b+c &nbsp; &unknown; &#65; &#x42; <script>var x</script> <!-- no --> done <br/>",
    "caf\u00c3\u00a9 na\u00efve \u201ca\u2013b\u201d 100×200 worldwide free shipping download free png images",
    "a small blue square above a large green triangle",
    ".hidden",
    "trailing-",
    "",
    "a\\nb <3 c > d < e && f",
)


def drawn(name: str, *shape: int, gain: float = 1.5) -> np.ndarray:
    """Weights whose size fits the numbers that go in."""
    found: np.ndarray = gain / np.float32(math.sqrt(math.prod(shape[1:]))) * BLIP["drawn"](name, *shape)
    return found


def weights(shapes: dict[str, tuple[int, ...]], seed: str) -> dict[str, np.ndarray]:
    """Weights under these keys: those of norms and biases near 1 and 0."""
    found = {}
    for key, shape in shapes.items():
        name = f"{seed} {key}"
        small = 0.2 * BLIP["drawn"](name, *shape)
        if len(shape) > 1:
            found[key] = drawn(name, *shape)
        else:
            found[key] = small if key.endswith("bias") else 1 + small
    return found


def gpt(kind: str) -> dict[str, np.ndarray]:
    """The transformer of a class ("c2i") or of a text ("t2i")."""
    width, codes = GPT["width"], GPT["codes"]
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (codes, width), "norm.weight": (width,)}
    shapes["output.weight"] = (codes, width)
    for i in range(GPT["layers"]):
        shapes |= {f"layers.{i}.{norm}.weight": (width,) for norm in ("attention_norm", "ffn_norm")}
        shapes[f"layers.{i}.attention.wqkv.weight"] = (3 * width, width)
        shapes[f"layers.{i}.attention.wo.weight"] = (width, width)
        shapes |= {f"layers.{i}.feed_forward.{name}.weight": (INNER, width) for name in ("w1", "w3")}
        shapes[f"layers.{i}.feed_forward.w2.weight"] = (width, INNER)
    if kind == "c2i":
        return weights(shapes | {"cls_embedding.embedding_table.weight": (CLASSES + 1, width)}, kind)
    shapes["cls_embedding.uncond_embedding"] = (GPT["caption_tokens"], CAPTION_WIDTH)
    shapes["cls_embedding.cap_proj.fc1.weight"] = (width, CAPTION_WIDTH)
    shapes["cls_embedding.cap_proj.fc2.weight"] = (width, width)
    return weights(shapes, kind)


def pixels() -> np.ndarray:
    """Pictures [2, 3, 16, 16] in -1..1."""
    found: np.ndarray = np.tanh(BLIP["drawn"]("llamagen pictures", 2, 3, 16, 16))
    return found


def pieces() -> list[tuple[str, float]]:
    """Words of T5's tokenizer: letters, signs and no more."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("▁cat", -3.0), ("▁the", -3.0)]
    return words + [(chr(code), -4.0) for code in range(33, 127)]

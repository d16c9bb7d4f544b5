"""Weights in the official layouts, pictures and prompts on which official code was run; numpy and Pillow alone.

Everything is drawn from numpy's RandomState, whose stream is fixed for all versions, seeded by what it is for.
"""

from __future__ import annotations

import zlib

import numpy as np
from PIL import Image

WIDTH, DEPTH, HEADS, HIDDEN = 48, 2, 4, 64
"""Of the small vision tower, and the width of the small text tower; the other numbers are for both."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["a", "the", "red", "blue", "cat", "on", "and", "wooden", "table", "photo", "of", "two", "cafe", "yes", "no"]
MARKS = list("0123456789.,:;!?'\"()*#~-&")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *(f"##{x}" for x in LETTERS), *MARKS]
VOCABULARY = list(dict.fromkeys(VOCABULARY))
"""A vocabulary in BERT's layout; [DEC] and [ENC] come after it."""
PROMPTS = (
    "a photo of a red cat on a wooden table",
    "",
    "Two CAFÉs & “the” blue cat’s table!",
    " ".join(["the red cat and the blue cat on a wooden table,"] * 30),  # of some 340 tokens
    'zebra [SEP] crossing; "quoted" (x2)',
)
PHRASES = ("a red cat", "The CAFÉ's (blue) table!", "the " + "very " * 30 + "red cat", "table", "two cats")
"""What pictures are asked about; one is too long, one has marks that are left out."""


def drawn(name: str, *shape: int) -> np.ndarray:
    """Standard normal float32 numbers that depend on the name and shape alone."""
    return np.random.RandomState(zlib.crc32(name.encode())).randn(*shape).astype(np.float32)


def linear(name: str, out: int, into: int, gain: float = 1.5, bias: bool = True) -> dict[str, np.ndarray]:
    weight = {f"{name}.weight": gain / np.float32(np.sqrt(into)) * drawn(f"{name}.weight", out, into)}
    return weight | ({f"{name}.bias": 0.2 * drawn(f"{name}.bias", out)} if bias else {})


def norm(name: str, width: int) -> dict[str, np.ndarray]:
    return {
        f"{name}.weight": 1 + 0.2 * drawn(f"{name}.weight", width),
        f"{name}.bias": 0.2 * drawn(f"{name}.bias", width),
    }


def vision(prefix: str, size: int) -> dict[str, np.ndarray]:
    """timm's vision transformer as BLIP's files hold it, for pictures of that size."""
    found = {
        f"{prefix}cls_token": drawn(f"{prefix}cls_token", 1, 1, WIDTH),
        f"{prefix}pos_embed": 0.5 * drawn(f"{prefix}pos_embed", 1, (size // 16) ** 2 + 1, WIDTH),
        f"{prefix}patch_embed.proj.weight": 0.08 * drawn(f"{prefix}patch", WIDTH, 3, 16, 16),
        f"{prefix}patch_embed.proj.bias": 0.2 * drawn(f"{prefix}patch.bias", WIDTH),
    }
    for i in range(DEPTH):
        block = f"{prefix}blocks.{i}."
        found |= norm(f"{block}norm1", WIDTH) | norm(f"{block}norm2", WIDTH)
        found |= linear(f"{block}attn.qkv", 3 * WIDTH, WIDTH) | linear(f"{block}attn.proj", WIDTH, WIDTH)
        found |= linear(f"{block}mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{block}mlp.fc2", WIDTH, 4 * WIDTH)
    return found | norm(f"{prefix}norm", WIDTH)


def bert(prefix: str, into: int, words: int = len(VOCABULARY) + 2) -> dict[str, np.ndarray]:
    """BERT with cross-attention to states of width `into`, as BLIP's files hold it."""
    found = {
        f"{prefix}embeddings.position_ids": np.arange(512)[None],
        f"{prefix}embeddings.word_embeddings.weight": drawn(f"{prefix}words", words, HIDDEN),
        f"{prefix}embeddings.position_embeddings.weight": drawn(f"{prefix}positions", 512, HIDDEN),
    }
    found |= norm(f"{prefix}embeddings.LayerNorm", HIDDEN)
    for i in range(DEPTH):
        layer = f"{prefix}encoder.layer.{i}."
        for kind, width in (("attention", HIDDEN), ("crossattention", into)):
            found |= linear(f"{layer}{kind}.self.query", HIDDEN, HIDDEN)
            found |= linear(f"{layer}{kind}.self.key", HIDDEN, width)
            found |= linear(f"{layer}{kind}.self.value", HIDDEN, width)
            found |= linear(f"{layer}{kind}.output.dense", HIDDEN, HIDDEN)
            found |= norm(f"{layer}{kind}.output.LayerNorm", HIDDEN)
        found |= linear(f"{layer}intermediate.dense", 4 * HIDDEN, HIDDEN)
        found |= linear(f"{layer}output.dense", HIDDEN, 4 * HIDDEN)
        found |= norm(f"{layer}output.LayerNorm", HIDDEN)
    return found


def scorer(names: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A file of ImageReward or CycleReward, whose head has linear maps of these numbers."""
    found = vision("blip.visual_encoder.", 224) | bert("blip.text_encoder.", WIDTH)
    found |= linear("blip.vision_proj", 256, WIDTH) | linear("blip.text_proj", 256, HIDDEN)
    widths = (HIDDEN, 1024, 128, 64, 16, 1)
    for i, name in enumerate(names):
        found |= linear(f"mlp.layers.{name}", widths[i + 1], widths[i], gain=1.5)
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


def pictures_to_squash() -> list[Image.Image]:
    """The pictures without the one that 480x480 makes wider and less tall, which Pillow 11 and 13 resize unlike."""
    return [image for image in pictures() if not image.width < 480 < image.height]


def full_vocabulary() -> list[str]:
    """30522 pieces with "no" and "yes" where BERT's vocabulary has them, as BLIP-VQA's code looks them up by number."""
    pieces = [piece for piece in VOCABULARY if piece not in ("yes", "no")]
    pieces += [f"[unused{i}]" for i in range(30522 - len(pieces))]
    pieces[2053], pieces[2748] = "no", "yes"
    return pieces


def vqa() -> dict[str, np.ndarray]:
    """A file of BLIP for questions, for pictures of 480 pixels; the decoder's last map is its table of words."""
    found = vision("visual_encoder.", 480) | bert("text_encoder.", WIDTH, 30524)
    found |= bert("text_decoder.bert.", HIDDEN, 30524)
    last = "text_decoder.cls.predictions."
    found |= linear(f"{last}transform.dense", HIDDEN, HIDDEN) | norm(f"{last}transform.LayerNorm", HIDDEN)
    bias = 0.2 * drawn(f"{last}bias", 30524)
    table = found["text_decoder.bert.embeddings.word_embeddings.weight"]
    table *= 0.2  # else the answers are all but certain
    return found | {f"{last}bias": bias, f"{last}decoder.bias": bias, f"{last}decoder.weight": table}


def clip_tower(prefix: str, first: str, last: str, gain: float) -> dict[str, np.ndarray]:
    """One tower of CLIP as transformers names it, without its embeddings; `first` and `last` name its outer norms."""
    found = norm(f"{prefix}{first}", WIDTH) if first else {}
    for i in range(DEPTH):
        layer = f"{prefix}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= linear(f"{layer}self_attn.{name}", WIDTH, WIDTH, gain)
        found |= linear(f"{layer}mlp.fc1", 4 * WIDTH, WIDTH, gain) | linear(f"{layer}mlp.fc2", WIDTH, 4 * WIDTH, gain)
        found |= norm(f"{layer}layer_norm1", WIDTH) | norm(f"{layer}layer_norm2", WIDTH)
    return found | norm(f"{prefix}{last}", WIDTH)


def mps() -> dict[str, np.ndarray]:
    """The state of an MPS module, with CLIP's own vocabulary; some tokens of a prompt are far from the condition."""
    found = {
        "model.logit_scale": np.array(np.log(14), np.float32),
        "model.text_model.embeddings.token_embedding.weight": drawn("mps tokens", 49408, WIDTH),
        "model.text_model.embeddings.position_embedding.weight": 0.1 * drawn("mps text places", 77, WIDTH),
        "model.vision_model.embeddings.class_embedding": drawn("mps class", WIDTH),
        "model.vision_model.embeddings.patch_embedding.weight": 0.08 * drawn("mps patch", WIDTH, 3, 14, 14),
        "model.vision_model.embeddings.position_embedding.weight": 0.5 * drawn("mps places", 257, WIDTH),
    }
    found |= clip_tower("model.text_model.", "", "final_layer_norm", 0.5)
    found |= clip_tower("model.vision_model.", "pre_layrnorm", "post_layernorm", 1.5)
    for name in ("model.visual_projection", "model.text_projection"):
        found |= linear(name, HIDDEN, WIDTH, bias=False)
    for i in range(DEPTH):
        first, second = (f"cross_model.layers.{i}.{j}.fn." for j in range(2))
        found |= norm(f"{first}norm", HIDDEN) | norm(f"{second}norm", HIDDEN)
        found |= linear(f"{first}to_q", 64 * HEADS, HIDDEN, bias=False) | linear(
            f"{first}to_kv", 128, HIDDEN, bias=False
        )
        found |= linear(f"{first}to_out", HIDDEN, 64 * HEADS, bias=False)
        found |= linear(f"{first}ff.0", 8 * HIDDEN, HIDDEN, bias=False)
        found |= linear(f"{first}ff.2", HIDDEN, 4 * HIDDEN, bias=False)
        found[f"{second}rotary_emb.inv_freq"] = (1.1 * 10000.0 ** (-np.arange(0, 64, 2) / 64)).astype(np.float32)
        found |= linear(f"{second}fused_attn_ff_proj", 64 * HEADS + 128 + 8 * HIDDEN, HIDDEN, bias=False)
        found |= linear(f"{second}attn_out", HIDDEN, 64 * HEADS, bias=False)
        found |= linear(f"{second}ff_out.1", HIDDEN, 4 * HIDDEN, bias=False)
    return found

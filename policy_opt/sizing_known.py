"""Shapes of published generators, known without their weights; biases and norms are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rwk.policy_opt.sizing_shape import JANUS_PRO, Shape, llama_shape


def var_shape(depth: int, sides: Sequence[int], *, shared: bool = False) -> Shape:
    """A VAR of that depth, of maps with these sides; its modulations see the class alone, once for an image."""
    hidden, tokens, modulations = 64 * depth, sum(side**2 for side in sides), 1 if shared else depth
    block, ends = 12 * hidden**2, 32 * hidden + hidden * 4096
    once = (6 * modulations + 2) * hidden**2
    return Shape(
        parameters=depth * block + once + ends + (1001 + len(sides) + tokens) * hidden,
        active=depth * block + ends,
        linear=(16 * depth + 7 * modulations + 3 + 1 + 1) * hidden + 32 + 4096,
        layers=depth,
        hidden=hidden,
        keys=hidden,
        tokens=tokens,
        prompt=0,
        codes=4096,
        decoder=64_800_000,
        width=2,
        draws=len(sides),
        large=depth * block + once + hidden * 4096,
    )


def showo_shape(side: int, draws: int) -> Shape:
    """Show-o's Phi, of as many codes as the square of `side`, without a cache."""
    hidden, layers, inner, vocabulary, codes = 2048, 24, 8192, 58_498, 8192
    block = 4 * hidden**2 + 2 * hidden * inner
    return Shape(
        parameters=layers * block + 2 * vocabulary * hidden,
        active=layers * block + hidden * codes,
        linear=layers * (4 * 2 * hidden + 2 * (hidden + inner)) + hidden + vocabulary,
        layers=layers,
        hidden=hidden,
        keys=0,
        tokens=side**2,
        prompt=64,
        codes=codes,
        decoder=95_400_000,
        width=2,
        draws=draws,
        cached=False,
        large=layers * block + vocabulary * hidden,
    )


def llamagen_t2i_shape(side: int) -> Shape:
    """LlamaGen XL of as many codes as the square of `side`, without T5, whose features of 2,048 it projects."""
    hidden, codes = 1280, 16_384
    sizes = {"hidden": hidden, "layers": 36, "inner": 3584, "vocabulary": codes, "codes": codes}
    shape = llama_shape(**sizes, tokens=side**2, head="shared")
    projection, no_text = 2048 * hidden + hidden**2, 120 * 2048
    beside = 2048 + hidden + 2 * hidden + hidden + codes - 36 * 2 * hidden  # queries, keys and values are one layer
    return replace(shape, parameters=shape.parameters + projection + no_text, linear=shape.linear + beside)


EMU3 = llama_shape(
    **{"hidden": 4096, "layers": 32, "inner": 14_336, "vocabulary": 184_622, "codes": 32_768, "tokens": 8100},
    keys=1024,
    head="shared",
    decoder=271_000_000,
)
ANOLE = llama_shape(
    hidden=4096, layers=32, inner=11_008, vocabulary=65_536, codes=8192, tokens=1024, head="shared", decoder=68_700_000
)
SIMPLEAR = {
    "0_5b": {"hidden": 896, "layers": 24, "inner": 4864, "keys": 128},
    "1_5b": {"hidden": 1536, "layers": 28, "inner": 8960, "keys": 256},
}
"""Of Qwen2.5's configs, whose ids in and out are one table."""
_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
KNOWN = {
    "anole.7b_v01": ANOLE,
    "emu3.gen": EMU3,
    "janus.pro_1b": JANUS_PRO["1B"],
    "janus.pro_7b": JANUS_PRO["7B"],
    **{
        f"simplear.{stage}_{size}": llama_shape(
            **sizes, vocabulary=215_672, codes=64_000, tokens=4096, head="tied", decoder=55_300_000
        )
        for stage in ("rl", "sft")
        for size, sizes in SIMPLEAR.items()
    },
    "llamagen.t2i_xl_256": llamagen_t2i_shape(16),
    "llamagen.t2i_xl_512": llamagen_t2i_shape(32),
    **{name: showo_shape(16, 18) for name in ("showo.256", "showo.clip_256")},
    **{name: showo_shape(32, 50) for name in ("showo.512", "showo.512_base", "showo.clip_512")},
    **{f"var.d{depth}": var_shape(depth, _SIDES) for depth in (16, 20, 24, 30)},
    "var.d36": var_shape(36, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), shared=True),
}
"""By the name of the generator."""

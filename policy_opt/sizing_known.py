"""Shapes of published generators, known without their weights; biases and norms are left out."""

from __future__ import annotations

from collections.abc import Sequence

from rwk.policy_opt.sizing import JANUS_PRO, Shape


def var_shape(depth: int, sides: Sequence[int], *, shared: bool = False) -> Shape:
    """A VAR of that depth, of maps with these sides; its modulations see the class alone, once for an image."""
    hidden, tokens, modulations = 64 * depth, sum(side**2 for side in sides), 1 if shared else depth
    block, ends = 12 * hidden**2, 32 * hidden + hidden * 4096
    return Shape(
        parameters=depth * block + (6 * modulations + 2) * hidden**2 + ends + (1001 + len(sides) + tokens) * hidden,
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
    )


_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
KNOWN = {
    "janus.pro_1b": JANUS_PRO["1B"],
    "janus.pro_7b": JANUS_PRO["7B"],
    **{name: showo_shape(16, 18) for name in ("showo.256", "showo.clip_256")},
    **{name: showo_shape(32, 50) for name in ("showo.512", "showo.512_base", "showo.clip_512")},
    **{f"var.d{depth}": var_shape(depth, _SIDES) for depth in (16, 20, 24, 30)},
    "var.d36": var_shape(36, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), shared=True),
}
"""By the name of the generator."""

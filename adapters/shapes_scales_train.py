"""Trains the networks of `shapes.scales`: `python -m rwk.adapters.shapes_scales_train --out DIR`.

First the tokenizer on random scenes, then the generator on the captions of `shapes_train`. Its layers begin as those of
the shipped `shapes.llama`, which reads prompts already.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rwk.adapters.shapes_generator import BEGIN, ShapesLlama
from rwk.adapters.shapes_scales import ShapesScales
from rwk.adapters.shapes_train import Logits, train
from rwk.adapters.shapes_vq import CODES as BEFORE

STEPS, RATE, CAPTIONS = 3000, 1e-3, 60_000


@torch.no_grad()
def begin_from(generator: ShapesScales, llama: ShapesLlama) -> None:
    """Takes over the layers and the words of a generator that draws code by code."""
    state = {name.removeprefix("model."): value for name, value in llama.module.state_dict().items()}
    words = state.pop("embed_tokens.weight")
    del state["lm_head.weight"]
    generator.module.model.load_state_dict({**state, "embed_tokens.weight": words[BEFORE:]})
    own, known = generator.vq.state_dict(), llama.vq.state_dict()
    own |= {name: value for name, value in known.items() if value.shape == own[name].shape}
    generator.vq.load_state_dict(own)
    generator.module.places.weight.mul_(0.1 * words.std()).add_(words[BEGIN])


def scales_logits(generator: ShapesScales) -> Logits:
    """What `shapes.scales` says of tokens after their captions."""

    def logits(texts: Sequence[str], tokens: Tensor, dropped: Sequence[bool]) -> Tensor:
        rows = [None if drop else text for text, drop in zip(texts, dropped, strict=True)]
        return generator.image_logits(generator.states(rows, tokens))

    return logits


if __name__ == "__main__":
    train(
        ShapesScales,
        scales_logits,
        doc=__doc__,
        begin=lambda generator: begin_from(generator, ShapesLlama()),
        steps=STEPS,
        rate=RATE,
        captions=CAPTIONS,
    )

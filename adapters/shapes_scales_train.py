"""Trains the networks of `shapes.scales`: `python -m rwk.adapters.shapes_scales_train --out DIR`.

First the tokenizer on random scenes, then the generator on the captions of `shapes_train`. Its layers begin as those of
the shipped `shapes.llama`, which reads prompts already.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rwk.adapters.shapes_generator import BEGIN, ShapesLlama
from rwk.adapters.shapes_scales import ShapesScales
from rwk.adapters.shapes_train import agreement, captions, save_half, teach, train_vq
from rwk.adapters.shapes_vq import CODES as BEFORE

VQ_STEPS, STEPS, RATE = 1000, 3000, 1e-3
CAPTIONS = 60_000


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


def scales_logits(generator: ShapesScales, texts: Sequence[str], tokens: Tensor, dropped: Sequence[bool]) -> Tensor:
    """[B, L, K] logits of tokens [B, L] after their captions, but for those that are dropped."""
    rows = [None if drop else text for text, drop in zip(texts, dropped, strict=True)]
    return generator.image_logits(generator.states(rows, tokens))


def main() -> None:
    """Trains both networks and writes them as half-precision safetensors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and model.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vq-steps", type=int, default=VQ_STEPS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--captions", type=int, default=CAPTIONS)
    parser.add_argument("--start", type=Path, help="go on from both networks in this folder; the tokenizer stays")
    args = parser.parse_args()
    generator = ShapesScales(weights=args.start) if args.start else ShapesScales.blank()
    if not args.start:
        begin_from(generator, ShapesLlama())
        train_vq(generator.vq.requires_grad_(True), steps=args.vq_steps, seed=args.seed)
        generator.vq.requires_grad_(False)
        save_half(generator, args.out)
    print(f"verifier agreement after the tokenizer: {agreement(generator.vq, count=1000, seed=args.seed):.4f}")
    texts, tokens = captions(generator.vq, count=args.captions, seed=args.seed)

    def logits_of(texts: Sequence[str], tokens: Tensor, dropped: Sequence[bool]) -> Tensor:
        return scales_logits(generator, texts, tokens, dropped)

    for _ in teach(generator.module, logits_of, texts, tokens, steps=args.steps, rate=args.rate, seed=args.seed):
        save_half(generator, args.out)


if __name__ == "__main__":
    main()

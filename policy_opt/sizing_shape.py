"""What of a generator its costs depend on: read off its network, or off the numbers of a published config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from rwk.policy_opt.batched import BatchedGenerator
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.packed import LEAST_WEIGHTS


@dataclass(frozen=True)
class Shape:
    """What of a generator its costs depend on."""

    parameters: int
    """Of the network that learns, without low-rank changes that were kept beside it."""
    active: int
    """Those that an image token is multiplied by."""
    linear: int
    """Inputs and outputs of all linear layers together, so that adapters of rank r have r times as many parameters."""
    layers: int
    hidden: int
    keys: int
    """Width of the keys of one layer, over all heads."""
    tokens: int
    prompt: int
    """Tokens of a prompt."""
    codes: int
    decoder: int
    """Parameters of what turns codes into pixels."""
    width: int
    """Bytes of a number."""
    draws: int = 0
    """That make an image, each a pass of the network; 0 is one for each token."""
    cached: bool = True
    """Whether a draw reads no more than the tokens of the draw before."""
    large: int = 0
    """Weights of the linear layers that a CPU may lay out for a draw."""
    beside: int = 0
    """Parameters of low-rank changes that were kept beside the weights, of float32; they learn no more."""


def shape_of(generator: Generator) -> Shape:
    """The shape of a generator; without the config of a transformers model its cache and activations count as 0."""
    module, spec = generator.module, generator.spec
    ids_of = getattr(generator, "prompt_ids", lambda prompt: ())
    counted = sum(value.numel() for value in module.parameters())
    beside = sum(value.numel() for name, value in module.named_parameters() if ".lora_" in name)
    once = sum(value.numel() for part in getattr(module, "once", ()) for value in part.parameters())
    config = getattr(module, "config", None)
    hidden, heads = getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", 1)
    linear = [
        part for name, part in module.named_modules() if isinstance(part, nn.Linear) and ".lora_" not in f".{name}"
    ]
    embedded = sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Embedding))
    decoder: Any = getattr(generator, "vq", None)
    return Shape(
        parameters=counted - beside,
        active=counted - embedded - once,
        linear=sum(part.in_features + part.out_features for part in linear),
        layers=getattr(config, "num_hidden_layers", 0),
        hidden=hidden,
        keys=hidden // heads * getattr(config, "num_key_value_heads", heads),
        tokens=spec.tokens,
        prompt=max(len(ids_of(prompt)) for prompt in generator.example_prompts),
        codes=spec.codes,
        decoder=sum(value.numel() for value in decoder.parameters()) if isinstance(decoder, nn.Module) else 0,
        width=next(module.parameters()).element_size(),
        draws=len(spec.steps),
        cached=getattr(generator, "cached", True),
        large=_large(*(part.weight.numel() for part in linear)) if isinstance(generator, BatchedGenerator) else 0,
        beside=beside,
    )


def _large(*weights: int) -> int:
    """Weights of those of the layers that are large enough to be laid out."""
    return sum(count for count in weights if count >= LEAST_WEIGHTS)


def llama_shape(
    *,
    hidden: int,
    layers: int,
    inner: int,
    vocabulary: int,
    codes: int,
    tokens: int,
    keys: int = 0,
    head: Literal["own", "shared", "tied"] = "own",
    decoder: int = 72_000_000,
) -> Shape:
    """A generator of Llama's layers, with a text vocabulary in and out.

    Args:
        keys: width of the keys of a layer; by default `hidden`.
        head: codes have an image head of two layers; or are rows of the vocabulary, whose table in is another than the
            one out, or the same.
        decoder: parameters of what turns codes into pixels.
    """
    keys = keys or hidden
    block = 2 * hidden**2 + 2 * hidden * keys + 3 * hidden * inner
    own = hidden**2 + hidden * codes if head == "own" else 0
    layer = [hidden**2] * 2 + [hidden * keys] * 2 + [hidden * inner] * 3
    return Shape(
        parameters=layers * block + (1 if head == "tied" else 2) * vocabulary * hidden + own,
        active=layers * block + (own or hidden * codes),
        linear=layers * (4 * hidden + 2 * (hidden + keys) + 3 * (hidden + inner)),
        layers=layers,
        hidden=hidden,
        keys=keys,
        tokens=tokens,
        prompt=64,
        codes=codes,
        decoder=decoder,
        width=2,
        large=layers * _large(*layer) + _large(hidden * codes, *[hidden**2] * (head == "own")),
    )


JANUS_PRO = {
    "1B": llama_shape(hidden=2048, layers=24, inner=5632, vocabulary=102_400, codes=16_384, tokens=576),
    "7B": llama_shape(hidden=4096, layers=30, inner=11_008, vocabulary=102_400, codes=16_384, tokens=576),
}
"""Of the configs of deepseek-ai/Janus-Pro-1B and -7B, without their image encoder, which drawing does not need."""

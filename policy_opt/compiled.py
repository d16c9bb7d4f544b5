"""The step that draws, compiled: on a GPU its kernels are fused and launched together, as one CUDA graph.

A step of few rows is so little work that a GPU waits for the calls that launch it. A graph needs shapes and addresses
that stay. So every row has room for all its tokens from the beginning, the whole of it is read, what is not yet drawn
is shut by the mask, and the room is kept from draw to draw: as much memory as the cache of one draw.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from rwk.policy_opt.continuation import Backbone, Reader, starts
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.prefix import Prefix

OPTIONS: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}
"""Of torch.compile."""
WIDTH = 64
"""Prefixes are as if of a multiple of so many ids, so that a few graphs do for prompts of all lengths."""


def compile_draws(generator: Generator) -> None:
    """Lets a generator draw by compiled steps from now on.

    Raises:
        ValueError: for one that does not draw token by token through a cache.
    """
    drawing: Any = generator
    if not hasattr(drawing, "torch_compile"):
        raise ValueError(
            f"torch_compile needs a generator that draws code by code, got {generator.spec.name}; leave it out."
        )
    drawing.torch_compile = True


class CompiledSteps:
    """Compiled steps of one generator, and the room of the latest draw, which the next of its shape takes again."""

    def __init__(self) -> None:
        self.room: list[Tensor] = []

    def __deepcopy__(self, _: Any) -> CompiledSteps:
        return CompiledSteps()  # what is copied takes room of its own, if it draws

    def continued(self, backbone: Backbone, prefix: Prefix, source: list[int], steps: int) -> Reader:
        """As `continuation.continued`; equal to that up to rounding."""
        from transformers.cache_utils import Cache

        device, width = prefix.hidden.device, math.ceil(max(prefix.lengths) / WIDTH) * WIDTH
        self._make_room(prefix, len(source), width + steps)
        index, (*layers, mask, slot, positions) = torch.tensor(source, device=device), self.room
        for room, read in zip(layers, prefix.layers, strict=True):
            room[:, :, : read.shape[2]] = read[index]
        lengths = torch.tensor([[prefix.lengths[row]] for row in source], device=device)
        before = torch.arange(width + steps, device=device) < lengths  # [rows, width + steps]
        mask.fill_(torch.finfo(mask.dtype).min).masked_fill_(before[:, None, None], 0)
        slot.fill_(width)
        positions.copy_(starts(prefix, source))
        pairs = zip(layers[::2], layers[1::2], strict=True)
        cache = Cache(layers=[_fixed_layer()(keys, values, slot) for keys, values in pairs])
        step = torch.compile(backbone, **OPTIONS)

        def read_next(embeds: Tensor) -> Tensor:
            mask.index_fill_(3, slot, 0)
            torch.compiler.cudagraph_mark_step_begin()
            hidden: Tensor = step(embeds.contiguous(), positions=positions, mask=mask, cache=cache)[:, 0].clone()
            slot.add_(1)
            positions.add_(1)
            return hidden

        return read_next

    def _make_room(self, prefix: Prefix, rows: int, width: int) -> None:
        """Room for keys and values, the mask, the slot and the positions, as it was where the shapes are."""
        layers = [[rows, layer.shape[1], width, layer.shape[3]] for layer in prefix.layers]
        hidden = prefix.hidden
        if [list(room.shape) for room in self.room[:-3]] == layers and self.room[0].device == hidden.device:
            return
        self.room = []  # given back before as much is taken again
        # Zeros, since what the mask shuts is multiplied by 0, and must be finite.
        self.room = [hidden.new_zeros(shape) for shape in [*layers, [rows, 1, 1, width]]]
        self.room += [torch.zeros(shape, dtype=torch.long, device=hidden.device) for shape in ([1], [rows, 1])]
        for room in self.room:
            torch._dynamo.mark_static_address(room, guard=False)


@functools.cache
def _fixed_layer() -> Any:
    """The class of a cache layer that is always read whole; made on first use, since transformers is slow to import."""
    from transformers.cache_utils import DynamicLayer

    dynamic: Any = DynamicLayer  # its methods carry no types

    class FixedLayer(dynamic):  # type: ignore[misc]
        def __init__(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
            super().__init__()
            self.keys, self.values, self.slot = keys, values, slot
            self.is_initialized = True

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            self.keys.index_copy_(2, self.slot, key_states)
            self.values.index_copy_(2, self.slot, value_states)
            return self.keys, self.values

        def get_seq_length(self) -> int:
            return self.keys.shape[2]

    return FixedLayer

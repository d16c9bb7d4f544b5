"""The step that draws, compiled: on a GPU its kernels are fused and launched together, as one CUDA graph.

A step of few rows is so little work that a GPU waits for the calls that launch it. A graph needs shapes and addresses
that stay. So every row has room for all its tokens from the beginning, the whole of it is read, what is not yet drawn
is shut by the mask, and the room is kept from draw to draw: as much memory as the cache of one draw. To make a graph
takes as long as many steps, so rows and keys are as if of a few numbers, whose graphs do for all others.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from rwk.policy_opt.continuation import Backbone, Reader, starts
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.prefix import Prefix

OPTIONS: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}
"""Of torch.compile."""
WIDTH = 64
"""Rows have room for a multiple of so many tokens, prompt and image together."""
GRAPHS = 64
"""Graphs of one step that torch keeps, of all generators of a process; its own limit is 8."""


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


def rows_taken(count: int) -> int:
    """Rows that a graph for so many has: the next power of two up to 16, then of eighths of one; the rest is waste.

    >>> [rows_taken(count) for count in (1, 3, 4, 9, 17, 33, 64, 65)]
    [1, 4, 4, 16, 20, 40, 64, 80]
    """
    power = 1 << (count - 1).bit_length()
    step = power if power <= 16 else power // 8
    return math.ceil(count / step) * step


class CompiledSteps:
    """Compiled steps of one generator, and the room of the latest draw, which the next of its shape takes again."""

    def __init__(self) -> None:
        self.room: list[Tensor] = []
        self._told = False

    def __deepcopy__(self, _: Any) -> CompiledSteps:
        return CompiledSteps()  # what is copied takes room of its own, if it draws

    def continued(self, backbone: Backbone, prefix: Prefix, source: list[int], steps: int) -> Reader:
        """As `continuation.continued`; equal to that up to rounding.

        Warns, once, where torch keeps so many graphs that it makes no more, so that some draws are by plain steps.
        """
        from transformers.cache_utils import Cache

        device, width, rows = prefix.hidden.device, max(prefix.lengths), len(source)
        source = source + source[:1] * (rows_taken(rows) - rows)  # copies of the first, which nobody sees
        self._make_room(prefix, len(source), math.ceil((width + steps) / WIDTH) * WIDTH)
        index, (*layers, mask, slot, positions) = torch.tensor(source, device=device), self.room
        for room, read in zip(layers, prefix.layers, strict=True):
            room[:, :, : read.shape[2]] = read[index]
        lengths = torch.tensor([[prefix.lengths[row]] for row in source], device=device)
        before = torch.arange(mask.shape[3], device=device) < lengths  # [rows, room]
        mask.fill_(torch.finfo(mask.dtype).min).masked_fill_(before[:, None, None], 0)
        slot.fill_(width)
        positions.copy_(starts(prefix, source))
        pairs = zip(layers[::2], layers[1::2], strict=True)
        cache = Cache(layers=[_fixed_layer()(keys, values, slot) for keys, values in pairs])
        step = self._compiled(backbone)

        def read_next(embeds: Tensor) -> Tensor:
            mask.index_fill_(3, slot, 0)
            torch.compiler.cudagraph_mark_step_begin()
            padded = torch.cat([embeds, embeds[:1].expand(len(source) - rows, -1, -1)])
            hidden = step(padded, positions=positions, mask=mask, cache=cache)[:rows, 0].clone()
            slot.add_(1)
            positions.add_(1)
            return hidden

        return read_next

    def _compiled(self, backbone: Backbone) -> Backbone:
        """The backbone, compiled for each shape that it meets, as long as torch keeps one more graph."""
        from torch._dynamo.exc import FailOnRecompileLimitHit

        compiled: Backbone = torch.compile(backbone, **OPTIONS)

        def step(*args: Any, **options: Any) -> Tensor:
            nonlocal compiled
            with torch._dynamo.config.patch(recompile_limit=GRAPHS, fail_on_recompile_limit_hit=True):
                try:
                    return compiled(*args, **options)
                except FailOnRecompileLimitHit:
                    compiled = backbone  # for the rest of this draw
            if not self._told:
                warnings.warn(
                    f"torch_compile makes {GRAPHS} graphs at most, got a draw of yet another shape, of "
                    f"{len(args[0])} rows; it goes by plain steps, so draw in fewer sizes.",
                    stacklevel=2,
                )
            self._told = True
            return backbone(*args, **options)

        return step

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

"""A generator of the built-in world that writes a plan before it draws: what lies in each quadrant, in words.

A plan has three words for each of the four quadrants, row by row, "small red circle" or "a plain background", so every
plan is of the same length. The begin of an image, which alone may stand behind them, is the last token of the text:
`shapes.llama` counts the places of its codes from there, and so can draw after a plan that it was not taught to read.
The unconditional model reads the plan, and not the prompt. Writing out a plan first, and learning it too, is after
T2I-R1 (arXiv:2505.00703) and ReasonGen-R1 (arXiv:2505.24875).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.shapes_generator import BEGIN, LLAMA, NULL, SPEC, WEIGHTS, WORD_IDS, ShapesLlama
from rwk.adapters.shapes_vq import CODES
from rwk.adapters.shapes_world import COLORS, PLACES, SHAPES, SIZES, Scene, Thing
from rwk.policy_opt.generator import Generator

NOTHING = ("a", "plain", "background")
"""What is said of an empty quadrant."""
_KINDS = ((*SIZES, NOTHING[0]), (*COLORS, NOTHING[1]), (*SHAPES, NOTHING[2]))
PLAN = len(PLACES) * len(_KINDS)
"""Words of a plan."""
TEXT = PLAN + 1
"""Tokens of a plan: its words and the begin of an image."""
SHUT = -1e4
"""Logit of a token that may not stand at a slot: its probability is 0, and its logarithm finite."""
_WORDS = {number: word for word, number in WORD_IDS.items()}


class ShapesPlan(ShapesLlama):
    """`ShapesLlama`, whose tokens are those of the whole vocabulary: first the words of a plan, then the codes."""

    shipped = WEIGHTS / "shapes_plan"
    spec = replace(
        SPEC,
        name="shapes.plan",
        tokens=TEXT + SPEC.tokens,
        codes=LLAMA["vocab_size"],
        source="rwk.adapters.shapes_plan_train",
        text=TEXT,
    )

    @classmethod
    def begun_from(cls, generator: ShapesLlama) -> ShapesPlan:
        """The generator with the weights of one that writes no plan yet, ready to be taught."""
        self = cls.blank()
        self.module.load_state_dict(generator.module.state_dict())
        self.vq.load_state_dict(generator.vq.state_dict())
        return self

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the prompt's words, and of the empty prompt, behind which every plan begins."""
        return [*super().prompt_ids(prompt)[:-1], NULL]

    def null_ids(self, prompt: str) -> list[int]:
        return [NULL]

    def logits_at(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """[..., V] logits of all tokens, those of the slot's kind alone above `SHUT`."""
        logits: Tensor = self.causal_lm.get_output_embeddings()(hidden)
        return logits.masked_fill(~_open().to(self.device)[slots], SHUT)

    def chosen(self, tokens: Tensor) -> Tensor:
        """See `Generator.chosen`; the begin of an image is none."""
        return (torch.arange(tokens.shape[1], device=tokens.device) != PLAN).expand(tokens.shape)

    def texts(self, tokens: Tensor) -> list[str]:
        """See `Generator.texts`; quadrants are set apart by commas."""
        rows = tokens[:, :PLAN].reshape(len(tokens), len(PLACES), -1).tolist()
        return [", ".join(" ".join(_WORDS.get(word, "?") for word in part) for part in row) for row in rows]

    def pixels(self, tokens: Tensor) -> Tensor:
        return super().pixels(tokens[:, TEXT:])

    def code_embeddings(self) -> Tensor:
        return Generator.code_embeddings(self)  # words have none

    def decode_partial(self, tokens: Tensor) -> list[Image.Image]:
        return Generator.decode_partial(self, tokens)  # judges of partial images count codes, not words


def plan_ids(scene: Scene) -> list[int]:
    """[TEXT] ids of the words of a scene's plan, and of the begin of an image."""
    found = {(thing.row, thing.column): (thing.size, thing.color, thing.shape) for thing in scene}
    return [*(WORD_IDS[str(word)] for cell in PLACES.values() for word in found.get(cell, NOTHING)), BEGIN]


def planned_scene(tokens: Tensor) -> Scene:
    """The scene that the words of a row of tokens [L] plan; a quadrant that is half empty is one of no kind."""
    words = [_WORDS.get(number, "") for number in tokens[:PLAN].tolist()]
    things = []
    for index, (row, column) in enumerate(PLACES.values()):
        kind = words[3 * index : 3 * index + 3]
        if kind != list(NOTHING):
            size, color, shape = (None if word in NOTHING else word for word in kind)
            things.append(Thing(shape, color, size, row, column))
    return tuple(things)


@cache
def _open() -> Tensor:
    """[L, V] whether a token may stand at a slot."""
    allowed = torch.zeros([TEXT + SPEC.tokens, LLAMA["vocab_size"]], dtype=torch.bool)
    for slot in range(PLAN):
        allowed[slot, [WORD_IDS[word] for word in _KINDS[slot % len(_KINDS)]]] = True
    allowed[PLAN, BEGIN] = True
    allowed[TEXT:, :CODES] = True
    return allowed

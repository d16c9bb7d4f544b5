"""Trains the networks of the built-in world: `python -m rwk.adapters.shapes_train --out DIR`.

First the tokenizer on random scenes, then the generator on captions of both prompt families. Three captions in ten go
with a scene that was changed afterwards (`shapes_scenes.spoil`), as captions from the web are often wrong: so the
generator knows how to draw everything, and draws what was asked only part of the time. That is what a reward can mend.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rwk.adapters import shapes_prompts, shapes_scenes
from rwk.adapters import shapes_world as world
from rwk.adapters.shapes_generator import PAD, ShapesGenerator, ShapesLlama, text_ids
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_verifier import recognise
from rwk.adapters.shapes_vq import CODES, GRID

VQ_STEPS, VQ_BATCH, VQ_RATE = 1000, 64, 2e-3
STEPS, BATCH, RATE = 4500, 64, 1.5e-3
CAPTIONS = 100_000
SPOILED = 0.3
"""Share of captions whose scene was changed; about three tenths of the changes leave the caption true."""
DROPPED = 0.1
"""Share of captions left out in training, which teaches the unconditional distribution that guidance needs."""


T = TypeVar("T", bound=ShapesGenerator)
Logits = Callable[[Sequence[str], Tensor, Sequence[bool]], Tensor]
"""From captions, tokens [B, L], and whether each caption is left out, to the logits [B, L, K] of the tokens."""


class Tokenizer(Protocol):
    """Between pixels [B, 3, 48, 48] in 0..1 and tokens [B, L]."""

    def encode(self, pixels: Tensor) -> Tensor: ...
    def decode(self, tokens: Tensor) -> Tensor: ...


def random_scene(rng: random.Random) -> world.Scene:
    """One to four things of any kind."""
    cells = rng.sample(list(world.PLACES.values()), rng.choice([1, 2, 2, 3, 4]))
    return tuple(
        shapes_scenes.place(
            rng.choice(world.SHAPES), rng.choice(list(world.COLORS)), rng.choice(list(world.SIZES)), *cell, rng
        )
        for cell in cells
    )


def train_vq(vq: nn.Module, *, steps: int, seed: int) -> None:
    """Trains a tokenizer to give back random scenes."""
    rng = random.Random(f"vq/{seed}")
    torch.manual_seed(seed)
    vq.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vq.parameters(), weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, VQ_RATE, steps, pct_start=0.05)
    begun = time.monotonic()
    for step in range(steps):
        pixels = render([random_scene(rng) for _ in range(VQ_BATCH)]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            error = vq(pixels) - pixels
        update(error.abs().mean() + 4 * error.square().mean(), vq, optimizer, schedule)
        if step % 100 == 0 or step == steps - 1:
            print(f"tokenizer {step}: error {error.abs().mean():.4f}, {time.monotonic() - begun:.0f} s", flush=True)
    vq.eval()


def agreement(vq: Tokenizer, *, count: int, seed: int) -> float:
    """Share of random scenes that the verifier reads alike before and after the tokenizer."""
    rng = random.Random(f"agreement/{seed}")
    scenes = [random_scene(rng) for _ in range(count)]
    with torch.no_grad():
        seen = recognise(torch.cat([vq.decode(vq.encode(part)) for part in render(scenes).split(64)]))
    plain = [{thing._replace(dy=0, dx=0) for thing in scene} for scene in scenes]
    return sum({t._replace(dy=0, dx=0) for t in s} == p for s, p in zip(seen, plain, strict=True)) / count


def captioned(vq: Tokenizer, *, count: int, seed: int) -> tuple[list[str], Tensor]:
    """Captions of both families and categories alike, and the tokens [count, L] of their pictures."""
    rng = random.Random(f"captions/{seed}")
    kinds = [(family, category) for family, categories in shapes_prompts.FAMILIES.items() for category in categories]
    texts, tokens, scenes = [], [], []
    for index in range(count):
        family, category = kinds[index % len(kinds)]
        description = shapes_prompts.describe(category, rng, held_out=rng.random() < 0.15)
        texts.append(shapes_prompts.word(description, family, rng))
        scene = shapes_scenes.draw_scene(description, rng)
        scenes.append(shapes_scenes.spoil(scene, rng) if rng.random() < SPOILED else scene)
        if len(scenes) == 256 or index == count - 1:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                tokens.append(vq.encode(render(scenes)).short())
            scenes = []
    return texts, torch.cat(tokens)


def teach(
    module: nn.Module, logits_of: Logits, texts: list[str], tokens: Tensor, *, steps: int, rate: float, seed: int
) -> Iterator[int]:
    """Trains a module to make tokens likely after their caption; yields every 500 steps and at the end."""
    rng = random.Random(f"llama/{seed}")
    torch.manual_seed(seed)
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    scales = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05, final_div_factor=100)
    begun, mean = time.monotonic(), 0.0
    for step in range(steps):
        rows = [rng.randrange(len(texts)) for _ in range(BATCH)]
        dropped = [rng.random() < DROPPED for _ in rows]
        with torch.autocast("cpu", torch.bfloat16):
            logits = logits_of([texts[i] for i in rows], tokens[rows].long(), dropped)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), tokens[rows].long().flatten())
        update(loss, module, optimizer, schedule)
        mean += (loss.item() - mean) / min(step + 1, 100)
        if step % 100 == 0 or step == steps - 1:
            print(f"generator {step}: loss {mean:.4f}, {time.monotonic() - begun:.0f} s", flush=True)
        if step % 500 == 499 or step == steps - 1:
            yield step


def llama_logits(generator: ShapesLlama) -> Logits:
    """What `shapes.llama` says of tokens after their captions."""
    llama: Any = generator.module

    def logits(texts: Sequence[str], tokens: Tensor, dropped: Sequence[bool]) -> Tensor:
        ids = torch.cat([text_ids(texts, dropped), tokens[:, :-1]], 1)
        mask = ids != PAD
        hidden = llama.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state[:, -GRID * GRID :]
        made: Tensor = hidden @ llama.lm_head.weight[:CODES].T
        return made

    return logits


def update(
    loss: Tensor,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """One step down the gradient of a loss, which is shortened to length 1."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def save_half(generator: ShapesGenerator, folder: Path) -> None:
    """Saves a generator in half precision, and leaves it as it is."""
    written = copy.deepcopy(generator)
    written.module.half()
    written.vq.half()
    written.save(folder)


def train(
    kind: type[T],
    logits_of: Callable[[T], Logits],
    *,
    doc: str | None,
    begin: Callable[[T], None] = lambda _: None,
    steps: int,
    rate: float,
    captions: int,
) -> None:
    """The command that trains both networks of a kind of generator and writes them as half-precision safetensors.

    Args:
        doc: what it says of itself.
        begin: what is done to a generator of random weights before.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and model.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vq-steps", type=int, default=VQ_STEPS)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--captions", type=int, default=captions)
    parser.add_argument("--start", type=Path, help="go on from both networks in this folder; the tokenizer stays")
    args = parser.parse_args()
    generator = kind(weights=args.start) if args.start else kind.blank()
    if not args.start:
        begin(generator)
        train_vq(generator.vq.requires_grad_(True), steps=args.vq_steps, seed=args.seed)
        generator.vq.requires_grad_(False)
        save_half(generator, args.out)
    print(f"verifier agreement after the tokenizer: {agreement(generator.vq, count=1000, seed=args.seed):.4f}")
    texts, tokens = captioned(generator.vq, count=args.captions, seed=args.seed)
    logits = logits_of(generator)
    for _ in teach(generator.module, logits, texts, tokens, steps=args.steps, rate=rate, seed=args.seed):
        save_half(generator, args.out)


if __name__ == "__main__":
    train(ShapesLlama, llama_logits, doc=__doc__, steps=STEPS, rate=RATE, captions=CAPTIONS)

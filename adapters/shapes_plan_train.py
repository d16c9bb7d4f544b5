"""Teaches the generator of the built-in world to plan: `python -m rwk.adapters.shapes_plan_train --out DIR`.

It begins from the shipped `shapes.llama`, and learns plan and picture after captions of both prompt families. Of three
captions in ten the scene was changed (`shapes_scenes.spoil`): for half of them before the plan was written, so that
plan and picture agree with each other and not with the caption, for the other half after it.

Every 100 steps the weights are written. A run that was cut off at step N goes on with `--start DIR --done N`: rows and
learning rate are those of that step; only the optimizer's moments are gathered anew.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from rwk.adapters import shapes_prompts, shapes_scenes
from rwk.adapters.shapes_generator import PAD, ShapesLlama
from rwk.adapters.shapes_plan import PLAN, TEXT, ShapesPlan, plan_ids, planned_scene
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_train import DROPPED, SPOILED, save_half, update
from rwk.adapters.shapes_verifier import recognise
from rwk.adapters.shapes_vq import ShapesVQ
from rwk.adapters.shapes_world import facts

STEPS, BATCH, RATE, WARM = 1500, 64, 7e-4, 50
CAPTIONS = 40_000
WORDS = 0.3
"""Share of the words of plans in the loss; that of the codes is the rest."""


def planned_captions(vq: ShapesVQ, *, count: int, seed: int) -> tuple[list[str], Tensor]:
    """Captions of both families and all categories alike, and the tokens [count, L] of plan and picture."""
    rng = random.Random(f"planned/{seed}")
    kinds = [(family, category) for family, categories in shapes_prompts.FAMILIES.items() for category in categories]
    texts, plans, scenes, tokens = list[str](), list[list[int]](), [], list[Tensor]()
    for index in range(count):
        family, category = kinds[index % len(kinds)]
        description = shapes_prompts.describe(category, rng, held_out=rng.random() < 0.15)
        texts.append(shapes_prompts.word(description, family, rng))
        scene, fate = shapes_scenes.draw_scene(description, rng), rng.random()
        if fate < SPOILED / 2:
            scene = shapes_scenes.spoil(scene, rng)
        plans.append(plan_ids(scene))
        scenes.append(shapes_scenes.spoil(scene, rng) if SPOILED / 2 <= fate < SPOILED else scene)
        if len(scenes) == 256 or index == count - 1:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                tokens.append(vq.encode(render(scenes)).short())
            scenes = []
    return texts, torch.cat([torch.tensor(plans, dtype=torch.short), torch.cat(tokens)], 1)


def likelihood(generator: ShapesPlan, texts: list[str], tokens: Tensor, dropped: list[bool]) -> Tensor:
    """[2] mean negative log-likelihoods in nats, of the words of plans and of the codes of pictures.

    Args:
        tokens: [B, L] long.
        dropped: [B] whether a caption is left out, which teaches the unconditional distribution.
    """
    rows = [
        generator.null_ids(text) if drop else generator.prompt_ids(text)
        for text, drop in zip(texts, dropped, strict=True)
    ]
    width = max(map(len, rows))
    prompts = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    ids = torch.cat([prompts, tokens[:, :-1]], 1)
    mask = ids != PAD
    with torch.autocast("cpu", torch.bfloat16):
        hidden = generator.causal_lm.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state[:, -tokens.shape[1] :]
        logits = generator.logits_at(hidden, torch.arange(tokens.shape[1]).expand_as(tokens))
    surprise = functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    surprise = surprise.view_as(tokens)
    return torch.stack([surprise[:, :PLAN].mean(), surprise[:, TEXT:].mean()])


def teach(
    generator: ShapesPlan, texts: list[str], tokens: Tensor, *, steps: int, seed: int, done: int = 0
) -> Iterator[int]:
    """Trains on the weighted sum of both likelihoods; yields every 100 steps and at the end."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(generator.module.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(done + step, steps))
    share = torch.tensor([WORDS, 1 - WORDS])
    begun, mean = time.monotonic(), torch.zeros(2)
    for step in range(done, steps):
        rng = random.Random(f"plan/{seed}/{step}")
        rows = [rng.randrange(len(texts)) for _ in range(BATCH)]
        dropped = [rng.random() < DROPPED for _ in rows]
        parts = likelihood(generator, [texts[row] for row in rows], tokens[rows].long(), dropped)
        update((share * parts).sum(), generator.module, optimizer, schedule)
        mean += (parts.detach() - mean) / min(step - done + 1, 50)
        if step % 100 == 99 or step == steps - 1:
            words, codes = mean.tolist()
            print(
                f"step {step + 1}: words {words:.4f}, codes {codes:.4f}, {time.monotonic() - begun:.0f} s", flush=True
            )
            yield step + 1


def _share_of_rate(step: int, steps: int) -> float:
    """A linear warm-up, and half a cosine down to a hundredth."""
    fall = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))
    return min(1.0, (step + 1) / WARM) * (0.01 + 0.99 * fall)


def judged(generator: ShapesPlan, *, family: str, count: int, seed: int) -> tuple[float, float, float]:
    """Shares of images whose plan bears out every fact of its prompt, whose picture does, and that show their plan."""
    asked = [prompt.text for prompt in shapes_prompts.prompts(family, count, seed=seed)]
    rollout = generator.sample(asked, per_prompt=4, seed=seed)
    right = []
    for prompt, row, seen in zip(
        rollout.prompts, rollout.tokens, recognise(generator.pixels(rollout.tokens)), strict=True
    ):
        said, plan = shapes_prompts.understand(prompt), planned_scene(row)
        shown = {thing._replace(dy=0, dx=0) for thing in seen}
        holds = [all(fact.holds for fact in facts(said, scene)) for scene in (plan, seen)]
        right.append([*holds, shown == set(plan)])
    planned, drawn, followed = torch.tensor(right).float().mean(0).tolist()
    return planned, drawn, followed


def main() -> None:
    """Teaches and writes the generator as half-precision safetensors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and model.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--captions", type=int, default=CAPTIONS)
    parser.add_argument("--start", type=Path, help="go on from the weights in this folder")
    parser.add_argument("--done", type=int, default=0, help="steps that these weights have had of --steps")
    args = parser.parse_args()
    generator = ShapesPlan(weights=args.start) if args.start else ShapesPlan.begun_from(ShapesLlama())
    texts, tokens = planned_captions(generator.vq, count=args.captions, seed=args.seed)
    for _ in teach(generator, texts, tokens, steps=args.steps, seed=args.seed, done=args.done):
        save_half(generator, args.out)
    for family in ("shapes.long.test", "shapes.short.test"):
        planned, drawn, followed = judged(generator, family=family, count=60, seed=args.seed)
        print(f"{family}: right plans {planned:.3f}, right pictures {drawn:.3f}, as planned {followed:.3f}")


if __name__ == "__main__":
    main()

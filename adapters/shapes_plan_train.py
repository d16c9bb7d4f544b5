"""Teaches the generator of the built-in world to plan: `python -m rwk.adapters.shapes_plan_train --out DIR`.

It begins from the shipped `shapes.llama`, and learns plan and picture after captions of both prompt families. Of three
captions in ten the scene was changed (`shapes_scenes.spoil`): for half of them before the plan was written, so that
plan and picture agree with each other and not with the caption, for the other half after it.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from rwk.adapters import shapes_prompts, shapes_scenes
from rwk.adapters.shapes_generator import PAD, ShapesLlama, text_ids
from rwk.adapters.shapes_plan import PLAN, ShapesPlan, plan_ids, planned_scene
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_train import DROPPED, SPOILED, update
from rwk.adapters.shapes_verifier import recognise
from rwk.adapters.shapes_vq import ShapesVQ
from rwk.adapters.shapes_world import facts

STEPS, BATCH, RATE = 1500, 64, 5e-4
CAPTIONS = 40_000


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
    ids = torch.cat([text_ids(texts, dropped), tokens[:, :-1]], 1)
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
    words, codes = surprise.view_as(tokens).split([PLAN, tokens.shape[1] - PLAN], 1)
    return torch.stack([words.mean(), codes.mean()])


def teach(generator: ShapesPlan, texts: list[str], tokens: Tensor, *, steps: int, seed: int) -> None:
    """Trains on the sum of both likelihoods, each a mean over its own tokens."""
    rng = random.Random(f"plan/{seed}")
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(generator.module.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.05, final_div_factor=100)
    begun = time.monotonic()
    for step in range(steps):
        rows = [rng.randrange(len(texts)) for _ in range(BATCH)]
        dropped = [rng.random() < DROPPED for _ in rows]
        parts = likelihood(generator, [texts[row] for row in rows], tokens[rows].long(), dropped)
        update(parts.sum(), generator.module, optimizer, schedule)
        if step % 100 == 0 or step == steps - 1:
            words, codes = parts.tolist()
            print(f"step {step}: words {words:.3f}, codes {codes:.3f}, {time.monotonic() - begun:.0f} s", flush=True)


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
    args = parser.parse_args()
    generator = ShapesPlan.begun_from(ShapesLlama())
    texts, tokens = planned_captions(generator.vq, count=args.captions, seed=args.seed)
    teach(generator, texts, tokens, steps=args.steps, seed=args.seed)
    generator.save(args.out, dtype=torch.float16)
    for family in ("shapes.long.test", "shapes.short.test"):
        planned, drawn, followed = judged(generator, family=family, count=60, seed=args.seed)
        print(f"{family}: right plans {planned:.3f}, right pictures {drawn:.3f}, as planned {followed:.3f}")


if __name__ == "__main__":
    main()

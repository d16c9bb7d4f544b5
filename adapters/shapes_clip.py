"""The dual encoder of the built-in world, and its training: `python -m rwk.adapters.shapes_clip --out DIR`.

It learns from rendered scenes and their captions alone, by contrast: each picture and each caption against the others
of the batch, and against one that is almost right (`shapes_scenes.spoil`, `mislead`). Half of the pictures went through
the world's tokenizer. Captions come from both prompt families, without the pairs of colour and shape in `HELD_OUT` and
without the families' test prompts. It has seen neither preferences nor what the generator draws.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, softplus

from rwk.adapters import shapes_prompts, shapes_scenes
from rwk.adapters import shapes_world as world
from rwk.adapters.dual_encoder import DualEncoder, architecture
from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_vq import ShapesVQ
from rwk.rewards.trainable import Preprocessing

WEIGHTS = Path(__file__).parent / "weights" / "shapes_clip"
STEPS, BATCH, RATE = 750, 64, 1e-3
CAPTIONS = {"shapes.long": 3000, "shapes.short": 400}
"""Different captions of each family; half of a batch comes from either."""


class ShapesClip(DualEncoder):
    """The shipped dual encoder: does a picture of coloured shapes fit its prompt?"""

    spec = replace(DualEncoder.spec, name="shapes.clip", licence="Apache-2.0", source="rwk.adapters.shapes_clip")
    shipped = WEIGHTS
    drift = {"bfloat16": 3.3e-2}
    precision_note = "measured with its own weights, on pictures of coarse noise"

    def __init__(self, *, device: str = "cpu") -> None:
        shipped = DualEncoder.from_folder(WEIGHTS, device=device)
        super().__init__(shipped.architecture, shipped.preprocessing, device=device)
        self.module = shipped.module

    @classmethod
    def tiny(cls) -> ShapesClip:
        made = cls.__new__(cls)
        DualEncoder.__init__(made, *small(width=32, layers=1, patch=12))
        return made


def small(*, width: int, layers: int, patch: int) -> tuple[dict[str, Any], Preprocessing]:
    """An architecture for pictures and prompts of this world."""
    made = architecture(
        shapes_prompts.WORDS, image_size=world.SIZE, patch=patch, width=width, layers=layers, context=28
    )
    made["text_cfg"]["layers"] = max(1, layers // 2)
    return made, Preprocessing(world.SIZE)


class Example(NamedTuple):
    """A scene and a caption that belong together, and one of each that almost do."""

    scene: world.Scene
    caption: str
    near_scene: world.Scene
    far_scene: world.Scene
    """The near scene, spoiled twice more."""
    near_caption: str


def holds(description: world.Description, scene: world.Scene) -> bool:
    """Whether every fact of the description holds in the scene."""
    return all(fact.holds for fact in world.facts(description, scene))


def example(caption: str, family: str, rng: random.Random) -> Example:
    """An example for a caption, with near misses that are really wrong."""
    description = shapes_prompts.understand(caption)
    scene = shapes_scenes.draw_scene(description, rng)
    if not description.relation and not description.place and rng.random() < 0.5:
        scene = scattered(scene, rng)  # so that the order in which things are named does not count
    near_scene = scene
    redrawn = rng.random() < 0.5
    while holds(description, near_scene):
        near_scene = (
            shapes_scenes.draw_scene(mislead(description, rng), rng)
            if redrawn
            else shapes_scenes.spoil(near_scene, rng)
        )
    far_scene = shapes_scenes.spoil(shapes_scenes.spoil(near_scene, rng), rng)
    wrong = description
    while holds(wrong, scene) or not _said(wrong):
        wrong = mislead(description, rng)
    return Example(scene, caption, near_scene, far_scene, shapes_prompts.word(wrong, family, rng))


def scattered(scene: world.Scene, rng: random.Random) -> world.Scene:
    """The scene with its things in any quadrants."""
    cells = rng.sample(list(world.PLACES.values()), len(scene))
    return tuple(thing._replace(row=row, column=column) for thing, (row, column) in zip(scene, cells, strict=True))


def mislead(description: world.Description, rng: random.Random) -> world.Description:
    """The description with one thing changed: a property, count, relation or place, or who has which property."""
    clauses = list(description.clauses)
    index = rng.randrange(len(clauses))
    clause = clauses[index]
    match rng.choice(["swap", "swap", "shape", "color", "size", "number", "where", "where"]):
        case "swap" if len(clauses) > 1:
            other = rng.choice([i for i in range(len(clauses)) if i != index])
            name = rng.choice(["color", "size", "shape", "number"])
            mine, theirs = getattr(clause, name), getattr(clauses[other], name)
            clauses[index], clauses[other] = (
                clause._replace(**{name: theirs}),
                clauses[other]._replace(**{name: mine}),
            )
        case "shape":
            clauses[index] = clause._replace(shape=rng.choice(world.SHAPES))
        case "color" if clause.color:
            clauses[index] = clause._replace(color=rng.choice(list(world.COLORS)))
        case "size" if clause.size:
            clauses[index] = clause._replace(size=rng.choice(list(world.SIZES)))
        case "number" if not description.relation and not description.place:
            others = sum(other.number for other in clauses) - clause.number
            clauses[index] = clause._replace(number=rng.randint(1, world.MOST_THINGS - others))
        case "where" if description.relation:
            return replace(description, relation=rng.choice(list(world.RELATIONS)))
        case "where" if description.place:
            return replace(description, place=rng.choice(list(world.PLACES)))
    return replace(description, clauses=tuple(clauses))


def _said(description: world.Description) -> bool:
    """Whether a training caption may say so."""
    return not any((clause.color, clause.shape) in world.HELD_OUT for clause in description.clauses)


def seen(scenes: Sequence[world.Scene], vq: ShapesVQ, rng: random.Random) -> Tensor:
    """Pictures [B, 3, SIZE, SIZE] of the scenes, half of them after the tokenizer, the others a little disturbed."""
    pixels = render(scenes)
    chosen = torch.tensor([rng.random() < 0.5 for _ in scenes])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pixels[chosen] = vq.decode(vq.encode(pixels[chosen]))
    others = (~chosen).nonzero().flatten()
    amount = 0.03 * torch.rand(len(others), 1, 1, 1)
    shade = 1 + 0.06 * torch.randn(len(others), 3, 1, 1)
    pixels[others] = (pixels[others] * shade + amount * torch.randn_like(pixels[others])).clamp(0, 1)
    return pixels


def loss_of(reward: DualEncoder, examples: Sequence[Example], vq: ShapesVQ, rng: random.Random) -> Tensor:
    """Mean loss in nats: captions choose among 2B pictures, these among 2B captions, and near misses come before far.

    Without the last, a picture with one fault and one with three would be equally wrong.
    """
    scenes = [[e.scene for e in examples], [e.near_scene for e in examples], [e.far_scene for e in examples]]
    pixels = seen([scene for each in scenes for scene in each], vq, rng)
    captions = [e.caption for e in examples] + [e.near_caption for e in examples]
    with torch.autocast("cpu", torch.bfloat16):
        image, text = reward.image_features(pixels), reward.text_features(captions)
    head: Any = reward.module.get_submodule("head")
    image, text = normalize(image, dim=1), normalize(text, dim=1)  # the head's maps stay the identity
    count = len(examples)
    logits = head.scale() * image[: 2 * count] @ text.T  # [2B, 2B]
    order = head.scale() * ((image[count : 2 * count] - image[2 * count :]) * text[:count]).sum(1)  # [B]
    same = torch.tensor([[a == b for b in captions] for a in captions[:count]])
    same &= ~torch.eye(count, 2 * count, dtype=torch.bool)
    target = torch.arange(count)
    choose_caption = cross_entropy(logits[:count].masked_fill(same, -1e4), target)
    twins = torch.cat([same[:, :count], torch.zeros(count, count, dtype=torch.bool)], 1)
    choose_picture = cross_entropy(logits[:, :count].T.masked_fill(twins, -1e4), target)
    return (choose_caption + choose_picture + softplus(-order).mean()) / 2


def train(*, steps: int, seed: int, vq: ShapesVQ) -> DualEncoder:
    """The trained dual encoder."""
    rng = random.Random(f"clip/{seed}")
    pools = {
        family: [p.text for p in shapes_prompts.prompts(family, count, seed=seed)] for family, count in CAPTIONS.items()
    }
    reward = DualEncoder(*small(width=128, layers=4, patch=12), name="shapes.clip", seed=seed)
    reward.module.train()
    torch.manual_seed(seed)
    frozen = {"head.image_map.weight", "head.text_map.weight"}
    moving = [(name, p) for name, p in reward.module.named_parameters() if name not in frozen]
    groups = [
        {"params": [p for _, p in moving if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for _, p in moving if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1, final_div_factor=100)
    begun, mean = time.monotonic(), 0.0
    for step in range(steps):
        families = [family for family in pools for _ in range(BATCH // 2)]
        examples = [example(rng.choice(pools[family]), family, rng) for family in families]
        loss = loss_of(reward, examples, vq, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in moving], 1.0)
        optimizer.step()
        schedule.step()
        mean += (loss.item() - mean) / min(step + 1, 50)
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {mean:.4f}, {time.monotonic() - begun:.0f} s", flush=True)
    reward.module.eval()
    return reward


def two_alternatives(reward: DualEncoder, vq: ShapesVQ, *, count: int, seed: int) -> dict[str, float]:
    """Share of test prompts, per category, whose picture scores above that of a near miss, after the tokenizer."""
    rng = random.Random(f"two/{seed}")
    right: dict[str, list[bool]] = {}
    for family in shapes_prompts.FAMILIES:
        found = shapes_prompts.prompts(f"{family}.test", count, seed=seed)
        examples = [example(prompt.text, family, rng) for prompt in found]
        with torch.no_grad():
            pixels = render([e.scene for e in examples] + [e.near_scene for e in examples])
            pixels = vq.decode(vq.encode(pixels))
            first, second = reward.score_pixels(pixels, [p.text for p in found] * 2).chunk(2)
        for prompt, better in zip(found, (first > second).tolist(), strict=True):
            right.setdefault(f"{family} {prompt.category}", []).append(better)
    return {category: sum(found) / len(found) for category, found in right.items()}


def main() -> None:
    """Trains, reports, and writes the weights in half precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for config.json and model.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--vq", type=Path, help="folder of the generator whose tokenizer to use; by default the shipped"
    )
    args = parser.parse_args()
    vq = (ShapesLlama(weights=args.vq) if args.vq else ShapesLlama()).vq
    reward = train(steps=args.steps, seed=args.seed, vq=vq)
    reward.spec = ShapesClip.spec
    reward.module.half()
    reward.save(args.out)
    reward.module.float()
    for category, share in two_alternatives(reward, vq, count=180, seed=args.seed).items():
        print(f"{category}: {share:.3f}")


if __name__ == "__main__":
    main()

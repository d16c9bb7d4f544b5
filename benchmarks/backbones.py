"""Backbones of rewards side by side: architecture and pre-training against accuracy in domain and out of it.

    OMP_NUM_THREADS=2 python benchmarks/backbones.py --pretrain 300
    python benchmarks/backbones.py timm:resnet50.a1_in1k timm:vit_base_patch16_clip_224.openai \
        --data judged.jsonl --other elsewhere.jsonl --size 224 --page backbones.html

A name is what `rwk train-reward --base` takes: `timm:NAME.TAG` with published weights, `timm:NAME` with random ones,
`timm:NAME@FILE` with those of a file, `open_clip:NAME/TAG`, or a reward with a network such as `shapes.clip`. Without
names some small models that timm has for tests are compared. `--pretrain STEPS` adds each timm model with random
weights once more, after so many steps of naming the thing in each quadrant of a rendered scene. Without `--data` the
pairs are those of `shapes.narrow`, and the other domains are its short wording and what it withholds.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import resize

from rwk.adapters import shapes_world as world
from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.shapes_render import render
from rwk.adapters.shapes_train import random_scene
from rwk.adapters.shapes_verifier import Verifier
from rwk.calibration.backbones import Row, Settings, compare
from rwk.calibration.backbones_page import write_matrix
from rwk.calibration.preference_domain import preference_domain
from rwk.calibration.probe import Domain, told
from rwk.policy_opt.prompts import Prompt, domains
from rwk.rewards.bases import load_base
from rwk.rewards.data import PreferenceDataset

SMALL = ("test_resnet", "test_convnext", "test_efficientnet", "test_vit")


def drawn(name: str, prompts: Sequence[Prompt], *, per_prompt: int, seed: int) -> Domain:
    """Pictures of the prompts by the shipped generator, and their truth."""
    generator, texts = ShapesLlama(), [prompt.text for prompt in prompts]
    rollout = generator.sample(texts, per_prompt=per_prompt, seed=seed)
    images = generator.decode(rollout.tokens)
    gold = Verifier().score(images, rollout.prompts, batch_size=64).values.numpy().astype(np.float64)
    return Domain(name, images, rollout.prompts, gold)


def built_in(options: argparse.Namespace) -> tuple[Domain, list[Domain]]:
    """What the heads learn from, and what they are judged on."""
    found = domains("shapes.narrow", train=options.train, test=options.test, seed=options.seed)
    learnt = drawn("learnt", found.train, per_prompt=4, seed=options.seed)
    return learnt, [drawn(name, held, per_prompt=8, seed=options.seed) for name, held in found.test.items()]


def read(options: argparse.Namespace) -> tuple[Domain, list[Domain]]:
    """The same of files; a third of the prompts of the first is kept for judging."""
    learnt, kept = PreferenceDataset.read(options.data).split(held_out=1 / 3, seed=options.seed)
    others = [preference_domain(path.stem, PreferenceDataset.read(path)) for path in options.other]
    return preference_domain("learnt", learnt), [preference_domain("in domain", kept), *others]


def targets(scenes: Sequence[world.Scene]) -> torch.Tensor:
    """[B, 4, 2] numbers of the colour and the shape in each quadrant, 0 where there is none."""
    found = torch.zeros(len(scenes), len(world.PLACES), 2, dtype=torch.long)
    colors, cells = list(world.COLORS), list(world.PLACES.values())
    for row, scene in zip(found, scenes, strict=True):
        for thing in scene:
            at = cells.index((thing.row, thing.column))
            row[at] = torch.tensor([colors.index(thing.color or "") + 1, world.SHAPES.index(thing.shape or "") + 1])
    return found


def pretrain(model: str, folder: Path, *, steps: int, size: int, seed: int) -> Path:
    """The file of a timm model that has learnt to name what is in each quadrant of rendered scenes."""
    backbone: Any = load_base(f"timm:{model}", image_size=size, seed=seed)
    module, kinds = backbone.module.get_submodule("backbone"), (len(world.COLORS) + 1, len(world.SHAPES) + 1)
    rng = random.Random(f"backbone/{seed}")
    torch.manual_seed(seed)
    head = torch.nn.Linear(module.num_features, len(world.PLACES) * sum(kinds))
    optimizer = torch.optim.AdamW([*module.parameters(), *head.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    module.train()
    for _ in range(steps):
        scenes = [random_scene(rng) for _ in range(64)]
        pixels = resize(render(scenes), [size, size], antialias=True)
        logits = head(module(backbone.preprocessing.normalised(pixels))).unflatten(1, (len(world.PLACES), -1))
        wanted = targets(scenes)
        parts = logits.split(kinds, dim=2)
        loss = sum(cross_entropy(part.flatten(0, 1), wanted[:, :, k].flatten()) for k, part in enumerate(parts))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
    import timm

    sized = {"img_size": size} if timm.get_pretrained_cfg(model).fixed_input_size else {}  # type: ignore[union-attr]
    whole = timm.create_model(model, **sized)  # a file of timm holds its classifier too
    state = whole.state_dict() | module.state_dict()
    path = folder / f"{model}.{steps}_steps_of_scenes" / f"scenes_{steps}.safetensors"
    path.parent.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def main() -> None:
    """Prints a line for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--data", type=Path, help="preferences to learn from; a third of the prompts is kept")
    parser.add_argument("--other", type=Path, action="append", default=[], help="preferences of another domain")
    parser.add_argument("--size", type=int, default=96, help="height and width of the input in pixels")
    parser.add_argument("--pretrain", type=int, default=0, help="steps of learning scenes")
    parser.add_argument("--train", type=int, default=300, help="prompts of the world to learn from")
    parser.add_argument("--test", type=int, default=48, help="prompts of each domain of the world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file of all numbers")
    parser.add_argument("--page", type=Path, help="file of the page with the plot")
    options = parser.parse_args()
    begun = time.monotonic()
    learnt, tests = read(options) if options.data else built_in(options)
    print(f"{len(learnt.images)} images to learn from, {time.monotonic() - begun:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        names = options.names or [*(f"timm:{model}" for model in SMALL), "shapes.clip"]
        plain = [name.removeprefix("timm:") for name in names if name.startswith("timm:") and not set(name) & set(".@")]
        for model in plain if options.pretrain else ():
            path = pretrain(model, Path(folder), steps=options.pretrain, size=options.size, seed=options.seed)
            names.append(f"timm:{model}@{path}")
            print(f"{model} has learnt scenes, {time.monotonic() - begun:.0f} s", flush=True)
        backbones: dict[str, Any] = {
            name: load_base(name, image_size=options.size if ":" in name else 0, seed=options.seed) for name in names
        }
        rows = compare(backbones, learnt, tests, Settings(seed=options.seed))
    show(rows)
    print(f"{time.monotonic() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n")
    if options.page:
        write_matrix(rows, options.page)


def show(rows: Sequence[Row]) -> None:
    """A line for each backbone and domain."""
    for row in rows:
        print(f"{row.architecture}, {row.training}: {row.width} features, C = {row.strength:g}")
        for name, value in row.accuracy.items():
            more = [
                f"{what} {told(held[name])}"
                for what, held in (("robustness", row.robustness), ("log T ratio", row.shift))
                if name in held
            ]
            print(f"    {name:20} {told(value, 3)}  {'  '.join(more)}")


if __name__ == "__main__":
    main()

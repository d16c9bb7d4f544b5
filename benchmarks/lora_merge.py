"""What a merge of LoRA's changes into weights of bfloat16 loses, and what changes kept beside them keep.

    python benchmarks/lora_merge.py [--steps 20] [--rate 2e-4] [--rank 16]

A tiny Janus and `shapes.llama`, both in bfloat16, learn by GRPO with LoRA. Then the changes are merged as peft merges
them, merged in float32, or kept beside the weights and saved and loaded. Printed of each way are the share of the
weights that the changes concern and that differ from where they began, and by how many nats an image, in the mean of
the absolute values, its log-probability differs from what the policy said right before, beside what was learnt. Part of
that is the rounding of activations; what the weights alone lose is told by float32 arithmetic.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from rwk.adapters.janus import JanusPro
from rwk.policy_opt import generator as generators
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.generator import Generator, Rollout
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.low_rank import Changes, put_on, taken_off
from rwk.policy_opt.prompts import read_prompts
from rwk.rewards.registry import load

IMAGES = 4


def tiny_janus() -> Generator:
    """Of weights as wide as published ones."""
    generator = JanusPro.tiny()
    with torch.no_grad():
        for number, p in enumerate(generator.module.parameters()):
            p.normal_(std=0.02, generator=torch.Generator().manual_seed(number))
        for p in generator.network.parameters():
            p.data = p.bfloat16()
    return generator


def shapes() -> Generator:
    generator: Generator = generators.load("shapes.llama")
    generator.module.bfloat16()
    return generator


def said(generator: Generator, rollout: Rollout) -> Tensor:
    """[B] nats of each image."""
    with torch.no_grad():
        return generator.logprobs(rollout).sum(1)


def merged(generator: Generator, changes: Changes, dtype: torch.dtype) -> tuple[Generator, float]:
    """A copy without changes whose weights, of that type, have taken them up; and the share of these that differ."""
    copied = copy.deepcopy(generator)
    taken_off(copied.module)
    moved = total = 0
    with torch.no_grad():
        copied.module.to(dtype)
        for name, (down, up) in changes.items():
            weight = copied.module.get_parameter(f"{name}.weight")
            before = weight.clone()
            weight += (up @ down).to(dtype)
            moved += int((weight != before).sum())
            total += weight.numel()
    return copied, moved / total


def widened(generator: Generator) -> Generator:
    """The same weights, from now on in float32, whose arithmetic adds no rounding of its own to speak of."""
    generator.module.float()
    return generator


def main() -> None:
    asked = argparse.ArgumentParser(description="What a merge into bfloat16 loses.")
    asked.add_argument("--steps", type=int, default=20)
    asked.add_argument("--rate", type=float, default=2e-4)
    asked.add_argument("--rank", type=int, default=16)
    given = asked.parse_args()
    config = Grpo(
        steps=given.steps,
        prompts_per_step=8,
        group_size=8,
        learning_rate=given.rate,
        lora_rank=given.rank,
        kl_every=0,
        save_every=0,
    )
    world = [prompt.text for prompt in read_prompts("shapes.long", count=64, seed=0)]
    cases = {
        "tiny Janus": (tiny_janus, "colorfulness", ["a red cat", "two birds", "a small dog", "a tree"] * 2),
        "shapes.llama": (shapes, "shapes.verifier", world),
    }
    for case, (make, reward, prompts) in cases.items():
        generator = make()
        prompts = list(dict.fromkeys(prompts))
        own = config if len(prompts) >= 8 else Grpo(**{**vars(config), "prompts_per_step": len(prompts)})
        with tempfile.TemporaryDirectory() as place:
            trained = grpo(own, generator, [Weighted(reward, load(reward))], prompts, out=Path(place))
            loaded = generators.load(str(trained.generator))
        rollout = make().sample(prompts[:16], per_prompt=IMAGES, seed=1)
        began, learnt = said(make(), rollout), said(generator, rollout)
        if case == "shapes.llama":  # which is always loaded in float32
            changes = taken_off(loaded.module)
            loaded.module.bfloat16()
            put_on(loaded.module, changes)
        changes = taken_off(copy.deepcopy(generator).module)
        half, share = merged(generator, changes, torch.bfloat16)
        whole, most = merged(generator, changes, torch.float32)
        print(f"{case}: {given.steps} steps of GRPO at {given.rate:g}, rank {given.rank}, {len(rollout)} images")
        print(f"  learnt: {(learnt - began).abs().mean():.5f} nats an image")
        for name, other, moves in (
            ("merged into bfloat16", half, f"{share:.1%} of the weights moved, "),
            ("merged into float32", whole, f"{most:.1%} of the weights moved, "),
            ("beside, saved and loaded", loaded, ""),
        ):
            print(f"  {name}: {moves}{(said(other, rollout) - learnt).abs().mean():.5f} nats an image off")
        plain, exact = make(), said(whole, rollout)
        lost, gained = ((said(widened(part), rollout) - exact).abs().mean() for part in (half, plain))
        print(f"  of the {gained:.5f} that float32 arithmetic tells of them the merge into bfloat16 loses {lost:.5f}")


if __name__ == "__main__":
    main()

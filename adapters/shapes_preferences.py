"""Preferences of the built-in world: pairs of the generator's own pictures, judged by the verifier.

Between whole pictures some preferences name the wrong one, as people do; between unfinished ones they tell which may
still become the better one, for a judge of their potential.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.shapes_potential import potential
from rwk.adapters.shapes_prompts import prompts
from rwk.adapters.shapes_verifier import Verifier

NOISE = 0.1
"""Share of the preferences between whole pictures that name the wrong one."""
UNFINISHED = 32
"""Codes of 64 that are drawn of an unfinished picture, which is its upper half."""


def preferences(
    folder: Path,
    *,
    seed: int = 0,
    count: int = 1500,
    per_prompt: int = 3,
    device: str = "cpu",
    family: str = "shapes.long",
) -> Path:
    """The JSONL file of preferences in the folder, made if it is not there yet.

    For each prompt of the family the shipped generator draws `per_prompt` pictures; of every two whose shares of
    facts differ, the better one is preferred, but for `NOISE` of the pairs, which are turned round. Two pictures that
    are equally right make no pair.

    Args:
        folder: gets `preferences.jsonl` (prompt, first, second, p_first) and a folder of PNG files.
        seed: of the prompts, the pictures and the noise.
        count: prompts.
        per_prompt: pictures of each.
        device: where the generator runs.
        family: of prompts; a reward that learns from `shapes.narrow` has never been told of what it withholds.
    """
    return _made(folder, family, seed, count, per_prompt, device, noise=NOISE)


def unfinished_preferences(
    folder: Path, *, seed: int = 0, count: int = 4000, per_prompt: int = 4, device: str = "cpu", drawn: int = UNFINISHED
) -> Path:
    """As `preferences`, but of pictures of which `drawn` codes are shown, and without noise.

    Preferred is the one of higher potential (`shapes_potential`): of which more of the prompt may still come true, by
    what the verifier finds in its finished part. What learns from these pairs is a judge for `policy_opt.search.parm`.
    """
    return _made(folder, "shapes.long", seed, count, per_prompt, device, drawn=drawn)


def _made(
    folder: Path,
    family: str,
    seed: int,
    count: int,
    per_prompt: int,
    device: str,
    *,
    noise: float = 0.0,
    drawn: int | None = None,
) -> Path:
    """The file of pairs of pictures, of which `drawn` codes are shown, or all."""
    out = folder / "preferences.jsonl"
    if out.exists():
        return out
    rng = random.Random(f"preferences/{seed}")
    texts = [prompt.text for prompt in prompts(family, count, seed=seed)]
    generator = ShapesLlama(device=device)
    rollout = generator.sample(texts, per_prompt=per_prompt, seed=seed)
    if drawn is None:
        images = generator.decode(rollout.tokens)
        gold = Verifier().score(images, rollout.prompts, batch_size=64).values.tolist()
    else:
        images = generator.decode_partial(rollout.tokens[:, :drawn])
        gold = potential(images, rollout.prompts, drawn).tolist()
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    names = [f"pictures/{index:05d}.png" for index in range(len(images))]
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    rows = []
    for start in range(0, len(images), per_prompt):
        group = range(start, start + per_prompt)
        for a, b in [(a, b) for a in group for b in group if a < b and gold[a] != gold[b]]:
            first, second = (a, b) if rng.random() < 0.5 else (b, a)
            right = float(gold[first] > gold[second])
            p_first = 1 - right if rng.random() < noise else right
            rows.append(
                {"prompt": rollout.prompts[a], "first": names[first], "second": names[second], "p_first": p_first}
            )
    partial = out.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(out)
    return out

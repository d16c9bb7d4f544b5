"""Preferences of the built-in world: pairs of the generator's own pictures, judged by the verifier.

Between whole pictures some preferences name the wrong one, as people do; an unfinished one is compared with a blank,
and preferred where it came out right, for a judge of potential.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.shapes_prompts import prompts
from rwk.adapters.shapes_verifier import Verifier

NOISE = 0.1
"""Share of the preferences between whole pictures that name the wrong one."""
UNFINISHED = 32
"""Codes of 64 that are drawn of an unfinished picture, which is its upper half."""
BLANK = "pictures/blank.png"
"""Of which nothing is drawn."""


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
    out = folder / "preferences.jsonl"
    if out.exists():
        return out
    rng = random.Random(f"preferences/{seed}")
    texts = [prompt.text for prompt in prompts(family, count, seed=seed)]
    generator = ShapesLlama(device=device)
    rollout = generator.sample(texts, per_prompt=per_prompt, seed=seed)
    images = generator.decode(rollout.tokens)
    gold = Verifier().score(images, rollout.prompts, batch_size=64).values.tolist()
    names = _saved(folder, images)
    rows = []
    for start in range(0, len(images), per_prompt):
        group = range(start, start + per_prompt)
        for a, b in [(a, b) for a in group for b in group if a < b and gold[a] != gold[b]]:
            first, second = (a, b) if rng.random() < 0.5 else (b, a)
            right = float(gold[first] > gold[second])
            p_first = 1 - right if rng.random() < NOISE else right
            rows.append(
                {"prompt": rollout.prompts[a], "first": names[first], "second": names[second], "p_first": p_first}
            )
    return _written(out, rows)


def unfinished_preferences(
    folder: Path, *, seed: int = 0, count: int = 4000, per_prompt: int = 4, device: str = "cpu", drawn: int = UNFINISHED
) -> Path:
    """The JSONL file of unfinished pictures, each against a blank one, made if it is not there yet.

    The unfinished picture, of which `drawn` codes are shown, is preferred where the verifier finds everything of the
    prompt in it once it is finished, and else the blank. So how much higher a reward that learns from them scores an
    unfinished picture than the blank is the log-odds that it will come out right: a judge for `policy_opt.search.parm`.
    """
    out = folder / "preferences.jsonl"
    if out.exists():
        return out
    rng = random.Random(f"unfinished/{seed}")
    generator = ShapesLlama(device=device)
    texts = [prompt.text for prompt in prompts("shapes.long", count, seed=seed)]
    rollout = generator.sample(texts, per_prompt=per_prompt, seed=seed)
    gold = Verifier().score(generator.decode(rollout.tokens), rollout.prompts, batch_size=64).values
    names = _saved(folder, generator.decode_partial(rollout.tokens[:, :drawn]))
    generator.decode_partial(rollout.tokens[:1, :0])[0].save(folder / BLANK)
    rows = []
    for name, prompt, right in zip(names, rollout.prompts, (gold == 1).tolist(), strict=True):
        first, second = (name, BLANK) if rng.random() < 0.5 else (BLANK, name)
        rows.append({"prompt": prompt, "first": first, "second": second, "p_first": float(right == (first == name))})
    return _written(out, rows)


def _saved(folder: Path, images: Sequence[Image.Image]) -> list[str]:
    """Names of the images, which are kept in the folder."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    names = [f"pictures/{index:05d}.png" for index in range(len(images))]
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    return names


def _written(out: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The file with the rows, which appears when it is whole."""
    partial = out.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(out)
    return out

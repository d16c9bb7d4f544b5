"""Images of prompts in a folder, with the manifest from which they can be scored and the recipe that drew them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from rwk.policy_opt.experiment import Drawing
from rwk.policy_opt.generator import Generator, Sampling
from rwk.policy_opt.optimize import versions, write_json
from rwk.policy_opt.prompts import FAMILIES, Prompt, read_prompts
from rwk.policy_opt.search import best_of_n
from rwk.rewards.base import Reward
from rwk.rewards.sinks import finished

_AT_ONCE = 64
"""Prompts drawn for at once, so that memory does not grow with their number."""
Row = tuple[Image.Image, int, dict[str, Any]]
"""An image, its place among those drawn of its prompt, and what the manifest says of it besides."""


def sample_to_folder(
    drawing: Drawing,
    generator: Generator,
    sampling: Sampling,
    *,
    seed: int,
    reward: Reward | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Writes `00000-0.png` and so on (prompt, place), `manifest.jsonl` (image, prompt, category), and `recipe.json`.

    With `drawing.best_of` the manifest also has the image's `score`, how many were `drawn`, and all their `scores` by
    place. Manifest and recipe of an earlier drawing in the folder are removed first, and appear when they are whole.

    Args:
        drawing: what is drawn and kept.
        generator: what draws.
        sampling: how.
        seed: of the draw.
        reward: what chooses, where `drawing.best_of` is given.
        progress: is called with how many more images are drawn, and how many there will be.

    Returns:
        The recipe, with how many prompts and images there are.
    """
    prompts = _prompts(drawing, seed)
    out = Path(drawing.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("manifest.jsonl", "recipe.json"):  # they would tell wrongly of images that are overwritten
        (out / name).unlink(missing_ok=True)
    each, images, missing = drawing.best_of or drawing.kept, 0, 0
    with finished(out / "manifest.jsonl") as path, path.open("w", encoding="utf-8") as manifest:
        for start in range(0, len(prompts), _AT_ONCE):
            part = prompts[start : start + _AT_ONCE]
            if reward is None:
                drawn = _plain(part, generator, sampling, drawing.kept, seed)
            else:
                drawn = _best(part, generator, sampling, reward, drawing, seed)
            for index, (prompt, rows) in enumerate(zip(part, drawn, strict=True), start):
                for image, place, more in rows:
                    name = f"{index:05d}-{place}.png"
                    image.save(out / name)
                    row = {"image": name, "prompt": prompt.text, "category": prompt.category, **more}
                    manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
                images += len(rows)
                missing += rows[0][2].get("scores", []).count(None)
            progress(len(part) * each, len(prompts) * each)
    recipe = {
        "generator": drawing.generator,
        "sampling": asdict(sampling),
        "seed": seed,
        "prompts": len(prompts),
        "images": images,
        "out": drawing.out,
        "versions": versions(),
    }
    if reward is not None:
        recipe |= {"best_of": drawing.best_of, "by": drawing.by, "drawn": len(prompts) * each, "unscored": missing}
    write_json(out / "recipe.json", recipe)
    return recipe


def _plain(part: list[Prompt], generator: Generator, sampling: Sampling, each: int, seed: int) -> Iterator[list[Row]]:
    """Every image that is drawn, prompt by prompt."""
    rollout = generator.sample([prompt.text for prompt in part], per_prompt=each, seed=seed, sampling=sampling)
    images = generator.decode(rollout.tokens)
    for start in range(0, len(images), each):
        yield [(image, place, {}) for place, image in enumerate(images[start : start + each])]


def _best(
    part: list[Prompt], generator: Generator, sampling: Sampling, reward: Reward, drawing: Drawing, seed: int
) -> Iterator[list[Row]]:
    """The best images by the reward, prompt by prompt, the best first."""
    n = drawing.best_of or 1
    texts = [prompt.text for prompt in part]
    for pick in best_of_n(generator, reward, texts, n, seed=seed, sampling=sampling, keep=drawing.kept).picks:
        scores = [_number(pick.scores[place]) for place in range(n)]
        yield [(one.image, one.place, {"score": _number(one.score), "drawn": n, "scores": scores}) for one in pick.kept]


def _number(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _prompts(drawing: Drawing, seed: int) -> list[Prompt]:
    """Different prompts; one that comes in several categories is of the first."""
    if drawing.prompt:
        return [Prompt(text) for text in dict.fromkeys(drawing.prompt)]
    source = drawing.prompts or "shapes.long"
    count = drawing.count or (16 if source in FAMILIES else None)
    found: dict[str, Prompt] = {}
    for prompt in read_prompts(source, count=count, seed=seed):
        found.setdefault(prompt.text, prompt)
    return list(found.values())

"""Images of prompts in a folder, with the manifest from which they can be scored and the recipe that drew them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rwk.policy_opt.experiment import Drawing
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.latent import refine
from rwk.policy_opt.optimize import versions, write_json
from rwk.policy_opt.prompts import FAMILIES, Prompt, read_prompts
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.search import Cost
from rwk.policy_opt.searches import Searcher, searcher
from rwk.rewards.base import Reward
from rwk.rewards.sinks import finished

_AT_ONCE = 64
"""Prompts drawn for at once, so that memory does not grow with their number."""


class Row(NamedTuple):
    """An image that is written."""

    image: Image.Image
    tokens: Tensor
    """[L] long."""
    place: int
    """Which of those drawn of its prompt it is."""
    more: dict[str, Any]
    """What the manifest says of it besides."""


def sample_to_folder(
    drawing: Drawing,
    generator: Generator,
    sampling: Sampling,
    *,
    seed: int,
    reward: Reward | None = None,
    refiner: Reward | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Writes `00000-0.png` and so on (prompt, place), `manifest.jsonl` (image, prompt, category), and `recipe.json`.

    With `drawing.best_of` the manifest also has the image's `score`, how many were `drawn`, and the `scores`, by place,
    of all that were finished, and the recipe what that took. Where a text is written first, such as a plan, it has the
    `text`, and of a refined image the refining reward `before` and `after`. Manifest and recipe of an earlier drawing
    in the folder are removed first, and appear when they are whole.

    Args:
        drawing: what is drawn and kept.
        generator: what draws.
        sampling: how.
        seed: of the draw.
        reward: what chooses, where `drawing.best_of` is given.
        refiner: what the kept images are refined by, if they are.
        device: where a judge that is named in `drawing` runs.
        progress: is called with how many more images are drawn, and how many there will be.

    Returns:
        The recipe, with how many prompts and images there are.
    """
    prompts = _prompts(drawing, seed)
    every = [prompt.text for prompt in prompts]
    find = searcher(drawing, generator, reward, every, seed=seed, sampling=sampling, device=device) if reward else None
    out = Path(drawing.out)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("manifest.jsonl", "recipe.json"):  # they would tell wrongly of images that are overwritten
        (out / name).unlink(missing_ok=True)
    each, images, missing, begun, costs = drawing.best_of or drawing.kept, 0, 0, 0, list[Cost]()
    with finished(out / "manifest.jsonl") as path, path.open("w", encoding="utf-8") as manifest:
        for start in range(0, len(prompts), _AT_ONCE):
            part = prompts[start : start + _AT_ONCE]
            texts = [prompt.text for prompt in part]
            if find is None:
                drawn = _plain(texts, generator, sampling, drawing.kept, seed)
            else:
                drawn, cost = _found(texts, find)
                costs.append(cost)
            if generator.spec.text:
                drawn = [_told(rows, generator) for rows in drawn]
            if refiner:
                drawn = _refined(drawn, texts, generator, refiner, drawing.trust)
            for index, (prompt, rows) in enumerate(zip(part, drawn, strict=True), start):
                for image, _, place, more in rows:
                    name = f"{index:05d}-{place}.png"
                    image.save(out / name)
                    row = {"image": name, "prompt": prompt.text, "category": prompt.category, **more}
                    manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
                images += len(rows)
                missing += rows[0].more.get("scores", []).count(None)
                begun += rows[0].more.get("drawn", 0)
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
        recipe |= {"best_of": drawing.best_of, "by": drawing.by, "drawn": begun, "unscored": missing}
        recipe |= {"search": drawing.search, "judge": drawing.judge}
        recipe["cost"] = {name: sum(getattr(cost, name) for cost in costs) for name in asdict(Cost())}
    if refiner:
        recipe |= {"refine_by": drawing.refine_by, "trust": drawing.trust}
    write_json(out / "recipe.json", recipe)
    return recipe


def _plain(texts: list[str], generator: Generator, sampling: Sampling, each: int, seed: int) -> list[list[Row]]:
    """Every image that is drawn, prompt by prompt."""
    rollout = generator.sample(texts, per_prompt=each, seed=seed, sampling=sampling)
    images = generator.decode(rollout.tokens)
    rows = [Row(image, rollout.tokens[i], i % each, {}) for i, image in enumerate(images)]
    return [rows[start : start + each] for start in range(0, len(rows), each)]


def _found(texts: list[str], find: Searcher) -> tuple[list[list[Row]], Cost]:
    """The best images by the reward, prompt by prompt, the best first, and what the search took."""
    found, drawn = find(texts), []
    for pick in found.picks:
        more = {"drawn": pick.started, "scores": [_number(pick.scores[place]) for place in sorted(pick.scores)]}
        drawn.append(
            [Row(i, tokens, place, {"score": _number(score), **more}) for place, i, tokens, score in pick.kept]
        )
    return drawn, found.cost


def _told(rows: list[Row], generator: Generator) -> list[Row]:
    """The same rows, of which the manifest tells the text that was written first."""
    texts = generator.texts(torch.stack([row.tokens for row in rows]))
    return [row._replace(more={"text": text, **row.more}) for row, text in zip(rows, texts, strict=True)]


def _refined(
    drawn: list[list[Row]], texts: list[str], generator: Generator, refiner: Reward, trust: float
) -> list[list[Row]]:
    """The same rows after one proximal step; an image that rounding left no better stays as it was."""
    rows = [(row, text) for own, text in zip(drawn, texts, strict=True) for row in own]
    tokens = torch.stack([row.tokens for row, _ in rows])
    found = refine(generator, refiner, tokens, [text for _, text in rows], trust=trust)
    better: list[Row] = []
    for index, ((row, _), image) in enumerate(zip(rows, generator.decode(found.tokens), strict=True)):
        before, after = found.before[index].item(), found.after[index].item()
        more = row.more | {"before": _number(before), "after": _number(max(before, after))}
        kept = row._replace(image=image, tokens=found.tokens[index]) if after > before else row
        better.append(kept._replace(more=more))
    remaining = iter(better)
    return [[next(remaining) for _ in own] for own in drawn]


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

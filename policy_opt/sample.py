"""Images of prompts in a folder, with the manifest from which they can be scored and the recipe that drew them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rwk.policy_opt.experiment import Drawing
from rwk.policy_opt.generator import Generator, Sampling
from rwk.policy_opt.prompts import FAMILIES, Prompt, read_prompts

_AT_ONCE = 64
"""Prompts drawn for at once, so that memory does not grow with their number."""


def sample_to_folder(
    drawing: Drawing,
    generator: Generator,
    sampling: Sampling,
    *,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes `00000-0.png` and so on (prompt, image), `manifest.jsonl` (image, prompt, category), and `recipe.json`.

    Returns:
        The recipe, with how many prompts and images there are.
    """
    prompts = _prompts(drawing, seed)
    out = Path(drawing.out)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for start in range(0, len(prompts), _AT_ONCE):
        part = prompts[start : start + _AT_ONCE]
        rollout = generator.sample(
            [prompt.text for prompt in part], per_prompt=drawing.per_prompt, seed=seed, sampling=sampling
        )
        for row, image in enumerate(generator.decode(rollout.tokens)):
            index, place = divmod(row, drawing.per_prompt)
            name = f"{start + index:05d}-{place}.png"
            image.save(out / name)
            rows.append({"image": name, "prompt": part[index].text, "category": part[index].category})
        progress(len(part) * drawing.per_prompt)
    (out / "manifest.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    recipe = {
        "generator": drawing.generator,
        "sampling": asdict(sampling),
        "seed": seed,
        "prompts": len(prompts),
        "images": len(rows),
        "out": drawing.out,
    }
    (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    return recipe


def _prompts(drawing: Drawing, seed: int) -> list[Prompt]:
    if drawing.prompt:
        return [Prompt(text) for text in dict.fromkeys(drawing.prompt)]
    source = drawing.prompts or "shapes.long"
    count = drawing.count or (16 if source in FAMILIES else None)
    return list(dict.fromkeys(read_prompts(source, count=count, seed=seed)))

"""Prompts to draw from: families that are built in, and files."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rwk.rewards.readable import text_of

if TYPE_CHECKING:
    from PIL import Image

    from rwk.calibration.counterparts import Counterparts

FAMILIES = {
    "shapes.long": "rwk.adapters.shapes_prompts:prompts",
    "shapes.long.test": "rwk.adapters.shapes_prompts:prompts",
    "shapes.short": "rwk.adapters.shapes_prompts:prompts",
    "shapes.short.test": "rwk.adapters.shapes_prompts:prompts",
    "shapes.narrow": "rwk.adapters.shapes_prompts:prompts",
    "shapes.narrow.test": "rwk.adapters.shapes_prompts:prompts",
    "shapes.narrow.short": "rwk.adapters.shapes_prompts:prompts",
    "shapes.narrow.color": "rwk.adapters.shapes_prompts:prompts",
    "shapes.narrow.shape": "rwk.adapters.shapes_prompts:prompts",
    "shapes.narrow.number": "rwk.adapters.shapes_prompts:prompts",
    "shapes.narrow.relation": "rwk.adapters.shapes_prompts:prompts",
}
"""Family -> `module:function(family, count, *, seed, held_out)`."""

WITHHELD = {
    "held-out colour": "color",
    "held-out shape": "shape",
    "held-out number": "number",
    "held-out relation": "relation",
}
"""Domain -> part of a narrow family whose prompts all name what the family itself never does."""

GOLD = {"shapes": "shapes.verifier"}
"""World -> the reward that tells the truth about its prompts."""

PICTURES = {"shapes": "rwk.adapters.shapes_scenes:pictures"}
"""World -> `module:function(prompts, *, seed)` that gives an image for each prompt in which all of it holds."""

COUNTERPARTS = {"shapes": "rwk.adapters.shapes_counterparts:counterparts"}
"""World -> `module:function(prompts, *, seed)` that gives the rows of `calibration.counterparts.Counterparts`."""


class Prompt(NamedTuple):
    """A prompt, and the category that it is counted under ("" for none)."""

    text: str
    category: str = ""


def read_prompts(source: str, *, count: int | None = None, seed: int = 0, held_out: bool = False) -> list[Prompt]:
    """Prompts of a family or a file.

    Args:
        source: a family of `FAMILIES`, or a file: a prompt a line (.txt), or JSONL or CSV with a column `prompt`, and
            perhaps `category` or `tag`.
        count: how many; a file is cut to them, and gives all by default. A family gives 64 by default.
        seed: of a family's draw.
        held_out: of a family, only prompts with combinations that it otherwise never holds.

    Raises:
        ValueError: for an unknown family, or a file without prompts; a bad row, or other bytes than UTF-8, is named by
            its line.
    """
    if source in FAMILIES:
        module, _, function = FAMILIES[source].partition(":")
        drawn = getattr(importlib.import_module(module), function)(source, count or 64, seed=seed, held_out=held_out)
        return [Prompt(*prompt) for prompt in drawn]
    path = Path(source)
    if not path.is_file():
        came = f"the folder {source!r}" if path.is_dir() else f"{source!r}, where no file is"
        raise ValueError(f"prompts must be a file or one of {', '.join(FAMILIES)}, got {came}; correct the path.")
    prompts = _rows(path)
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one a line, or rows with a column `prompt`.")
    return prompts[:count]


def gold_of(source: str) -> str | None:
    """Name of the reward that tells the truth about a family's prompts; None where nobody knows it."""
    return GOLD.get(source.split(".")[0]) if source in FAMILIES else None


def pictures_of(source: str, prompts: Sequence[Prompt], *, seed: int = 0) -> list[Image.Image] | None:
    """An image for each of a family's prompts in which all of it holds; None where nobody can make them."""
    if source not in FAMILIES or (world := source.split(".")[0]) not in PICTURES:
        return None
    module, _, function = PICTURES[world].partition(":")
    made: list[Image.Image] = getattr(importlib.import_module(module), function)([p.text for p in prompts], seed=seed)
    return made


def counterparts_of(source: str, prompts: Sequence[Prompt], *, seed: int = 0) -> Counterparts:
    """Images for a family's prompts that differ in one known thing; none where nobody can make them."""
    from rwk.calibration.counterparts import Counterparts, Detailed, Edited, Grouped

    if source not in FAMILIES or (world := source.split(".")[0]) not in COUNTERPARTS:
        return Counterparts()
    module, _, function = COUNTERPARTS[world].partition(":")
    made = getattr(importlib.import_module(module), function)([prompt.text for prompt in prompts], seed=seed)
    edited, grouped, detailed = made
    return Counterparts(
        [Edited(*row) for row in edited], [Grouped(*row) for row in grouped], [Detailed(*row) for row in detailed]
    )


def _rows(path: Path) -> list[Prompt]:
    with text_of(path), path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            rows = list(enumerate(csv.DictReader(file), 2))
        elif path.suffix in (".jsonl", ".json"):
            rows = [(line, _json(path, line, text)) for line, text in enumerate(file, 1) if text.strip()]
        else:
            return [Prompt(text.strip()) for text in file if text.strip()]
    for line, row in rows:
        if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise ValueError(f"{path}, line {line} needs a text `prompt`, got {row!r:.80}; mend or remove that row.")
    return [Prompt(row["prompt"], str(row.get("category") or row.get("tag") or "")) for _, row in rows]


def _json(path: Path, line: int, text: str) -> dict[str, str]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}, line {line} is not JSON ({error}); mend or remove that row.") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {line} must be an object, got {text.strip()!r:.80}; mend or remove that row.")
    return row


class Domains(NamedTuple):
    """Prompts to learn from, and sets of others to be judged on, by name."""

    train: list[Prompt]
    test: dict[str, list[Prompt]]
    watch: list[Prompt] = []  # noqa: RUF012 (never changed)
    """Others again, of the kind that is learnt from, to look at meanwhile."""


def domains(
    source: str,
    *,
    train: int,
    test: int,
    seed: int,
    watch: int = 0,
    judged: Mapping[str, list[Prompt]] | None = None,
) -> Domains:
    """Prompts of a source to learn from, others to be judged on, and others again to look at meanwhile.

    A family is judged on prompts of its own that it does not learn from (`in domain`), on the other wording (`out of
    domain`), and on combinations that no prompt to learn from holds (`held out`); a narrow family also on a colour, a
    shape, a number and a relation that it never names. Of a file every fifth prompt, `test` at most, is kept for
    judging, and every fifth of the others, `watch` at most, for looking.

    Args:
        judged: what it is judged on instead, by domain; the source is then for learning and looking alone, but for
            prompts that are judged on.
    """
    if judged:
        return _beside(source, judged, train=train, seed=seed, watch=watch)
    if source in FAMILIES and source.removesuffix(".test").endswith(".narrow"):
        family = source.removesuffix(".test")
        own = read_prompts(f"{family}.test", count=test + watch)
        return Domains(
            read_prompts(source, count=train, seed=seed),
            {
                "in domain": own[:test],
                "out of domain": read_prompts(f"{family}.short", count=test),
                "held out": read_prompts(f"{family}.test", count=test, held_out=True),
            }
            | {name: read_prompts(f"{family}.{part}", count=test) for name, part in WITHHELD.items()},
            own[test:],
        )
    if source in FAMILIES:
        world, wording = source.removesuffix(".test").rsplit(".", 1)
        other = f"{world}.{'short' if wording == 'long' else 'long'}"
        own = read_prompts(f"{world}.{wording}.test", count=test + watch)
        return Domains(
            read_prompts(source, count=train, seed=seed),
            {
                "in domain": own[:test],
                "out of domain": read_prompts(other, count=test),
                "held out": read_prompts(f"{world}.{wording}.test", count=test, held_out=True),
            },
            own[test:],
        )
    prompts = list(dict.fromkeys(read_prompts(source)))
    if len(prompts) < 5:
        raise ValueError(
            f"{source} must hold at least 5 different prompts, got {len(prompts)}; one in 5 is for judging."
        )
    held = prompts[::5][:test]
    rest = [prompt for prompt in prompts if prompt not in held]
    watched = rest[::5][:watch] if watch else []
    return Domains([prompt for prompt in rest if prompt not in watched][:train], {"in domain": held}, watched)


def _beside(source: str, judged: Mapping[str, list[Prompt]], *, train: int, seed: int, watch: int) -> Domains:
    """Prompts of a source to learn from and to look at, none of which is judged on."""
    texts = {prompt.text for prompts in judged.values() for prompt in prompts}

    def others(prompts: Sequence[Prompt]) -> list[Prompt]:
        return [prompt for prompt in dict.fromkeys(prompts) if prompt.text not in texts]

    if source in FAMILIES:
        spare = domains(source, train=1, test=watch + len(texts), seed=seed).test["in domain"] if watch else []
        return Domains(others(read_prompts(source, count=train, seed=seed)), dict(judged), others(spare)[:watch])
    free = others(read_prompts(source))
    watched = free[::5][:watch] if watch else []
    rest = [prompt for prompt in free if prompt not in watched][:train]
    if not rest:
        raise ValueError(f"{source} must hold a prompt that is not judged on, got none; add prompts to learn from.")
    return Domains(rest, dict(judged), watched)

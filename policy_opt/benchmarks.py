"""Benchmarks of a generator: scores by category, over several seeds, with the recipe that they depend on."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor

from rwk.calibration.statistics import Interval
from rwk.policy_opt.evaluate import accuracy, clustered, draw
from rwk.policy_opt.experiment import Evaluation
from rwk.policy_opt.generator import Generator, Sampling
from rwk.policy_opt.optimize import GOLD, JUDGED_SEED, versions, write_json
from rwk.policy_opt.prompts import Prompt, gold_of, read_prompts
from rwk.rewards.base import Reward
from rwk.rewards.sinks import finished

BENCHMARKS = {
    "shapes.long": ("shapes.long.test", False),
    "shapes.long.held_out": ("shapes.long.test", True),
    "shapes.short": ("shapes.short.test", False),
    "shapes.short.held_out": ("shapes.short.test", True),
}
"""Benchmark -> the family of its prompts, and whether each of them holds a combination that is never learnt from."""
SIMILARITY = "similarity"
FEATURE = "Pearson correlation of two images' mean RGB over an 8x8 grid, each channel about its own mean"
"""What `similarity` means; 1 for equal images."""
_GRID = 8
_AT_ONCE = 256
"""Images drawn at once, so that memory does not grow with their number."""


class Benchmark(NamedTuple):
    """Prompts to draw, and the reward that tells the truth about them."""

    name: str
    prompts: list[Prompt]
    gold: str | None
    """None where nobody knows the truth."""

    def digest(self) -> str:
        """SHA-256 of the prompts and their categories, in order."""
        return hashlib.sha256(json.dumps(self.prompts, ensure_ascii=False).encode()).hexdigest()


def benchmark(name: str, count: int | None = None) -> Benchmark:
    """A benchmark of `BENCHMARKS`, always with the same prompts, or one of a file's.

    Args:
        name: a name, or a file as `prompts.read_prompts` takes it; a prompt that comes twice counts once.
        count: how many prompts, from the beginning; 60 of a name and all of a file by default.

    Raises:
        ValueError: for what is neither, and where there are not as many.
    """
    if name in BENCHMARKS:
        family, held_out = BENCHMARKS[name]
        return Benchmark(name, read_prompts(family, count=count or 60, held_out=held_out), gold_of(family))
    if not Path(name).is_file():
        raise ValueError(f"a benchmark is a file of prompts or one of {', '.join(BENCHMARKS)}, got {name!r}.")
    found: dict[str, Prompt] = {}
    for prompt in read_prompts(name):
        found.setdefault(prompt.text, prompt)
    if count is not None and len(found) < count:
        raise ValueError(f"{name} holds {len(found)} different prompts, got {count} to take; ask for fewer.")
    return Benchmark(name, list(found.values())[:count], None)


@dataclass(frozen=True)
class Measured:
    """What a benchmark found."""

    benchmark: Benchmark
    scores: dict[str, Tensor]
    """Name -> [P, S, n] float32 of P prompts, S seeds and n images, NaN where there is none. `GOLD` is the share of
    images of which every fact holds."""
    similarity: Tensor
    """[P] mean over all pairs of a prompt's images, of any seed; NaN for one image."""

    def interval(self, name: str, category: str | None = None) -> Interval:
        """Mean of a score, or of the similarity, with its 95 % interval clustered by prompt; over a category if named.

        Where nothing has a score, mean and bounds are NaN.
        """
        rows = [i for i, p in enumerate(self.benchmark.prompts) if category in (None, p.category)]
        values = (self.similarity[:, None] if name == SIMILARITY else self.scores[name].flatten(1))[rows]
        if values.isnan().all():
            return Interval(math.nan, math.nan, math.nan, 0)
        return clustered(values)

    def categories(self) -> list[str]:
        """Those of the prompts, in their order; none for prompts without."""
        return [name for name in dict.fromkeys(prompt.category for prompt in self.benchmark.prompts) if name]

    def document(self) -> dict[str, Any]:
        """What `result.json` holds of the benchmark."""
        found: dict[str, Any] = {}
        for name in [*self.scores, SIMILARITY]:
            found[name] = _fields(self.interval(name))
            if name != SIMILARITY:
                values = self.scores[name]
                found[name]["seeds"] = [_number(mean) for mean in values.transpose(0, 1).flatten(1).nanmean(1).tolist()]
                found[name]["missing"] = int(values.isnan().sum())
            found[name]["categories"] = {c: _fields(self.interval(name, c)) for c in self.categories()}
        return {"prompts": len(self.benchmark.prompts), "prompts_sha256": self.benchmark.digest(), "scores": found}


def measure(
    generator: Generator,
    chosen: Benchmark,
    rewards: Mapping[str, Reward],
    *,
    images: int,
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Draws the benchmark's prompts with every seed, and scores the images by the rewards and by its gold.

    Args:
        generator: what is measured.
        chosen: the benchmark.
        rewards: by name; that of the benchmark's gold must be among them, if it has one.
        images: of each prompt and seed.
        seeds: of the draws.
        sampling: the generator's own by default.
        progress: is called with how many more images are done.
    """
    scores: dict[str, list[Tensor]] = {name: [] for name in rewards}
    similar = []
    step = max(1, _AT_ONCE // images)
    for start in range(0, len(chosen.prompts), step):
        part = chosen.prompts[start : start + step]
        looks, found = [], []
        for seed in seeds:
            drawn = draw(generator, part, rewards, per_prompt=images, seed=seed, sampling=sampling)
            looks.append(torch.stack([features(row) for row in drawn.images]))  # [p, n, D]
            found.append(drawn.scores)
            progress(len(part) * images)
        for name, parts in scores.items():
            parts.append(torch.stack([one[name] for one in found], 1))  # [p, S, n]
        similar.append(similarity(torch.cat(looks, 1)))
    whole = {name: torch.cat(parts) for name, parts in scores.items()}
    if chosen.gold is not None:
        whole = {GOLD: accuracy(whole[chosen.gold], rewards[chosen.gold].spec.high), **whole}
    return Measured(chosen, whole, torch.cat(similar))


def features(images: Sequence[Image.Image]) -> Tensor:
    """[B, 192] what `FEATURE` compares: mean RGB over an 8x8 grid, less each channel's mean over the image."""
    rows = [functional.adaptive_avg_pool2d(pil_to_tensor(image.convert("RGB")).float(), _GRID) for image in images]
    cells = torch.stack(rows).flatten(2)  # [B, 3, 64]
    return (cells - cells.mean(2, keepdim=True)).flatten(1)


def similarity(looks: Tensor) -> Tensor:
    """[P] mean cosine over all pairs of a group's features [P, n, D]; NaN for groups of one.

    Images without any contrast are alike to each other (1) and unlike all others (0).
    """
    groups, n, _ = looks.shape
    if n < 2:
        return torch.full([groups], math.nan)
    norm = looks.norm(dim=2, keepdim=True)
    flat = (norm < 1e-3).float()  # [P, n, 1], in steps of 8 bits
    unit = torch.cat([looks / norm.clamp(min=1e-3) * (1 - flat), flat], 2)
    cosine = unit @ unit.transpose(1, 2)  # [P, n, n]
    above = torch.ones(n, n).triu(1).bool()
    return cosine[:, above].mean(1)


def evaluate(
    config: Evaluation,
    generator: Generator,
    chosen: Sequence[Benchmark],
    rewards: Mapping[str, Reward],
    sampling: Sampling,
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[list[Measured], dict[str, Any]]:
    """Measures a generator on benchmarks.

    Returns:
        What was found, and the document for `result.json`: the recipe, and every benchmark's scores.
    """
    for one in chosen:
        if one.gold is None and not config.rewards:
            raise ValueError(f"{one.name} has no reward that tells the truth; name one to judge by with --reward.")
    seeds = [JUDGED_SEED + seed + place for place in range(config.seeds)]
    total = sum(len(one.prompts) for one in chosen) * len(seeds) * config.images
    found = []
    for one in chosen:
        judges = {name: rewards[name] for name in dict.fromkeys([*([one.gold] if one.gold else []), *config.rewards])}
        found.append(
            measure(
                generator,
                one,
                judges,
                images=config.images,
                seeds=seeds,
                sampling=sampling,
                progress=lambda more: progress(more, total),
            )
        )
    used = dict.fromkeys(itertools.chain.from_iterable(one.scores for one in found))
    recipe = {
        "generator": config.generator,
        "generator_source": generator.spec.source,
        "weights_sha256": weights_digest(generator),
        "sampling": asdict(sampling),
        "seeds": seeds,
        "images": config.images,
        "rewards": {name: _card(rewards[name]) for name in used if name in rewards},
        "similarity": FEATURE,
        "interval": "95 %, t, clustered by prompt, over all seeds",
        "versions": versions(),
    }
    return found, {"recipe": recipe, "benchmarks": {one.benchmark.name: one.document() for one in found}}


def write(out: Path, found: Sequence[Measured], document: Mapping[str, Any]) -> None:
    """Writes `scores.jsonl`, a line an image, and last `result.json`; each appears when it is whole."""
    out.mkdir(parents=True, exist_ok=True)
    seeds = document["recipe"]["seeds"]
    with finished(out / "scores.jsonl") as path, path.open("w", encoding="utf-8") as file:
        for one in found:
            for i, prompt in enumerate(one.benchmark.prompts):
                for (s, seed), place in itertools.product(enumerate(seeds), range(document["recipe"]["images"])):
                    values = {name: _number(scores[i, s, place].item()) for name, scores in one.scores.items()}
                    row = {"benchmark": one.benchmark.name, **prompt._asdict(), "seed": seed, "place": place, **values}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_json(out / "result.json", document)


def weights_digest(generator: Generator) -> str:
    """SHA-256 over the names and values of everything that can be trained: which weights a result is of."""
    digest = hashlib.sha256()
    for name, value in sorted(generator.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tabulated(found: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of a table: a line for each benchmark and each of its categories, a column for each score."""
    names = [*dict.fromkeys(name for one in found for name in one.scores), SIMILARITY]
    lines = []
    for one in found:
        for category in [None, *one.categories()]:
            cells = [_cell(one, name, category) for name in names]
            lines.append(["  " + category if category else one.benchmark.name, *cells])
    return ["benchmark", *names], lines


def _cell(one: Measured, name: str, category: str | None) -> str:
    """A mean and its interval, such as "0.52 (0.48 to 0.56)"."""
    if name != SIMILARITY and name not in one.scores:
        return ""
    mean, low, high, _ = one.interval(name, category)
    if math.isnan(mean):
        return "none"
    return f"{mean:.3g}" + ("" if math.isnan(low) else f" ({low:.3g} to {high:.3g})")


def _fields(found: Interval) -> dict[str, Any]:
    return {
        "mean": _number(found.mean),
        "low": _number(found.low),
        "high": _number(found.high),
        "prompts": found.clusters,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _card(reward: Reward) -> dict[str, Any]:
    spec = reward.spec
    return {"name": spec.name, "unit": spec.unit, "low": _number(spec.low), "high": _number(spec.high)}

"""Benchmarks of a generator: scores by category, over several seeds, with the recipe that they depend on."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwk.calibration.storage import Binding
from rwk.policy_opt.evaluate import GOLD, JUDGED_SEED, accuracy, draw
from rwk.policy_opt.experiment import Evaluation
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.judging import Judges, own_scores
from rwk.policy_opt.measured import ANY, Measured, number
from rwk.policy_opt.optimize import versions, write_json
from rwk.policy_opt.policy import ALONE, World
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.similarity import FEATURE, features, similarity
from rwk.policy_opt.suites import Benchmark
from rwk.rewards.base import Reward
from rwk.rewards.sinks import finished

_AT_ONCE = 256
"""Images drawn at once, so that memory does not grow with their number."""


def measure(
    generator: Generator,
    chosen: Benchmark,
    rewards: Mapping[str, Reward],
    *,
    images: int,
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    within: Mapping[str, Reward] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Draws the benchmark's prompts with every seed, and scores the images by the rewards and by its gold.

    Args:
        generator: what is measured.
        chosen: the benchmark.
        rewards: by name; the one that is the benchmark's gold must be among them.
        images: of each prompt and seed.
        seeds: of the draws.
        sampling: the generator's own by default.
        within: the rewards of the benchmark's rules by name, or the one that answers its questions.
        progress: is called with how many more images are done.
    """
    made = [chosen.gold] if chosen.gold and not chosen.truth() else []
    scores: dict[str, list[Tensor]] = {name: [] for name in [*made, *rewards]}
    similar, answers = [], []
    each = max(1, _AT_ONCE // images)
    for start in range(0, len(chosen.prompts), each):
        part = chosen.of(range(start, min(start + each, len(chosen.prompts))))
        looks, found, replies = [], [], []
        for seed in seeds:
            drawn = draw(generator, part.prompts, rewards, per_prompt=images, seed=seed, sampling=sampling)
            made_of, told = own_scores(drawn.images, part, within or {})
            replies.append(told)
            looks.append(torch.stack([features(row) for row in drawn.images]))  # [p, n, D]
            found.append(drawn.scores | {name: made_of for name in made})
            progress(len(part.prompts) * images)
        for name, parts in scores.items():
            parts.append(torch.stack([one[name] for one in found], 1))  # [p, S, n]
        similar.append(similarity(torch.cat(looks, 1)))
        answers += [torch.stack(of_seeds) for of_seeds in zip(*replies, strict=True)]  # [S, n, Q] each
    whole = {name: torch.cat(parts) for name, parts in scores.items()}
    return Measured(chosen, _accuracies(chosen, whole, rewards) | whole, torch.cat(similar), answers)


def _accuracies(chosen: Benchmark, scores: Mapping[str, Tensor], rewards: Mapping[str, Reward]) -> dict[str, Tensor]:
    """Which images are wholly right by a reward that tells the truth, and of GenEval which prompts have one that is."""
    truth = chosen.truth()
    if truth is None:
        return {}
    right = accuracy(scores[truth], rewards[truth].spec.high)
    if not chosen.balanced:
        return {GOLD: right}
    best = right.nan_to_num(-1).amax(2, keepdim=True).expand_as(right)
    return {GOLD: right, ANY: best.masked_fill(best < 0, math.nan)}


def evaluate(
    config: Evaluation,
    generator: Generator,
    chosen: Sequence[Benchmark],
    rewards: Sequence[Judges],
    sampling: Sampling,
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda *_: None,
    place: World = ALONE,
) -> tuple[list[Measured], dict[str, Any]]:
    """Measures a generator on benchmarks, each by its own rewards (see `judging.judges`).

    Args:
        place: the processes, which share the prompts of each benchmark.

    Returns:
        What was found, in every process, and the document for `result.json`: the recipe, and every benchmark's scores.
    """
    seeds = [JUDGED_SEED + seed + number for number in range(config.seeds)]
    parts = [one.of(place.share(len(one.prompts))) for one in chosen]
    total = sum(len(part.prompts) for part in parts) * len(seeds) * config.images
    found = []
    for one, part, by in zip(chosen, parts, rewards, strict=True):
        own = None
        if part.prompts:
            own = measure(
                generator,
                part,
                by.shown,
                images=config.images,
                seeds=seeds,
                sampling=sampling,
                within=by.within,
                progress=lambda more: progress(more, total),
            )
        found.append(Measured.joined(one, place.collect(None if own is None else own.found)))
    used = {name: reward for by in rewards for part in by for name, reward in part.items()}
    recipe = {
        "generator": config.generator,
        "generator_source": generator.spec.source,
        "weights_sha256": weights_digest(generator),
        "sampling": asdict(sampling),
        "seeds": seeds,
        "images": config.images,
        "rewards": {name: _card(reward) for name, reward in used.items()},
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
                    values = {name: number(scores[i, s, place].item()) for name, scores in one.scores.items()}
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


def _card(reward: Reward) -> dict[str, Any]:
    spec = reward.spec
    card = {"name": spec.name, "unit": spec.unit, "low": number(spec.low), "high": number(spec.high)}
    return card | {"weights_sha256": Binding.of(reward).weights_sha256}

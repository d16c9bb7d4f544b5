"""A ladder: GRPO, a harvest of the best images, fine-tuning on them, harder prompts; and again from there.

    for each climb:  GRPO on the prompts of the climb
                     draw for some of them, keep of each group what all rewards agree to be best, learn to draw it
                     go on with the hardest of the prompts, by how the run succeeded with them or by their clauses

Each part is a run of its own, in `climb-K/grpo` and `climb-K/rft`. After OpenVLThinker, Deng et al. (2025),
arXiv:2503.17352, which filters what its model wrote, begins anew from a model that was tuned on it, and asks harder
questions each time.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any, Unpack

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo, Rft
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import Progress, Trained, derived_seed, publish, read, start
from rwk.policy_opt.ladder_config import Ladder
from rwk.policy_opt.low_rank import take_over
from rwk.policy_opt.policy import World, world
from rwk.policy_opt.rft import rft
from rwk.policy_opt.run_options import Run, RunOptions
from rwk.policy_opt.settings import Optimisation
from rwk.policy_opt.watch import FILE
from rwk.rewards.permutation import INVERSE
from rwk.rewards.sinks import finished

PARTS: dict[str, Callable[..., Trained]] = {"grpo": grpo, "rft": rft}
"""What a climb consists of."""
JOINED = ("metrics.jsonl", "ledger.jsonl", FILE)
"""Files of the parts that are put together, one part after another, with their steps counted on."""
_RELATIONS = "|".join(sorted(INVERSE, key=len, reverse=True))
_BETWEEN = re.compile(rf",? and (?!that is all)|,? (?:together |along )?with |, | (?:{_RELATIONS}) ")


def ladder(
    config: Ladder,
    generator: Generator,
    rewards: Sequence[Weighted],
    prompts: Sequence[str],
    **run: Unpack[RunOptions],
) -> Trained:
    """Tunes the generator, in place and as `out/generator`; `out/metrics.jsonl` holds the updates of all parts.

    Arguments and errors are those of `grpo` and `rft`, but that seconds are refused: it ends after its climbs. The
    watched reward is looked at in the parts of GRPO. A part behind the first that finds nothing left to learn says so
    in an alarm, and the ladder goes on.
    """
    told = Run(**run)
    refuse_seconds(told.seconds)
    out, place = told.out, world(next(generator.module.parameters()).device)
    table = list(dict.fromkeys(prompts))
    least = config.harvest * config.prompts_per_step
    if len(table) < least:
        raise ValueError(f"a ladder harvests {least} different prompts, got {len(table)}; lower harvest or give more.")
    journal = start(out, place, resume=told.resume)
    if not told.resume:
        journal.forget_after(0)  # a folder with half a part, and not a line yet, is taken
    parts: list[Trained] = []
    for climb in range(config.climbs):
        settings = {"grpo": grpo_of(config, climb), "rft": harvest_of(config, climb)}
        for name, learn in PARTS.items():
            folder = out / f"climb-{climb + 1}" / name
            part = _finished_part(folder, generator)
            if part is None:
                part = learn(
                    settings[name],
                    generator,
                    rewards,
                    table,
                    out=folder,
                    sampling=told.sampling,
                    resume=(folder / "metrics.jsonl").exists(),
                    progress=_counted_on(told.progress, parts, config),
                    watched=told.watched if name == "grpo" else None,
                    later=told.later or bool(parts),
                )
                _finish_part(folder, part, parts, place)
            parts.append(part)
            _join(out, parts, place)
            if part.ended:
                return _whole(generator, out, parts, place)
        table = _harder(config, table, read(out / "ledger.jsonl"), rewards, least)
    return _whole(generator, out, parts, place)


def refuse_seconds(seconds: float | None) -> None:
    """Raises ValueError where a ladder is to end by the clock."""
    if seconds is not None:
        raise ValueError(f"a ladder ends after its climbs, got {seconds} seconds to end after; leave them out.")


def grpo_of(config: Ladder, climb: int) -> Grpo:
    """The part of GRPO of a climb."""
    given = {item.name: getattr(config, item.name) for item in fields(Grpo)}
    steps = (config.draws // config.climbs - config.harvest) * config.num_iterations
    return Grpo(**given | {"steps": steps, "seed": derived_seed(config.seed, climb, 0)})


def harvest_of(config: Ladder, climb: int) -> Rft:
    """The part of a climb that harvests and is tuned on it; what all rewards agree on is their lower bound."""
    given = {item.name: getattr(config, item.name) for item in fields(Optimisation)}
    return Rft(
        **given
        | {
            "rounds": 1,
            "prompts_per_round": config.harvest * config.prompts_per_step,
            "prompts_per_draw": config.prompts_per_step,
            "keep": config.keep,
            "epochs": config.harvest_epochs,
            "batch_size": config.harvest_batch,
            "micro_batch": min(config.micro_batch, config.harvest_batch),
            "aggregation": "lower_bound",
            "kl_every": 0,
            "stop_on_divergence": False,
            "seed": derived_seed(config.seed, climb, 1),
        }
    )


def success(rows: Sequence[Mapping[str, Any]], rewards: Sequence[Weighted]) -> dict[str, float]:
    """Prompt -> how well the run did when it last drew for it: its mean rewards, each standardised over the prompts.

    Args:
        rows: lines of a ledger.
    """
    last = {row["prompt"]: row["mean"] for row in rows}
    found = dict.fromkeys(last, 0.0)
    for part in rewards:
        known = {prompt: mean[part.name] for prompt, mean in last.items() if mean[part.name] is not None}
        spread = pstdev(known.values()) if known else 0.0
        for prompt, value in known.items():
            found[prompt] += part.weight * (value - fmean(known.values())) / spread if spread else 0.0
    return found


def clauses(prompt: str) -> int:
    """How many things the prompt sets side by side or into a relation.

    >>> clauses("a red cube to the left of a green ball"), clauses("we see a cat, a dog and two birds")
    (2, 3)
    """
    return len(_BETWEEN.split(prompt))


def _harder(
    config: Ladder, table: list[str], rows: Sequence[Mapping[str, Any]], rewards: Sequence[Weighted], least: int
) -> list[str]:
    """The hardest of the prompts, as many as the next climb is to have, in their order; the first of equals."""
    if config.harder_by == "clauses":
        ease = {prompt: -float(clauses(prompt)) for prompt in table}
    else:
        known = success(rows, rewards)
        middle = median(known.values()) if known else 0.0
        ease = {prompt: known.get(prompt, middle) for prompt in table}
    kept = sorted(table, key=ease.__getitem__)[: max(least, math.ceil(config.harder * len(table)))]
    return [prompt for prompt in table if prompt in set(kept)]


def _counted_on(progress: Progress | None, parts: Sequence[Trained], config: Ladder) -> Progress | None:
    """Tells of a part's updates as those of the whole, whose number is that of the draws until more is known."""
    before = sum(part.steps for part in parts)
    if progress is None:
        return None
    return lambda step, total, row: progress(before + step, max(config.steps, before + total), row)


def _finished_part(folder: Path, generator: Generator) -> Trained | None:
    """What a finished part left; the generator gets its weights, but where a later part has taken them further."""
    record = folder / "trained.json"
    if not record.exists():
        return None
    held = json.loads(record.read_text())
    part = Trained(**held | {name: Path(held[name]) for name in ("generator", "metrics")})
    if part.generator.exists():
        take_over(generator.module, type(generator).from_folder(part.generator).module)
    return part


def _finish_part(folder: Path, part: Trained, before: Sequence[Trained], place: World) -> None:
    """Writes down what a part cost, and removes the generator of the part before, from which nothing goes on now."""
    if place.rank == 0:
        with finished(folder / "trained.json") as path:
            path.write_text(json.dumps(asdict(part), default=str) + "\n")
        if before:
            shutil.rmtree(before[-1].generator, ignore_errors=True)
    place.wait()


def _join(out: Path, parts: Sequence[Trained], place: World) -> None:
    """Writes the files of `JOINED`, of the parts so far."""
    if place.rank == 0:
        for name in JOINED:
            before, lines = 0, []
            for part in parts:
                rows = read(part.metrics.with_name(name))
                lines += [
                    json.dumps(row | {"step": row["step"] + before, "part": part.metrics.parent.name}) + "\n"
                    for row in rows
                ]
                before += part.steps
            if lines:
                with finished(out / name) as path:
                    path.write_text("".join(lines))
    place.wait()


def _whole(generator: Generator, out: Path, parts: Sequence[Trained], place: World) -> Trained:
    """The generator as it is now, and the costs of the parts together."""
    costs = ("steps", "images_sampled", "reward_forwards", "tokens_trained", "seconds", "images_watched")
    sums = {name: sum(getattr(part, name) for part in parts) for name in (*costs, "reference_tokens")}
    tuned = publish(generator, out / "generator", place)
    return Trained(generator=tuned, metrics=out / "metrics.jsonl", processes=place.size, ended=parts[-1].ended, **sums)

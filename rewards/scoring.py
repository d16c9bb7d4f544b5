"""Scores of many image files: each is decoded once for all rewards, a bounded number ahead of the scoring."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rwk.rewards.base import Reward
from rwk.rewards.batch_size import BatchSize
from rwk.rewards.cache import Cache, Prints
from rwk.rewards.errors import RunFailed
from rwk.rewards.images import guarded
from rwk.rewards.manifest import Item, prompt_of
from rwk.rewards.opening import Opened, Opener
from rwk.rewards.precision import Precision
from rwk.rewards.ranks import Ranks
from rwk.rewards.rows import Scorer, columns, leaves
from rwk.rewards.sinks import Part, Row, merged, part_path, parts_of, write_table
from rwk.rewards.staged import PreparedReward
from rwk.rewards.summary import Summary

PIXELS = 2**26
"""A batch ends early when it holds this many pixels, 192 MB."""


def check_prompts_given(rewards: Mapping[str, Reward], items: Sequence[Item]) -> None:
    """Raises ValueError where a reward needs prompts and no image has one that can be read."""
    needing = [name for name, reward in rewards.items() if reward.spec.needs_prompt]
    if not needing:
        return
    unreadable = ""
    for item in items:
        try:
            if prompt_of(item):
                return
        except ValueError as error:
            unreadable = unreadable or f" that can be read: {error}"
    advice = "; give --prompt TEXT, --prompts FILE, or a text file beside each image (x.txt beside x.png)."
    raise ValueError(f"{', '.join(needing)} needs a prompt for every image, got none{unreadable or advice}")


@dataclass(frozen=True)
class Means:
    """How scores are computed; but for rounding and what is stated below, none of it changes them."""

    batch_size: int | None = None
    """Images that go through a network at once; None finds out. Less where the memory does not hold them."""
    workers: int = 2
    """Threads that read, decode and prepare images."""
    precision: Precision = "published"
    """What networks compute in where `Reward.casts`; `Reward.drift` says what that changes. In float32, as in that
    which is published, a network computes as it was loaded."""
    cache: Path | None = None
    """Folder of embeddings and scores that are not computed again."""


def score_items(items: Iterable[Item], rewards: Mapping[str, Reward], means: Means = Means()) -> Iterator[list[Row]]:
    """Rows of the items in their order, a batch at a time.

    Of decoded images no more than a batch and `2 * workers` are held at once; where all rewards prepare images by
    themselves none are, but up to two batches of what was prepared. An image that cannot be read, or lacks a prompt
    that a reward needs, gets no score and a note.
    """
    prints = Prints(means.precision)
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(contextlib.closing(Cache(means.cache))) if means.cache else None
        opener = Opener(leaves(rewards), cache, prints)
        scorer = Scorer(rewards, precision=means.precision, cache=cache, prints=prints)
        size = BatchSize(means.batch_size)
        stack.enter_context(guarded())
        pool = stack.enter_context(ThreadPoolExecutor(means.workers))
        stack.callback(pool.shutdown, cancel_futures=True)
        batch: list[Opened] = []
        pixels = 0

        def window() -> int:
            return 2 * means.workers + (size.now if opener.prepares_all else 0)

        for opened in opener.ahead(items, pool, window):
            batch.append(opened)
            pixels += opened.image.width * opened.image.height if opened.image else 0
            del opened  # or it would be held while the next are awaited
            if len(batch) >= size.now or pixels >= PIXELS:
                yield _rows(batch, scorer, size)
                batch, pixels = [], 0
        if batch:
            yield _rows(batch, scorer, size)


def prefer_fast(rewards: Mapping[str, Reward]) -> None:
    """Has all rewards that know a faster way to prepare images take it; `Preprocess` says what that changes.

    A file is decoded once, at a size that is enough for all of them, so a fast score may move by as little again where
    rewards of other sizes are in the run.
    """
    for reward in leaves(rewards).values():
        if isinstance(reward, PreparedReward):
            reward.prefer_fast()


def prefer_stored(rewards: Mapping[str, Reward]) -> list[str]:
    """Has all rewards that can read images as their files store them, see `View`; gives the names of the others."""
    found = leaves(rewards)
    return [name for name, each in found.items() if not (isinstance(each, PreparedReward) and each.prefer_stored())]


def _rows(batch: list[Opened], scorer: Scorer, size: BatchSize) -> list[Row]:
    """The rows of a batch, which is halved as often as the memory does not hold it."""
    begun = time.perf_counter()
    try:
        rows = scorer.rows(batch)
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            raise RunFailed(f"{batch[0].item.image} alone does not fit into the memory: {error}") from error
        size.ran_out(len(batch))
    else:
        size.took(len(batch), time.perf_counter() - begun)
        return rows
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(batch) // 2
    return _rows(batch[:half], scorer, size) + _rows(batch[half:], scorer, size)


def score_files(
    items: Sequence[Item],
    rewards: Mapping[str, Reward],
    *,
    ranks: Ranks,
    out: Path | None = None,
    resume: bool = False,
    strict: bool = False,
    keep: int | None = None,
    means: Means = Means(),
    advance: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Scores the items in all processes, writes them to `out` in their order, and says in the first what they come to.

    Rows are kept beside `out` as they are made, so that a run that was killed can go on.

    Args:
        items: the same in every process.
        rewards: by the names of their columns.
        ranks: the processes.
        out: .jsonl, .csv or .parquet.
        resume: go on with the rows beside `out`.
        strict: raise RunFailed at the first image without a score.
        keep: rows that the summary holds; None for all.
        means: how scores are computed.
        advance: is told how many more rows are done.
    """
    specs = columns(rewards)
    summary = Summary(specs, keep=keep)
    with _place_of_parts(out, ranks) as place:
        with contextlib.closing(_part(place, items, _settings(rewards, means), ranks, resume)) as part:
            advance(part.rows)
            mine = itertools.islice(items, ranks.rank + part.rows * ranks.world, None, ranks.world)
            for rows in score_items(mine, rewards, means):
                part.write(rows)
                if strict:
                    _refuse_gaps(rows)
                advance(len(rows))
        ranks.wait()
        if ranks.rank == 0:
            rows_of_all = summary.watch(merged(_all_parts(place, ranks.world), len(items)))
            if out:
                write_table(out, list(specs), rows_of_all)
            else:
                collections.deque(rows_of_all, maxlen=0)
            for path in parts_of(place):
                path.unlink()
        ranks.wait()
    return summary


@contextlib.contextmanager
def _place_of_parts(out: Path | None, ranks: Ranks) -> Iterator[Path]:
    """The path that the names of the parts start with: that of the result, or one in a folder that goes again."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rwk-")) if ranks.rank == 0 else ""
        yield Path(ranks.from_first(folder), "scores")


def _settings(rewards: Mapping[str, Reward], means: Means) -> dict[str, Any]:
    """What must be the same for a run to go on, besides the images."""
    prepared = [repr(leaf.preparation) for leaf in leaves(rewards).values() if isinstance(leaf, PreparedReward)]
    return {"columns": list(columns(rewards)), "prepared": prepared, "precision": means.precision}


def _part(place: Path, items: Sequence[Item], settings: dict[str, Any], ranks: Ranks, resume: bool) -> Part:
    others = [path for path in parts_of(place) if not path.name.endswith(f"-of-{ranks.world}")]
    if resume and others:
        raise ValueError(
            f"--resume needs as many processes as the run that was stopped, got {ranks.world} and {others[0]}; "
            f"start as many, or leave --resume out to start over."
        )
    if ranks.rank == 0:
        for path in others:
            path.unlink()
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([str(item.image), item.prompt]).encode())
    head = {**settings, "images": digest.hexdigest()}
    return Part(part_path(place, ranks.rank, ranks.world), head, resume=resume)


def _all_parts(place: Path, world: int) -> list[Path]:
    paths = [part_path(place, rank, world) for rank in range(world)]
    for path in paths:
        if not path.is_file():
            raise RunFailed(f"{path} is missing; give an --out on a disk that every process can write to.")
    return paths


def _refuse_gaps(rows: list[Row]) -> None:
    for row in rows:
        for column, value in row.scores.items():
            if value is None:
                why = row.notes.get(column, "no reason given")
                raise RunFailed(f"{row.image} got no score from {column}: {why}; --strict forbids that.")

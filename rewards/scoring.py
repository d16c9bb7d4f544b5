"""Scores of many image files: each is decoded once for all rewards, a bounded number ahead of the scoring."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rwk.rewards.base import Reward, RewardSpec
from rwk.rewards.errors import RunFailed
from rwk.rewards.images import Picture, guarded, read
from rwk.rewards.manifest import Item, prompt_of
from rwk.rewards.ranks import Ranks
from rwk.rewards.sinks import Part, Row, merged, part_path, parts_of, write_table
from rwk.rewards.summary import Summary

PIXELS = 2**26
"""A batch ends early when it holds this many pixels, 192 MB."""

Opened = tuple[Item, str, Picture]
"""An item, its prompt and its picture."""


def columns(rewards: Mapping[str, Reward]) -> dict[str, RewardSpec]:
    """The columns of the rewards, each after its parts where it is a combination."""
    found: dict[str, RewardSpec] = {}
    for name, reward in rewards.items():
        found |= {part: spec for part, spec in columns(reward.parts()).items() if part not in found}
        found[name] = reward.spec
    return found


def check_prompts_given(rewards: Mapping[str, Reward], items: Sequence[Item]) -> None:
    """Raises ValueError where a reward needs prompts and no image has one."""
    needing = [name for name, reward in rewards.items() if reward.spec.needs_prompt]
    if needing and not any(prompt_of(item) for item in items):
        raise ValueError(
            f"{', '.join(needing)} needs a prompt for every image, got none; give --prompt TEXT, --prompts FILE, "
            f"or a text file beside each image (x.txt beside x.png)."
        )


def score_items(
    items: Iterable[Item], rewards: Mapping[str, Reward], *, batch_size: int = 16, workers: int = 2
) -> Iterator[list[Row]]:
    """Rows of the items in their order, a batch at a time.

    No more than `batch_size + 2 * workers` decoded images are held at once. An image that cannot be read, or lacks a
    prompt that a reward needs, gets no score and a note.
    """
    with guarded(), ThreadPoolExecutor(workers) as pool:
        try:
            batch: list[Opened] = []
            pixels = 0
            for opened in _ahead(items, pool, 2 * workers):
                batch.append(opened)
                image = opened[2].image
                pixels += image.width * image.height if image else 0
                del opened, image  # or they would be held while the next are awaited
                if len(batch) == batch_size or pixels >= PIXELS:
                    yield _rows(batch, rewards)
                    batch, pixels = [], 0
            if batch:
                yield _rows(batch, rewards)
        finally:
            pool.shutdown(cancel_futures=True)


def _ahead(items: Iterable[Item], pool: ThreadPoolExecutor, window: int) -> Iterator[Opened]:
    """The items opened, in order, at most `window` of them before they are asked for."""
    waiting: collections.deque[Future[Opened]] = collections.deque()
    rest = iter(items)
    while True:
        waiting.extend(pool.submit(_open, item) for item in itertools.islice(rest, window - len(waiting)))
        if not waiting:
            return
        yield waiting.popleft().result()


def _open(item: Item) -> Opened:
    return item, prompt_of(item), read(item.image)


def _rows(batch: list[Opened], rewards: Mapping[str, Reward]) -> list[Row]:
    names = columns(rewards)
    rows = [
        Row(
            str(item.image),
            prompt,
            dict.fromkeys(names),
            dict.fromkeys(names, picture.note) if picture.note else {},
            picture.note,
        )
        for item, prompt, picture in batch
    ]
    for name, reward in rewards.items():
        for prompted in (True, False):
            chosen = [i for i, (_, prompt, picture) in enumerate(batch) if picture.image and bool(prompt) is prompted]
            if prompted or not reward.spec.needs_prompt:
                _score_into(rows, chosen, name, reward, batch, prompted)
                continue
            for i in chosen:
                rows[i].notes[name] = "needs a prompt"
    return rows


def _score_into(
    rows: list[Row], chosen: list[int], name: str, reward: Reward, batch: list[Opened], prompted: bool
) -> None:
    """Puts the scores of the chosen images and their notes into the rows."""
    images = [image for i in chosen if (image := batch[i][2].image)]
    if not images:
        return
    prompts = [batch[i][1] for i in chosen] if prompted else []
    try:
        scored = list(reward.score_parts(images, prompts, batch_size=len(images)).items())
    except Exception as error:
        where = rows[chosen[0]].image
        raise RunFailed(
            f"{name} failed on {len(images)} images from {where} on: {type(error).__name__}: {error}"
        ) from error
    scored[-1] = (name, scored[-1][1])  # the whole goes by the name that it was asked for by
    for column, (values, notes) in scored:
        for i, value, said in zip(chosen, values.tolist(), notes, strict=True):
            rows[i].scores[column] = _shortest(value) if math.isfinite(value) else None
            if said or math.isinf(value):
                rows[i].notes[column] = said or f"the score is {value}"


def _shortest(value: float) -> float:
    """The float of the fewest digits that stands for the same float32."""
    return float(str(np.float32(value)))


def score_files(
    items: Sequence[Item],
    rewards: Mapping[str, Reward],
    *,
    ranks: Ranks,
    out: Path | None = None,
    resume: bool = False,
    strict: bool = False,
    keep: int | None = None,
    batch_size: int = 16,
    workers: int = 2,
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
        batch_size: images that go through a network at once.
        workers: threads that read images.
        advance: is told how many more rows are done.
    """
    specs = columns(rewards)
    summary = Summary(specs, keep=keep)
    with _place_of_parts(out, ranks) as place:
        with contextlib.closing(_part(place, items, list(specs), ranks, resume)) as part:
            advance(part.rows)
            mine = itertools.islice(items, ranks.rank + part.rows * ranks.world, None, ranks.world)
            for rows in score_items(mine, rewards, batch_size=batch_size, workers=workers):
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


def _part(place: Path, items: Sequence[Item], names: list[str], ranks: Ranks, resume: bool) -> Part:
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
    head = {"columns": names, "images": digest.hexdigest()}
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

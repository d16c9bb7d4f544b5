"""`rwk score`: a table for people, rows for programs, and a page with pictures."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from rwk.cli.console import note, progress, show
from rwk.cli.options import Common, options
from rwk.rewards.configs import PLAIN_REWARDS, Scoring
from rwk.rewards.errors import RunFailed

if TYPE_CHECKING:
    from rwk.rewards.summary import Summary

SHOWN = 40
"""Images up to which the table shows every one."""


@click.command()
@options(Scoring)
def command(config: Scoring, common: Common) -> dict[str, Any] | None:
    """Scores images with one or several rewards; larger is better everywhere.

    IMAGES are files, folders (searched below), globs in quotes, or a manifest (.jsonl, .csv, .parquet) with the columns
    image and prompt. Prompts come from the manifest, --prompt, --prompts, or a text file beside each image (x.txt
    beside x.png); an empty one is none. An image that cannot be read gets no score and a note. Of an animation the
    first frame counts.
    """
    begun = time.monotonic()
    _check_writable(config)
    with progress("loading"):
        import torch

        from rwk.rewards.manifest import gather
        from rwk.rewards.precision import kept_precision
        from rwk.rewards.ranks import own_cores, own_device, ranks
        from rwk.rewards.registry import load_all
        from rwk.rewards.rows import leaves
        from rwk.rewards.scoring import Means, check_prompts_given, prefer_fast, prefer_stored, score_files
        from rwk.rewards.sinks import parts_of

        torch.manual_seed(common.seed)
        gathered = gather(config.images, prompt=config.prompt, prompts=config.prompts)
        rewards = load_all(
            config.rewards or PLAIN_REWARDS, precision=config.precision, device=own_device(common.device)
        )
        if config.preprocessing == "fast":
            prefer_fast(rewards)
        kept = prefer_stored(rewards) if config.preprocessing == "stored" else []
        if kept:
            note(f"--preprocessing stored changes nothing of {', '.join(kept)}: images are upright and on white there.")
        check_prompts_given(rewards, gathered.items)
        for told in kept_precision(leaves(rewards), config.precision):
            note(told)
        if config.resume and config.out and not parts_of(config.out):
            note(f"no rows of a run that was stopped lie beside {config.out}; starting with the first image.")
    with ranks() as group, progress("scoring", -(-len(gathered.items) // group.world)) as advance:
        summary = score_files(
            gathered.items,
            rewards,
            ranks=group,
            out=config.out,
            resume=config.resume,
            strict=config.strict,
            keep=None if common.json and not config.out else SHOWN,
            means=Means(config.batch_size, config.workers or own_cores(), config.precision, config.cache),
            advance=advance,
        )
    if group.rank > 0:
        return None
    return _finish(config, common, summary, gathered.skipped, group.world, time.monotonic() - begun)


def _check_writable(config: Scoring) -> None:
    """Raises before the work where its result could not be kept."""
    for path in (config.out, config.report):
        if path is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise ValueError(
                f"{path} must be a file that can be written, got a folder or no right to write; name another."
            )


def _finish(
    config: Scoring, common: Common, summary: Summary, skipped: int, processes: int, seconds: float
) -> dict[str, Any]:
    """Prints the table and the notes, writes the report, and gives the document for `--json`."""
    if not common.json:
        from rwk.cli.score_table import score_tables

        for part in score_tables(summary):
            show(part)
    if skipped:
        note(f"{skipped} files skipped that are hidden or not named like images.")
    if summary.faults:
        first = summary.faults[0]
        why = first.fault or "; ".join(f"{column}: {said}" for column, said in first.notes.items())
        note(
            f"{summary.unreadable} of {summary.images} images could not be read and {summary.unscored} lack a score; "
            f"the first is {first.image}: {why}."
        )
    if config.report:
        from rwk.rewards.report import save
        from rwk.rewards.score_page import score_page

        save(config.report, score_page(summary))
    for path in (config.out, config.report):
        if path and not common.json:
            note(f"wrote {path}")
    if summary.unreadable == summary.images:
        raise RunFailed(f"none of the {summary.images} images could be read.")
    return _document(config, common, summary, skipped, processes, seconds)


def _document(
    config: Scoring, common: Common, summary: Summary, skipped: int, processes: int, seconds: float
) -> dict[str, Any]:
    return {
        "images": summary.images,
        "unreadable": summary.unreadable,
        "unscored": summary.unscored,
        "skipped_files": skipped,
        "rewards": {column.name: column.document() for column in summary.columns},
        "rows": None if config.out else [row.record() for row in summary.rows],
        "out": config.out,
        "report": config.report,
        "processes": processes,
        "seed": common.seed,
        "device": common.device,
        "seconds": round(seconds, 3),
    }

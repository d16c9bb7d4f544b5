"""`rwk train-reward`: a reward that has learned from preferences, ready to be named."""

from __future__ import annotations

import math
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rwk.cli.console import is_main, note, progress, show, table
from rwk.cli.options import Common, options
from rwk.cli.preferences import preferences
from rwk.rewards.configs import RewardTraining
from rwk.rewards.presets import PRESETS

if TYPE_CHECKING:
    from rwk.rewards.data import PreferenceDataset
    from rwk.rewards.held_out import HeldOut
    from rwk.rewards.intervals import Interval


@click.command()
@options(RewardTraining)
def command(config: RewardTraining, common: Common) -> dict[str, Any]:
    """Trains a reward on preferences, by default on those of the built-in world.

    DATA is a .json, .jsonl, .csv or .parquet file with the columns first and second (images; paths are taken from the
    file's folder), prompt, and p_first: the share that prefers the first, 0.5 for a tie. The columns votes_first,
    votes_second and ties may stand in its place, and weight beside it. Or it is a file of a published set, which its
    columns tell or FORMAT:FILE names: pickapic, hpdv2 (or hpdv2.votes), hpdv3 (or hpdv3.confident), imagereward,
    genai_bench, genai_arena, mjbench, mmrb2, richhf (or richhf.aesthetics, .artifact, .misalignment) and evalmuse.
    Or it is shapes.preferences or shapes.unfinished, of the built-in world: the latter compares half-drawn pictures
    with a blank, and prefers those that came out right, for a judge of `rwk sample --search parm`.

    A trained judge or published reward is kept as what training moved and the name of its base, which has to be had
    wherever the folder goes; the others are kept whole.
    """
    from rwk.rewards.bases import check_base
    from rwk.rewards.home import home
    from rwk.rewards.saving import check_name, keep
    from rwk.rewards.train import train_reward

    began = time.monotonic()
    if config.preset is not None:
        config = RewardTraining.of(**_given(config))
        preset = PRESETS[config.preset or ""]
        note(f"preset {config.preset}, after {preset.source}; not copied: {preset.differs}")
    check_name(config.name)
    check_base(config.base)  # before preferences are made or read, which may take minutes
    out = config.out or home("runs", "train-reward", config.name)
    data = _data(config, common)
    train, valid = data.split(held_out=config.held_out, seed=common.seed)
    note(f"training on {len(train)} pairs, {len(valid)} are held out; the run is in {out}")
    with progress("training", config.epochs * math.ceil(len(train) / config.batch_size)) as advance:
        report = train_reward(
            config,
            train,
            valid,
            out=out,
            resume=config.resume,
            seed=common.seed,
            device=common.device,
            advance=advance,
        )
    kept = keep(report.folder, config.name) if is_main() else home("rewards", config.name)
    rows = [_row("base " + config.base, report.base), _row(config.name, report.held_out)]
    columns = ("held-out pairs", "accuracy", "95 % interval", "loss", "temperature")
    show(table(columns, rows, numbers=columns[1:]))
    if report.step == 0:
        note("no step lowered the held-out loss: what is kept is the base, rescaled; more preferences may help")
    show(f"{config.name} is kept in {kept}; name it with --reward {config.name}.")
    return {
        "reward": config.name,
        "folder": kept,
        "run": out,
        "data": {
            "name": data.name,
            "train_pairs": len(train),
            "held_out_pairs": len(valid),
            "left_out": data.omissions.document(),
        },
        "base": {"name": config.base} | report.base.document(),
        "held_out": report.held_out.document(),
        "step": report.step,
        "steps": report.steps,
        "processes": report.processes,
        "seconds": round(time.monotonic() - began, 1),
    }


def _given(config: RewardTraining) -> dict[str, Any]:
    """The settings that the command line names."""
    source = click.get_current_context().get_parameter_source
    names = (item.name for item in fields(config))
    return {name: getattr(config, name) for name in names if source(name) is not ParameterSource.DEFAULT}


def _data(config: RewardTraining, common: Common) -> PreferenceDataset:
    """The preferences that were named, or the world's; what is made on first use, the first process makes."""
    from accelerate import PartialState

    with PartialState(cpu=common.device == "cpu").main_process_first():
        return preferences(config.data, common.seed)


def _row(name: str, found: HeldOut) -> list[str]:
    accuracy, interval = _shown(found.accuracy)
    temperature = "none" if found.temperature.status == "uninformative" else f"{found.temperature.value:.3g}"
    return [name, accuracy, interval, f"{found.nll.mean:.3f}", temperature]


def _shown(interval: Interval | None) -> tuple[str, str]:
    if interval is None:
        return "all tied", ""
    return f"{interval.mean:.1%}", f"{interval.low:.1%} to {interval.high:.1%}"

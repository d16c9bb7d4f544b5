"""`rwk demo`: the main job once, by the commands that do it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from rwk.cli.console import note, show
from rwk.cli.options import Common, options


@dataclass(frozen=True)
class Demo:
    """Where the demo leaves its files."""

    out: Path = field(default=Path("demo"), metadata={"help": "Folder for everything that is made; emptied first."})
    small: bool = field(
        default=False,
        metadata={
            "help": "Every step, with so little of each that nothing is learnt.",
            "switch": True,
        },
    )


SMALL = {
    "dpo": ["--rounds", "1", "--prompts-per-round", "8", "--batch-size", "8"],
    "grpo": ["--steps", "2", "--prompts-per-step", "4"],
    "optimize": ["--eval-prompts", "6", "--eval-images", "2"],
    "train-reward": ["--epochs", "1"],
}
"""What makes each step small."""


@click.command("demo")
@options(Demo)
def command(demo: Demo, common: Common) -> dict[str, Any]:
    """Score images, train a reward, and let a generator learn from it by DPO and by GRPO, in the built-in world.

    Needs no network and no data. Every step is a command that is printed before it runs.
    """
    from rwk.cli.optimize import outcome
    from rwk.policy_opt.showcase import together, write_showcase

    begun, out = time.monotonic(), demo.out
    if out.exists() and not (out / "base").is_dir() and any(out.iterdir()):
        raise ValueError(f"the demo needs a folder of its own, got {out}, which holds something else; name another.")
    shutil.rmtree(out, ignore_errors=True)
    runs = {algo.upper(): out / algo for algo in ("dpo", "grpo")}
    base = out / "base"
    for words in (
        ["sample", "--prompts", "shapes.long", "--count", "12", "--out", str(base)],
        ["score", str(base / "manifest.jsonl"), "--reward", "shapes.verifier", "--reward", "colorfulness"]
        + ["--out", str(out / "scores.jsonl"), "--report", str(out / "scores.html")],
        ["train-reward", "--name", "custom"],
        *(["optimize", "--algo", a.lower(), "--reward", "custom", "--out", str(folder)] for a, folder in runs.items()),
    ):
        if demo.small:
            words += [word for step in words if step in SMALL for word in SMALL[step]]
        _run([*words, "--seed", str(common.seed), "--device", common.device])
    links = {"Scores of the first images": "scores.html"} | {name: f"{f.name}/page.html" for name, f in runs.items()}
    where = write_showcase(runs, out, links)
    results = together(runs)
    show(outcome(results))
    seconds = time.monotonic() - begun
    note(f"done in {seconds / 60:.1f} minutes; open {where} to see it.")
    return {"results": results, "page": where, "seconds": seconds}


def _run(words: list[str]) -> None:
    from rwk.cli.main import rwk

    note("$ rwk " + " ".join(words))
    rwk.main(words, prog_name="rwk", standalone_mode=False)

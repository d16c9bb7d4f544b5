"""The settings of every command of the reward side. Importing them loads no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from rwk.rewards.presets import OF_MODE, PRESETS

TABLES = (".jsonl", ".csv", ".parquet")
"""Kinds of file that hold rows, by their ending."""

PLAIN_REWARDS = ("colorfulness", "contrast", "exposure", "sharpness", "noise", "compressibility.jpeg")
"""Rewards that need neither weights nor a prompt; they score where none is named."""


@dataclass(frozen=True)
class Scoring:
    """What `rwk score` is told."""

    images: tuple[str, ...] = field(
        metadata={
            "argument": True,
            "help": "Files, folders (searched below), globs in quotes, or a manifest: .jsonl, .csv or .parquet.",
        }
    )
    rewards: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "A reward to score with; give it several times for several. [default: those without weights]",
            "option": "--reward",
            "short": "-r",
            "metavar": "NAME",
        },
    )
    prompt: str | None = field(default=None, metadata={"help": "The prompt of every image."})
    prompts: Path | None = field(
        default=None,
        metadata={
            "help": "Prompts: a text file with one line per image, or a .jsonl, .csv or .parquet with the columns "
            "image and prompt."
        },
    )
    out: Path | None = field(default=None, metadata={"help": "File for the scores: .jsonl, .csv or .parquet."})
    report: Path | None = field(default=None, metadata={"help": "File for a page with pictures: .html."})
    resume: bool = field(
        default=False, metadata={"help": "Go on where an earlier run with this --out was stopped.", "switch": True}
    )
    strict: bool = field(
        default=False, metadata={"help": "Fail where any image cannot be read or scored.", "switch": True}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Images that go through a network at once. [default: what is fastest here]"}
    )
    workers: int | None = field(
        default=None, metadata={"help": "Threads that read and prepare images. [default: one a core]"}
    )
    preprocessing: Literal["exact", "fast", "stored"] = field(
        default="exact",
        metadata={
            "help": "exact: as the official code prepares images, but upright by EXIF and, if transparent, on white; "
            "fast: a grey level or so apart; stored: as exact, but not turned and without alpha, as most official code "
            "takes files."
        },
    )
    precision: Literal["published", "float32", "bfloat16", "float16"] = field(
        default="published",
        metadata={"help": "What networks compute in, heads apart; `rwk info` tells what that changes."},
    )
    cache: Path | None = field(
        default=None, metadata={"help": "Folder of embeddings and scores to keep, and to take from where they are."}
    )

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("--prompt and --prompts exclude each other, got both; leave one out.")
        if self.out is not None and self.out.suffix.lower() not in TABLES:
            raise ValueError(f"--out must end in .jsonl, .csv or .parquet, got {self.out}.")
        if self.report is not None and self.report.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--report must end in .html, got {self.report}.")
        if self.resume and self.out is None:
            raise ValueError("--resume needs the --out of the run that was stopped, got none.")


@dataclass(frozen=True)
class RewardTraining:
    """What `rwk train-reward` is told."""

    data: Path | None = field(
        default=None,
        metadata={"argument": True, "metavar": "[DATA]", "help": "Preferences: a file, or FORMAT:FILE."},
    )
    base: str = field(
        default="shapes.clip",
        metadata={
            "help": "What to start from: a reward, NAME@PATH, its folder, scratch:REWARD (that shape with random "
            "weights), timm:MODEL or open_clip:MODEL.",
            "metavar": "NAME",
        },
    )
    name: str = field(default="custom", metadata={"help": "What the trained reward is called from then on."})
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Settings that a published reward was trained with, where no option says otherwise.",
            "choices": tuple(PRESETS),
        },
    )
    head: Literal["own", "likelihood", "scalar"] = field(
        default="own",
        metadata={"help": "Of a judge: the log-odds of its answer (its own), or a linear map of its last state."},
    )
    mode: Literal["probe", "lora", "full"] = field(
        default="full",
        metadata={"help": "Train the head alone, the head and low-rank changes of the network, or everything."},
    )
    out: Path | None = field(
        default=None, metadata={"help": "Folder of the run. [default: $RWK_HOME/runs/train-reward/NAME]"}
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on where an earlier run in this folder was stopped.", "switch": True}
    )
    held_out: float = field(default=0.2, metadata={"help": "Share of the prompts that is held out."})
    epochs: int = field(default=8, metadata={"help": "Passes over the preferences, if training is not stopped early."})
    batch_size: int = field(default=64, metadata={"help": "Pairs of one step, over all processes."})
    micro_batch: int = field(default=64, metadata={"help": "Pairs that a process puts through the network at once."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "Largest learning rate. [default: probe 1e-3, lora 3e-4, full 3e-5]"}
    )
    schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine", metadata={"help": "How the learning rate falls after it rose; to 0, but for constant."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's, on matrices alone."})
    beta2: float = field(default=0.98, metadata={"help": "AdamW's second."})
    max_norm: float = field(default=0.0, metadata={"help": "Longest gradient of a step; 0: any."})
    warmup: float = field(default=0.1, metadata={"help": "Share of the steps over which the learning rate rises."})
    freeze: float = field(
        default=0.0,
        metadata={
            "help": "First layers of every tower that mode full leaves alone, and its embeddings: how many, or below 1 "
            "which share."
        },
    )
    eval_every: int = field(default=0, metadata={"help": "Steps between looks at the held-out pairs; 0: an epoch."})
    patience: int = field(default=3, metadata={"help": "Looks without a lower held-out loss until training stops."})
    checkpoint_every: int = field(default=50, metadata={"help": "Steps between checkpoints."})
    lora_rank: int = field(default=8, metadata={"help": "Rank of the changes in mode lora."})
    image_size: int = field(
        default=0, metadata={"help": "Pixels along a side of what timm:MODEL or open_clip:MODEL sees; 0: its own."}
    )
    precision: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "What the network computes in; weights and losses stay in float32."}
    )

    @classmethod
    def of(cls, preset: str | None = None, **settings: Any) -> Self:
        """The settings given, where they are silent those of a preset, and then the defaults.

        A preset's learning rate and frozen layers go with its mode; in another mode they are the defaults.

        >>> RewardTraining.of("hpsv2", epochs=3).learning_rate
        3.3e-06
        >>> RewardTraining.of("hpsv2", mode="lora").learning_rate is None
        True
        """
        found = dict(PRESETS[preset].settings) if preset in PRESETS else {}
        if settings.get("mode", found.get("mode")) != found.get("mode"):
            found = {name: value for name, value in found.items() if name not in OF_MODE}
        return cls(**{**found, **settings, "preset": preset})

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "micro_batch": 1, "eval_every": 0, "patience": 1, "image_size": 0}
        for name, bound in (least | {"checkpoint_every": 1, "lora_rank": 1}).items():
            if getattr(self, name) < bound:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} must be at least {bound}, got {getattr(self, name)}.")
        if not 0 < self.held_out < 1:
            raise ValueError(f"--held-out must lie between 0 and 1, got {self.held_out}.")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"--warmup must lie in 0..1, got {self.warmup}.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be above 0, got {self.learning_rate}.")
        for name in ("weight_decay", "max_norm", "freeze"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"--beta2 must lie in 0..1 without 1, got {self.beta2}.")
        if self.freeze and self.mode != "full":
            raise ValueError(f"--freeze is for --mode full, got {self.freeze} for --mode {self.mode}; leave it out.")
        if self.preset not in (None, *PRESETS):
            raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {self.preset!r}.")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise ValueError(f"--name must be letters, digits, dots, dashes and underscores, got {self.name!r}.")

"""`rwk compare`: which of several rewards agrees best with people, and whether that is more than chance."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwk.cli.console import note, plain, progress, show, table
from rwk.cli.options import Common, options
from rwk.cli.preferences import preferences

if TYPE_CHECKING:
    from rwk.calibration.compare import Comparison, Difference, Standing
    from rwk.calibration.statistics import Interval
    from rwk.rewards.data import PreferenceDataset

SHOWN = {
    "accuracy": "accuracy (a margin of 0 is half a hit)",
    "accuracy_ties_wrong": "accuracy, margins of 0 wrong",
    "accuracy_ties_excluded": "accuracy without margins of 0",
    "nll": "negative log-likelihood, nats a pair",
    "smooth_ece": "smooth calibration error",
}
OF_REWARDS = ("reward", "measure", "value", "95 % interval", "prompts", "19 in 20 perfect below")
OF_PAIRS = ("rewards", "measure", "value", "95 % interval", "prompts", "p", "Holm", "differ", "detectable")
EXPLAINED = (
    "Of every two rewards: the first less the second, and Kendall's tau-b between their rankings of a prompt's images. "
    "p: sign flips of whole prompts; Holm: p adjusted for all pairs of rewards; differ: pairs where just one is right; "
    "detectable: the true difference that so many prompts find 4 times in 5. Likelihood and calibration are those of "
    "one temperature a reward, fitted on other prompts."
)


@dataclass(frozen=True)
class Comparing:
    """What `rwk compare` is told."""

    given: tuple[str, ...] = field(
        metadata={
            "argument": True,
            "metavar": "REWARD REWARD... [DATA]",
            "help": "Names of rewards, folders, or expressions, and a file of preferences or FORMAT:FILE.",
        }
    )
    out: Path | None = field(default=None, metadata={"help": "File to keep the comparison in: .json or .html."})
    batch_size: int = field(default=16, metadata={"help": "Images that go through a network at once."})
    draws: int = field(default=2000, metadata={"help": "Bootstrap draws behind the intervals."})

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("draws", 100)):
            if getattr(self, name) < least:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} must be at least {least}, got {getattr(self, name)}.")
        if self.out is not None and self.out.suffix not in (".json", ".html"):
            raise ValueError(f"--out must end in .json or .html, got {self.out}.")
        if len(self.rewards) < 2 or len(self._files) > 1:
            said = f"{len(self.rewards)} rewards and {len(self._files)} files"
            raise ValueError(f"compare needs at least 2 rewards and at most one DATA, got {said}; name another reward.")

    @property
    def _files(self) -> list[str]:
        from rwk.rewards.formats import is_data

        return [one for one in self.given if is_data(one)]

    @property
    def rewards(self) -> list[str]:
        """The names that are no data."""
        return [one for one in self.given if one not in self._files]

    @property
    def data(self) -> Path | None:
        """The data that was named."""
        return next(map(Path, self._files), None)


@click.command()
@options(Comparing)
def command(config: Comparing, common: Common) -> dict[str, Any]:
    """Compares rewards on the same preferences: accuracy, likelihood and calibration of each, and of every two the
    paired difference with its interval, its p-value adjusted for all pairs of rewards, and what could have been found.

    A REWARD is what `rwk list` names, a folder, or an expression. DATA is as in `rwk train-reward`, by default the
    built-in world's; pairs that any of the rewards was trained on there are left out. Intervals cover 95 % and know
    which pairs share a prompt.
    """
    begun = time.monotonic()
    with progress("loading"):
        from rwk.calibration.compare import Scored, compare
        from rwk.calibration.pairs import score_preferences
        from rwk.calibration.statistics import FEW_CLUSTERS
        from rwk.rewards.expression import is_expression
        from rwk.rewards.registry import REWARDS, load

        for name in config.rewards:
            if REWARDS.knows(name) or not is_expression(name):
                REWARDS.kind_of(name)  # a wrong name is told before anything takes its time
        data = _unseen(preferences(config.data, common.seed), config.rewards)
    scores: dict[str, Scored] = {}
    for name in dict.fromkeys(config.rewards):
        with progress(f"scoring with {name}") as advance:
            reward = load(name, device=common.device)
            scores[name] = (name, *score_preferences(reward, data, batch_size=config.batch_size, advance=advance))
    with progress("comparing"):
        found = compare(data, [scores[name] for name in config.rewards], draws=config.draws, seed=common.seed)
    show(table(OF_REWARDS, _of_rewards(found.standings), numbers=OF_REWARDS[2:]))
    show("")
    show(table(OF_PAIRS, _of_pairs(found.differences), numbers=OF_PAIRS[2:]))
    show(f"{_counted(found)}. {EXPLAINED}")
    if found.prompts < FEW_CLUSTERS:
        note(f"there are only {found.prompts} prompts, so every interval deserves doubt")
    document = {
        **found.document(),
        "data": {"name": data.name, "sha256": data.digest(), "pairs": len(data)}
        | {"left_out": data.omissions.document()},
        "draws": config.draws,
        "seed": common.seed,
        "seconds": round(time.monotonic() - begun, 1),
    }
    if config.out:
        _keep(config.out, found, document)
        note(f"kept in {config.out}")
    return document


def _unseen(data: PreferenceDataset, names: Sequence[str]) -> PreferenceDataset:
    """The pairs that none of the rewards was trained on."""
    from rwk.calibration.calibrate import unseen
    from rwk.calibration.card import card_of

    kept = [True] * len(data)
    for name in dict.fromkeys(names):
        rest = {id(row) for row in unseen(data, card_of(name))}
        if len(rest) < len(data):
            note(f"{name} was trained on {len(data) - len(rest)} of the {len(data)} pairs, which are left out for all")
        kept = [held and id(row) in rest for held, row in zip(kept, data, strict=True)]
    return data.take(place for place, held in enumerate(kept) if held)


def _of_rewards(standings: Sequence[Standing]) -> list[list[str]]:
    rows = []
    for one in standings:
        for name, words in SHOWN.items():
            measure = one.measures[name]
            perfect = "" if measure.null95 is None else _number(measure.null95)
            rows.append([one.name if name == "accuracy" else "", words, *_cells(measure.interval), perfect])
    return rows


def _of_pairs(differences: Sequence[Difference]) -> list[list[str]]:
    rows = []
    for one in differences:
        test = one.accuracy
        chance = [f"{test.p:.2g}", f"{one.p_adjusted:.2g}", str(test.discordant), _number(test.detectable)]
        rows.append([f"{one.first}, {one.second}", "accuracy", *_cells(test.difference), *chance])
        rows.append(["", "likelihood loss", *_cells(one.nll), *[""] * 4])
        rows.append(["", "Kendall's tau-b", *_cells(one.agreement), *[""] * 4])
    return rows


def _counted(found: Comparison) -> str:
    said = f"{found.pairs} pairs of {found.prompts} prompts"
    if found.ties or found.unscored:
        said += f" ({found.ties} ties and {found.unscored} unscored left out)"
    return said


def _keep(path: Path, found: Comparison, document: dict[str, Any]) -> None:
    """Writes the document, or the page with the same tables."""
    import json

    from rwk.rewards.report import page, save, section
    from rwk.rewards.report import table as html_table

    if path.suffix == ".json":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(plain(document), ensure_ascii=False, allow_nan=False, indent=2) + "\n")
        return
    body = [
        section("Each reward", [html_table(OF_REWARDS, _of_rewards(found.standings), numbers=OF_REWARDS[2:])]),
        section("Differences", [html_table(OF_PAIRS, _of_pairs(found.differences), numbers=OF_PAIRS[2:])]),
    ]
    title = "Comparison of " + ", ".join(one.name for one in found.standings)
    save(path, page(title, body, lead=f"{_counted(found)} of {document['data']['name']}. {EXPLAINED}"))


def _cells(interval: Interval) -> list[str]:
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    bounds = f"{interval.low:.4g} to {interval.high:.4g}" if known else "none"
    return [_number(interval.mean), bounds, str(interval.clusters)]


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "none"

"""The page of a reward card: a table of all probes, plots, and the images behind what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from rwk.calibration.card import RewardCard
from rwk.calibration.card_plots import sections
from rwk.calibration.probe import Finding, Result
from rwk.rewards.report import Figure, figures, number, page, save, section, table

SIDE = 192
"""Least pixels along a side of a shown image."""
SHOWN = 8
"""Probes whose images are shown, failures first."""
HEADS = ("probe", "status", "value", "95 % interval", "prompts", "reason")
_ORDER = ("fail", "warn", "pass", "skip")


def write_page(card: RewardCard, results: Sequence[Result], path: Path) -> None:
    """Writes one HTML file that needs nothing else."""
    counts = ", ".join(f"{count} {status}" for status, count in card.counts.items())
    scale = card.scale["value"]
    lead = (
        f"{counts}. Margins are in units of {number(scale) if scale else 'no'} score, {card.scale['name']}. "
        f"Intervals cover 95 %, clustered by prompt; those behind the gates of a family cover all of it at once."
    )
    body = [
        section("Probes", [table(HEADS, rows(results), numbers=HEADS[2:5])]),
        *sections(results),
        *_worst(results),
        section("Definitions", [table(("probe", "measures", "gate"), [_defined(result) for result in results])]),
        section("Data", [_data(card)], lead=f"weights {card.reward['weights_sha256'][:16]}, seed {card.probe_seed}"),
    ]
    if card.limits:
        body.append(section("Limits", [table(("what this card does not say",), [[limit] for limit in card.limits])]))
    save(path, page(f"Reward card: {card.reward['name']}", body, lead=lead))


def rows(results: Sequence[Result]) -> list[list[str]]:
    """A line for each probe, in the order of `HEADS`, what is worst first."""
    return [
        [
            result.probe.name,
            result.status,
            f"{result.value.mean:.3g}" if result.value else "",
            f"{result.value.low:.3g} to {result.value.high:.3g}" if result.value else "",
            str(result.value.clusters) if result.value else "",
            result.reason,
        ]
        for result in sorted(results, key=lambda result: _ORDER.index(result.status))
    ]


def _defined(result: Result) -> list[str]:
    return [result.probe.name, result.probe.definition, result.probe.gate]


def _data(card: RewardCard) -> str:
    heads = ("name", "source", "images", "prompts", "pairs", "unscored")
    return table(heads, [[str(domain[head]) for head in heads] for domain in card.probed_on], numbers=heads[2:])


def _worst(results: Sequence[Result]) -> Iterator[str]:
    """A section with the images behind the probes that failed or warned."""
    found = sorted((r for r in results if r.findings), key=lambda result: _ORDER.index(result.status))[:SHOWN]
    if found:
        pieces = [
            figures(f"{r.probe.name}: {r.status}", [f for one in r.findings for f in _pair(one)], size=SIDE, columns=6)
            for r in found
        ]
        yield section("Worst findings", pieces, lead="Before and after, with the score of each.")


def _pair(found: Finding) -> list[Figure]:
    change = found.score_after - found.score_before
    return [
        Figure(enlarged(found.before), number(found.score_before), [found.prompt], f"before: {found.prompt}"),
        Figure(
            enlarged(found.after),
            f"{number(found.score_after)} ({change:+.3g})",
            [found.what, found.prompt_after if found.prompt_after != found.prompt else ""],
            f"after: {found.what}",
        ),
    ]


def enlarged(image: Image.Image) -> Image.Image:
    """The image, its pixels repeated until it has `SIDE` a side, so that a browser does not blur a small one."""
    factor = -(-SIDE // max(image.size))
    return (
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) if factor > 1 else image
    )

"""`rwk probe`: how far to trust a reward, as a card, a page and a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwk.cli.console import note, progress, show, table
from rwk.cli.forecast_table import document, forecasts, show_forecasts
from rwk.cli.options import Common, options
from rwk.cli.preferences import preferences

if TYPE_CHECKING:
    from PIL import Image

    from rwk.calibration.counterparts import Counterparts
    from rwk.calibration.pairs import Floats
    from rwk.calibration.probe import Domain
    from rwk.calibration.run_log import Looks
    from rwk.rewards.base import Reward

WORLD = "shapes.long"
"""Prompts that are taken where neither data nor prompts are named."""
PAGE = "reward_card.html"


FAMILIES = (
    "accuracy",
    "optimisation",
    "edits",
    "prompts",
    "counterparts",
    "adversarial",
    "uncertainty",
    "structure",
    "consistency",
)
"""Keys of `calibration.probing.FAMILIES`, whose import takes longer than help should."""


@dataclass(frozen=True)
class Probing:
    """What `rwk probe` is told."""

    reward: str = field(metadata={"argument": True, "help": "A name of a reward, its folder, or an expression."})
    data: Path | None = field(
        default=None,
        metadata={"argument": True, "metavar": "[DATA]", "help": "Preferences: a file, or FORMAT:FILE."},
    )
    out: Path | None = field(
        default=None, metadata={"help": "Folder of the card and its page. [default: the reward's own]"}
    )
    other: tuple[Path, ...] = field(
        default=(), metadata={"help": "Preferences of another domain, beside DATA; may be given many times."}
    )
    probes: tuple[str, ...] = field(
        default=(),
        metadata={
            "option": "--probe",
            "choices": FAMILIES,
            "help": "Only this family of probes; may be given many times.",
        },
    )
    beside: tuple[str, ...] = field(
        default=(), metadata={"help": "Another reward to compare with: its ranks, its errors; may be given many times."}
    )
    counterparts: tuple[Path, ...] = field(
        default=(),
        metadata={
            "help": "Rows of prompt, first, second: images that differ in an edit (edit, p_first), in what must not "
            "matter (group_first, group_second) or in detail (detail_first, detail_second); may be given many times."
        },
    )
    run: Path | None = field(
        default=None, metadata={"help": "Folder of a run of `rwk optimize --watch` that learnt from REWARD."}
    )
    prompts: str = field(default=WORLD, metadata={"help": "Without DATA: prompt family, or file of prompts."})
    generator: str = field(default="shapes.llama", metadata={"help": "Without DATA: what draws the images."})
    gold: str = field(
        default="",
        metadata={"help": "Reward that tells the truth. [default: that of the prompt family, if it has one]"},
    )
    prompt_count: int = field(default=36, metadata={"help": "Prompts of each domain."})
    per_prompt: int = field(default=8, metadata={"help": "Images of each prompt."})
    edited: int = field(default=96, metadata={"help": "Images that every edit is tried on."})
    attacked: int = field(default=16, metadata={"help": "Images that are attacked by gradients and by other codes."})
    refined: int = field(default=72, metadata={"help": "Images whose codes climb the reward's gradient."})
    batch_size: int = field(default=32, metadata={"help": "Images that go through a network at once."})
    forecast: bool = field(
        default=False,
        metadata={
            "help": "Forecast what learning from the reward may gain, and run no probe but those that are named.",
            "switch": True,
        },
    )

    def __post_init__(self) -> None:
        for name, least in (
            ("prompt_count", 2),
            ("per_prompt", 2),
            ("edited", 2),
            ("attacked", 2),
            ("refined", 2),
            ("batch_size", 1),
        ):
            if getattr(self, name) < least:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} must be at least {least}, got {getattr(self, name)}.")
        if self.other and self.data is None:
            raise ValueError("--other stands beside DATA, got it alone; name the first domain's preferences too.")
        if self.forecast and self.data is not None:
            raise ValueError("--forecast is by images whose truth is known, got DATA; leave it out, or name --gold.")
        if self.forecast and self.per_prompt < 4:
            raise ValueError(f"--forecast needs --per-prompt of at least 4, got {self.per_prompt}.")


@click.command()
@options(Probing)
def command(config: Probing, common: Common) -> dict[str, Any]:
    """Probes a reward, and keeps what came out as reward_card.json and a page beside the reward.

    REWARD is what `rwk list` names, a folder, or an expression. DATA is as in `rwk train-reward`; pairs that the reward
    was trained on are left out. Without DATA a generator draws images of the prompts in domain, of another wording,
    and of combinations that no prompt in domain holds; with --prompts shapes.narrow also of a colour, a shape, a number
    and a relation that it never names; and the prompts' world makes images that differ in one known thing, which
    --counterparts replaces. --run adds where a run began to hack the reward. Every number has its 95 % interval,
    clustered by prompt. With --forecast, what choosing by the reward gains in truth on those prompts, for what learning
    may gain.
    """
    begun = time.monotonic()
    with progress("loading"):
        from rwk.calibration.card import FILE, RewardCard, card_of
        from rwk.calibration.card_page import write_page
        from rwk.calibration.counterparts import Counterparts
        from rwk.calibration.probe import Sizes, Subject
        from rwk.calibration.probing import run_probes
        from rwk.rewards.registry import load

        reward = load(config.reward, device=common.device)
    run, given = _looks(config), _given(config.counterparts)
    place = config.out / FILE if config.out else card_of(config.reward)
    domains, sources = _preferences(config, common) if config.data else _drawn(config, common)
    sizes = Sizes(edited=config.edited, attacked=config.attacked, refined=config.refined)
    with progress("probing") as advance:
        others = {name: load(name, device=common.device) for name in config.beside}
        ideal, made = (None, Counterparts()) if config.data else _ideal(config, common)
        known = given or made
        subject = Subject(reward, domains, sizes, common.seed, config.batch_size, advance, others, ideal, known, run)
        found = forecasts(subject) if config.forecast else {}
        results = [] if config.forecast and not config.probes else run_probes(subject, config.probes)
    show_forecasts(found)
    if not results:
        seconds = round(time.monotonic() - begun, 1)
        return {"reward": config.reward, "forecast": document(found), "seconds": seconds}
    card = RewardCard.build(subject, results, sources=sources)
    card.save(place)
    page = place.with_name(PAGE)
    write_page(card, results, page)
    _show(results)
    show(f"{', '.join(f'{count} {status}' for status, count in card.counts.items())}")
    note(f"the card is kept in {place}; open {page} to see it.")
    return {
        "reward": config.reward,
        "card": place,
        "page": page,
        "counts": card.counts,
        **card.document(),
        **({"forecast": document(found)} if config.forecast else {}),
        "seconds": round(time.monotonic() - begun, 1),
    }


def _preferences(config: Probing, common: Common) -> tuple[list[Domain], dict[str, str]]:
    """The domains of the files that were named, without what the reward was trained on."""
    from rwk.calibration.calibrate import unseen
    from rwk.calibration.card import card_of
    from rwk.calibration.preference_domain import preference_domain

    domains, sources = [], {}
    for number, path in enumerate(path for path in (config.data, *config.other) if path):
        data = preferences(path, common.seed)
        rest = unseen(data, card_of(config.reward))
        if len(rest) < len(data):
            note(f"the reward was trained on {len(data) - len(rest)} of the {len(data)} pairs of {path}, left out here")
        name = path.stem if path.stem not in sources else f"{path.stem} {number + 1}"
        domains.append(preference_domain(name, rest))
        sources[name] = f"{path}, sha256 {rest.digest()}"
    return domains, sources


def _drawn(config: Probing, common: Common) -> tuple[list[Domain], dict[str, str]]:
    """Images of the prompts' domains by the generator, with gold where it is known."""
    import numpy as np

    from rwk.calibration.probe import Codes, Domain
    from rwk.policy_opt import generator as generators
    from rwk.policy_opt.latent import refiner
    from rwk.policy_opt.prompts import domains, gold_of
    from rwk.rewards.registry import load

    found = domains(config.prompts, train=1, test=config.prompt_count, seed=common.seed).test
    name = config.gold or gold_of(config.prompts)
    if config.data is None and not name:
        note(f"nobody knows the truth about {config.prompts}: probes that need it are skipped; --gold names a reward")
    generator, gold = generators.load(config.generator, device=common.device), load(name) if name else None
    judge = _judge(gold) if gold else None
    made, sources = [], {}
    with progress("drawing", config.per_prompt * sum(map(len, found.values()))) as advance:
        for domain, held in found.items():
            images, drawn = [], []
            for start in range(0, len(held), _AT_ONCE):
                texts = [prompt.text for prompt in held[start : start + _AT_ONCE]]
                rollout = generator.sample(texts, per_prompt=config.per_prompt, seed=common.seed)
                images += generator.decode(rollout.tokens)
                drawn.append(rollout.tokens.cpu().numpy())
                advance(len(texts) * config.per_prompt)
            rows = [prompt for prompt in held for _ in range(config.per_prompt)]
            texts = [prompt.text for prompt in rows]
            truth = fits = None
            if gold and judge:
                truth = judge(images, texts)
                fits = truth >= gold.spec.high
            categories = [prompt.category for prompt in rows] if any(prompt.category for prompt in rows) else []
            codes = Codes(np.concatenate(drawn), generator.spec.codes, generator.decode, refiner(generator))
            made.append(Domain(domain, images, texts, truth, fits, categories, codes=codes, judge=judge))
            sources[domain] = f"{config.generator} on {config.prompts}, gold {name or 'unknown'}"
    return made, sources


def _ideal(config: Probing, common: Common) -> tuple[Domain | None, Counterparts]:
    """Images that hold all that their prompts of the first domain say, where the prompts' world can make them, and
    images of these prompts that differ in one known thing."""
    import numpy as np

    from rwk.calibration.counterparts import Counterparts
    from rwk.calibration.probe import Domain
    from rwk.policy_opt.prompts import counterparts_of, gold_of, pictures_of, read_prompts
    from rwk.rewards.registry import load

    name = gold_of(config.prompts)
    if name is None:
        return None, Counterparts()
    prompts = read_prompts(config.prompts.removesuffix(".test") + ".test", count=_IDEAL, seed=common.seed)
    images, texts = pictures_of(config.prompts, prompts, seed=common.seed), [prompt.text for prompt in prompts]
    ideal = Domain("ideal", images, texts, np.ones(len(texts)), judge=_judge(load(name))) if images else None
    return ideal, counterparts_of(config.prompts, prompts, seed=common.seed)


def _given(files: Sequence[Path]) -> Counterparts | None:
    """The counterparts of the files, None where none is named."""
    from rwk.calibration.counterparts import Counterparts, read_counterparts

    found = Counterparts()
    for path in files:
        more = read_counterparts(path)
        if more.omissions:
            note(f"{path}: {more.omissions}")
        found += more
    return found if files else None


def _looks(config: Probing) -> Looks | None:
    """What the named run saw."""
    from rwk.calibration.run_log import read_looks

    if config.run is None:
        return None
    found = read_looks(config.run)
    if config.reward not in found.rewards:
        learnt = ", ".join(found.rewards)
        raise ValueError(f"--run must be of a run that learnt from {config.reward}, got one from {learnt}.")
    return found


def _judge(gold: Reward) -> Callable[[Sequence[Image.Image], Sequence[str]], Floats]:
    """Gold [N] of any images and their prompts."""
    import numpy as np

    return lambda images, prompts: gold.score(images, prompts).values.numpy().astype(np.float64)


_IDEAL = 120
"""Images that hold all of their prompts."""
_AT_ONCE = 16
"""Prompts drawn for at once."""


def _show(results: Any) -> None:
    """The table of all probes, what is worst first."""
    from rwk.calibration.card_page import rows

    heads = ("probe", "status", "value", "95 % interval", "reason")
    lines = [[line[0], line[1], line[2], line[3], line[5]] for line in rows(results)]
    show(table(heads, lines, numbers=heads[2:4]))

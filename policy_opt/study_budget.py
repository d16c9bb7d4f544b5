"""How long a cell of a study learns: what one draw costs, and as many draws as a budget allows; loads no torch."""

from __future__ import annotations

from dataclasses import replace

from rwk.policy_opt.configs import Dpo, Grpo, Rebel, Rft
from rwk.policy_opt.ladder_config import Ladder

Config = Grpo | Dpo | Rebel | Rft
UNLIMITED = 10_000
"""Draws or rounds of a cell that ends by its seconds."""
SECONDS = {"grpo": 3.5 / 128, "dpo": 25 / 1024, "judged": 15 / 1200}
"""An image's share of the time, learning included, of `shapes.llama` on one core."""


def per_unit(config: Config, prompts: int) -> int:
    """Images of one draw of GRPO, or of one round of the others, with that many prompts to learn from."""
    if isinstance(config, Grpo):
        return config.rows
    return min(config.prompts_per_round or prompts, prompts) * config.group_size


def matched(config: Config, images: int, prompts: int) -> Config:
    """The config with as many updates or rounds as draw exactly that many images; raises ValueError where none do.

    What counts is what is really drawn. How many updates come of it is known beforehand but where GRPO's resampling is
    dynamic, and a step may draw several times: such a run ends when the images are drawn, and its last step may draw
    no further than they go, so that it draws exactly as many, and makes fewer updates than a run that leaves out none.
    """
    unit = per_unit(config, prompts)
    count, rest = divmod(images, unit)
    if rest or not count:
        raise ValueError(
            f"{type(config).__name__.lower()} draws {unit} images at a time, which do not fill {images} exactly; "
            f"take {max(1, count) * unit} or {(count + 1) * unit} images, or another group_size."
        )
    if isinstance(config, Grpo) and config.resampling == "dynamic":
        _check_open(config)
        return replace(config, steps=count * config.num_iterations, max_images=images)
    return of_draws(config, count)


def of_draws(config: Config, count: int) -> Config:
    """The config with so many draws of GRPO, or so many rounds."""
    if isinstance(config, Grpo):
        return replace(config, steps=count * config.num_iterations)
    return replace(config, rounds=count)


def unlimited(config: Config) -> Config:
    """The config with more draws than any number of seconds allows; raises ValueError where their number matters."""
    _check_open(config)
    return of_draws(config, UNLIMITED)


def _check_open(config: Config) -> None:
    if isinstance(config, Ladder) or config.schedule != "constant":
        what = "a ladder" if isinstance(config, Ladder) else f"schedule {config.schedule!r}"
        rule = "match on images of no resampling dynamic"
        raise ValueError(f"{what} has to know how many updates there will be; {rule}, or leave it out.")

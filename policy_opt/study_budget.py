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
    """The config with as many updates or rounds as draw exactly that many images; raises ValueError where none do."""
    unit = per_unit(config, prompts)
    count, rest = divmod(images, unit)
    if rest or not count:
        raise ValueError(
            f"{type(config).__name__.lower()} draws {unit} images at a time, which do not fill {images} exactly; "
            f"take {max(1, count) * unit} or {(count + 1) * unit} images, or another group_size."
        )
    return of_draws(config, count)


def of_draws(config: Config, count: int) -> Config:
    """The config with so many draws of GRPO, or so many rounds."""
    if isinstance(config, Grpo):
        return replace(config, steps=count * config.num_iterations)
    return replace(config, rounds=count)


def unlimited(config: Config) -> Config:
    """The config with more draws than any number of seconds allows; raises ValueError where their number matters."""
    if isinstance(config, Ladder) or config.schedule != "constant":
        what = "a ladder" if isinstance(config, Ladder) else f"schedule {config.schedule!r}"
        raise ValueError(f"{what} has to know how many updates there will be; match on images, or leave it out.")
    return of_draws(config, UNLIMITED)

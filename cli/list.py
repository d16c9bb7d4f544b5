"""`rwk list`: a table of the names that every other command takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import click

from rwk.cli.console import note, show, table
from rwk.cli.known import known
from rwk.cli.options import Common, options


@dataclass(frozen=True)
class Listing:
    """What `rwk list` is told."""

    kind: Literal["rewards", "generators", "judges", "all"] = field(default="all", metadata={"argument": True})
    names: bool = field(
        default=False,
        metadata={"help": "The names alone, which is faster.", "switch": True},
    )
    needs_prompt: bool = field(default=False, metadata={"help": "Rewards that need a prompt.", "switch": True})
    no_prompt: bool = field(default=False, metadata={"help": "Rewards that need no prompt.", "switch": True})
    differentiable: bool = field(default=False, metadata={"help": "Rewards with a gradient.", "switch": True})
    licence: str = field(default="", metadata={"help": "Those whose licence has this text in it."})
    max_megabytes: float | None = field(
        default=None,
        metadata={"help": "Those whose weights are no larger; what has no known size is left out, and named."},
    )

    def __post_init__(self) -> None:
        if self.needs_prompt and self.no_prompt:
            raise ValueError("--needs-prompt and --no-prompt leave nothing over; take one of them.")
        if self.of_rewards and self.kind in ("generators", "judges"):
            raise ValueError("--needs-prompt, --no-prompt and --differentiable are of rewards; list those.")
        if self.max_megabytes is not None and self.max_megabytes < 0:
            raise ValueError(f"--max-megabytes must be at least 0, got {self.max_megabytes:g}.")

    @property
    def of_rewards(self) -> bool:
        """Whether something is asked that is told of rewards alone."""
        return self.needs_prompt or self.no_prompt or self.differentiable

    @property
    def filters(self) -> bool:
        return self.of_rewards or bool(self.licence) or self.max_megabytes is not None

    def takes(self, found: dict[str, Any]) -> bool:
        """Whether what is known of a name is what was asked for; a size that is not known passes."""
        size = found["megabytes"]
        return (
            (found.get("needs_prompt") is True or not self.needs_prompt)
            and (found.get("needs_prompt") is False or not self.no_prompt)
            and (found.get("differentiable") is True or not self.differentiable)
            and self.licence.lower() in found["licence"].lower()
            and (self.max_megabytes is None or size is None or size <= self.max_megabytes)
        )


@click.command()
@options(Listing)
def command(config: Listing, common: Common) -> dict[str, Any]:
    """Lists the rewards, generators and pair judges that have a name, those kept in $RWK_HOME among them.

    Rewards can be combined too: `0.5*NAME+2*NAME`, `min(NAME,NAME)`. `rwk info NAME` tells more of one.
    """
    from rwk.policy_opt.generator import GENERATORS
    from rwk.rewards.pair_judge import JUDGES
    from rwk.rewards.registry import REWARDS

    document: dict[str, Any] = {}
    for title, registry in (("rewards", REWARDS), ("generators", GENERATORS), ("judges", JUDGES)):
        if config.kind not in (title, "all") or (config.of_rewards and title != "rewards"):
            continue
        document[title] = found = _listed(registry, config)
        if common.json:
            continue
        if config.names:
            show("\n".join(each["name"] for each in found))
        else:
            show(_table(title, found))
    return document


def _listed(registry: Any, config: Listing) -> list[dict[str, Any]]:
    """What is known of the names that were asked for, or the names alone."""
    names = [*registry.names(), *(name for name in registry.kept() if name not in registry.names())]
    if config.names and not config.filters:
        return [{"name": name} for name in names]
    found = [about(registry, name) for name in names]
    if config.filters:
        broken = [each for each in found if "fault" in each]
        for each in broken:
            note(f"{each['name']} is left out, as nothing is known of it: {each['fault']}")
        found = [each for each in found if each not in broken and config.takes(each)]
    if config.max_megabytes is not None:
        unsized = [each["name"] for each in found if each["megabytes"] is None]
        if unsized:
            note(
                f"{len(unsized)} {registry.kind}s are left out, as nothing says how large their weights are: "
                f"{', '.join(unsized)}; list them without --max-megabytes."
            )
        found = [each for each in found if each["megabytes"] is not None]
    return [{"name": each["name"]} for each in found] if config.names else found


def about(registry: Any, name: str) -> dict[str, Any]:
    """What is known of a name without its weights: its spec, their size, whether it is kept, and what is wrong."""
    kept = name not in registry.names()
    try:
        found = known(registry, name)
        return {**found.spec, "name": name, "kept": kept, "megabytes": found.megabytes}
    except Exception as error:  # one broken plug-in or folder must not hide the others
        return {"name": name, "kept": kept, "fault": f"{type(error).__name__}: {error}"}


def _table(title: str, found: list[dict[str, Any]]) -> Any:
    if title == "rewards":
        heads = ["reward", "unit", "range", "prompt", "MB", "licence", "source"]
        rows = [[_name(each), each.get("unit", ""), _range(each), _prompt(each), _size(each)] for each in found]
    elif title == "judges":
        heads = ["judge", "prompt", "MB", "licence", "source"]
        rows = [[_name(each), _prompt(each), _size(each)] for each in found]
    else:
        heads = ["generator", "image", "tokens", "codes", "licence", "source"]
        rows = [
            [
                _name(each),
                f"{(s := each.get('image_size', '?'))}x{s}",
                *(str(each.get(k, "?")) for k in ("tokens", "codes")),
            ]
            for each in found
        ]
    ends = [[each.get("licence", ""), each.get("source", "") or each.get("fault", "")] for each in found]
    return table(heads, [row + end for row, end in zip(rows, ends, strict=True)], numbers=["MB", "tokens", "codes"])


def _name(found: dict[str, Any]) -> str:
    return f"{found['name']} (kept)" if found["kept"] else str(found["name"])


def _range(found: dict[str, Any]) -> str:
    if "low" not in found:
        return ""
    low, high = (f"{found[end]:.4g}".replace("inf", "∞") for end in ("low", "high"))
    return f"{low} to {high}"


def _prompt(found: dict[str, Any]) -> str:
    return "needed" if found.get("needs_prompt") else ""


def _size(found: dict[str, Any]) -> str:
    """Megabytes of the weights, "" where they are not known or not needed."""
    size = found.get("megabytes")
    return f"{size:.0f}" if size and size >= 1 else f"{size:.1g}" if size else ""

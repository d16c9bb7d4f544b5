"""`rwk list`: a table of the names that every other command takes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import click

from rwk.cli.console import show, table
from rwk.cli.options import Common, options


@dataclass(frozen=True)
class Listing:
    """What `rwk list` is told."""

    kind: Literal["rewards", "generators", "all"] = field(default="all", metadata={"argument": True})
    names: bool = field(default=False, metadata={"help": "The names alone, which is faster.", "switch": True})


@click.command()
@options(Listing)
def command(config: Listing, common: Common) -> dict[str, Any]:
    """Lists the rewards and generators that have a name, those kept in $RWK_HOME among them.

    Rewards can be combined too: `0.5*NAME+2*NAME`, `min(NAME,NAME)`.
    """
    from rwk.policy_opt.generator import GENERATORS
    from rwk.rewards.registry import REWARDS

    document: dict[str, Any] = {}
    for title, registry in (("rewards", REWARDS), ("generators", GENERATORS)):
        if config.kind not in (title, "all"):
            continue
        found = [*registry.names(), *(name for name in registry.kept() if name not in registry.names())]
        document[title] = [{"name": name} if config.names else about(registry, name) for name in found]
        if common.json:
            continue
        if config.names:
            show("\n".join(found))
        else:
            show(_table(title, document[title]))
    return document


def about(registry: Any, name: str) -> dict[str, Any]:
    """What is known of a name without its weights: its spec, whether it is kept, and what is wrong with it."""
    from rwk.rewards.home import home

    kept = name not in registry.names()
    held: dict[str, Any] = {}
    spec: dict[str, Any]
    try:
        target = name
        if kept:
            held = json.loads(home(registry.kind + "s", name, "config.json").read_text())
            target = held[f"rwk_{registry.kind}"]
        kind = registry.target(target)
        spec = dataclasses.asdict(getattr(kind, "spec", None) or kind.tiny().spec)
    except Exception as error:  # one broken plug-in or folder must not hide the others
        return {"name": name, "kept": kept, "fault": f"{type(error).__name__}: {error}"}
    return {**spec, **held.get("spec", {}), "name": name, "kept": kept}


def _table(title: str, found: list[dict[str, Any]]) -> Any:
    if title == "rewards":
        heads = ["reward", "unit", "range", "prompt", "licence", "source"]
        rows = [[_name(each), each.get("unit", ""), _range(each), _prompt(each)] for each in found]
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
    return table(heads, [row + end for row, end in zip(rows, ends, strict=True)], numbers=["tokens", "codes"])


def _name(found: dict[str, Any]) -> str:
    return f"{found['name']} (kept)" if found["kept"] else str(found["name"])


def _range(found: dict[str, Any]) -> str:
    if "low" not in found:
        return ""
    low, high = (f"{found[end]:.4g}".replace("inf", "∞") for end in ("low", "high"))
    return f"{low} to {high}"


def _prompt(found: dict[str, Any]) -> str:
    return "needed" if found.get("needs_prompt") else ""

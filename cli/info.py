"""`rwk info`: all that is known of one reward, generator or pair judge before its weights are loaded."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rwk.cli.console import show, table
from rwk.cli.known import Known, known, saved
from rwk.cli.options import Common, options

if TYPE_CHECKING:
    from rwk.rewards.base import Reward
    from rwk.rewards.registry import Registry
    from rwk.rewards.weights import Weights

LABELS = {
    "unit": "unit",
    "range": "range",
    "needs_prompt": "needs a prompt",
    "deterministic": "deterministic",
    "differentiable": "differentiable",
    "tolerance": "score_pixels",
    "preprocessing": "reads images",
    "drift": "half precision",
    "image_size": "image side, pixels",
    "tokens": "tokens an image",
    "steps": "draws an image",
    "codes": "codes",
    "sampling": "draws with",
    "licence": "licence",
    "source": "source",
    "class": "class",
    "folder": "kept in",
    "calibration": "calibration",
    "reward_card": "reward card",
}
"""What the table shows, by key of the document; what a name has not is left out."""


@dataclass(frozen=True)
class Asked:
    """What `rwk info` is told."""

    name: str = field(
        metadata={"argument": True, "help": "A name of a reward, generator or pair judge, or an expression."}
    )


@click.command()
@options(Asked)
def command(config: Asked, common: Common) -> dict[str, Any]:
    """Tells what a reward, generator or pair judge computes, on what terms, and whether its weights are here.

    NAME is what `rwk list` names, a folder, NAME@PATH, module:Class, an address of `rwk serve`, or an expression.
    Neither weights nor a network of full size are loaded, and nothing is downloaded.
    """
    from rwk.rewards.expression import is_expression
    from rwk.rewards.pair_judge import is_pair_judge
    from rwk.rewards.registry import REWARDS

    if is_expression(config.name) and not REWARDS.knows(config.name) and not is_pair_judge(config.name):
        document = _combination(config.name)
    elif config.name.startswith(("http://", "https://")):
        document = _about(config.name, REWARDS.load(config.name))
    else:
        document = describe(config.name)
    if not common.json:
        _show(document)
        for part in document.get("parts", {}).values():
            _show(part)
    return document


def describe(name: str) -> dict[str, Any]:
    """The document of a name that stands for one class.

    Raises:
        ValueError: for an unknown name, as the registry says it.
    """
    registry = _registry_of(name)
    found = known(registry, name)
    document = {
        "name": name,
        "kind": registry.kind,
        "about": inspect.cleandoc(found.kind.__doc__ or ""),
        **{key: value for key, value in found.spec.items() if key != "name"},
        "tolerance": getattr(found.kind, "tolerance", None) if found.spec.get("differentiable") else None,
        "preprocessing": _reads(found.kind),
        "drift": dict(getattr(found.kind, "drift", {})) or None,
        "precision_note": getattr(found.kind, "precision_note", ""),
        "class": f"{found.kind.__module__}:{found.kind.__qualname__}",
        "folder": found.folder,
        "megabytes": found.megabytes,
        "weights": [_weights(each, _by_hand(found, each, name)) for each in found.weights],
        "trained_first": found.bare,
    }
    return document | (_kept(name) if registry.kind == "reward" else {})


def _reads(kind: type[Any]) -> str | None:
    """How images become the network's input, where its class says it."""
    stated = getattr(kind, "preprocess", None)
    return str(stated) if is_dataclass(stated) else None


def _registry_of(name: str) -> Registry[Any]:
    """Where a name is to be looked for: a generator's by name or by what its folder holds, else a reward's."""
    from rwk.policy_opt.generator import GENERATORS
    from rwk.rewards.pair_judge import JUDGES, is_pair_judge
    from rwk.rewards.registry import REWARDS

    plain = REWARDS.parted(name)[0]
    if plain in REWARDS.names() or name in REWARDS.kept():
        return REWARDS
    if GENERATORS.parted(name)[0] in GENERATORS.names() or name in GENERATORS.kept():
        return GENERATORS
    if is_pair_judge(name):
        return JUDGES
    folder = saved(REWARDS, name)
    holds = folder is not None and "rwk_generator" in (folder / "config.json").read_text(encoding="utf-8")
    return GENERATORS if holds else REWARDS


def _combination(name: str) -> dict[str, Any]:
    """The document of an expression and of each of its parts, which their small networks stand for."""
    from rwk.rewards.expression import parse
    from rwk.rewards.registry import REWARDS

    parts: dict[str, dict[str, Any]] = {}

    def small(part: str) -> Reward:
        found = known(REWARDS, part)
        made: Reward = found.kind.tiny()
        made.spec = dataclasses.replace(made.spec, **found.spec)
        parts[part] = describe(part)
        return made

    document = _about(name, parse(name, small))
    sizes = [part["megabytes"] for part in parts.values()]
    return document | {"megabytes": None if None in sizes else sum(sizes), "parts": parts}


def _about(name: str, reward: Reward) -> dict[str, Any]:
    """The document of a reward that is no class of a name alone."""
    return {
        "name": name,
        "kind": "reward",
        "about": inspect.cleandoc(type(reward).__doc__ or ""),
        **{key: value for key, value in dataclasses.asdict(reward.spec).items() if key != "name"},
        **_kept(name),
    }


def _by_hand(found: Known, weights: Weights, name: str) -> str:
    """What to do where a checkpoint is not here."""
    if weights.local:
        return "there is no such file"
    whole = not weights.file or weights.file.endswith(".index.json")
    what = "copy all files into one folder" if len(found.weights) > 1 or whole else "copy it here"
    own = "weights" in inspect.signature(found.kind).parameters
    plain = name.removesuffix(f"@{weights.source}")
    first = "" if plain == name else "no folder of that name, so a repository, "
    return f"{first}downloaded on first use" + (f"; without a network {what} and name {plain}@PATH" if own else "")


def _weights(weights: Weights, advice: str) -> dict[str, Any]:
    """One checkpoint, where it is, and what to do where it is not."""
    path = weights.here()
    return {
        "source": weights.source,
        "file": weights.file,
        "licence": weights.licence,
        "megabytes": weights.megabytes,
        "path": path,
        "advice": "" if path else advice,
    }


def _kept(name: str) -> dict[str, Path | None]:
    """The files that measuring a reward of that name left."""
    from rwk.calibration.calibrate import place_of
    from rwk.calibration.card import card_of

    files = {"calibration": place_of(name), "reward_card": card_of(name)}
    return {key: path if path.is_file() else None for key, path in files.items()}


def _show(document: dict[str, Any]) -> None:
    from rich.text import Text

    rows = [[words, _told(key, document)] for key, words in LABELS.items()]
    rows += [["weights", _told_of(each)] for each in document.get("weights", [])]
    if document.get("trained_first"):
        rows.append(["weights", "none: `rwk train-reward` makes rewards of this kind"])
    elif document.get("weights") == []:
        rows.append(["weights", "needs none"])
    show(table([document["name"], document["kind"]], [row for row in rows if row[1]]))
    show(Text(f"\n{document['about']}\n"))


def _told(key: str, document: dict[str, Any]) -> str:
    """The cell of a key; "" where there is nothing to tell."""
    if key == "range":
        ends = [f"{document[end]:.4g}".replace("inf", "∞") for end in ("low", "high") if end in document]
        return " to ".join(ends)
    if key in ("calibration", "reward_card") and key in document:
        made = {"calibration": "rwk calibrate", "reward_card": "rwk probe"}[key]
        return str(document[key] or f"none; `{made}` makes one")
    value = document.get(key)
    if key == "steps":
        return f"{len(value)}, of {min(value)} to {max(value)} tokens" if value else ""
    if key == "tolerance" and value is not None:
        return f"within {value:g} of the score"
    if key == "drift":
        moved = ", ".join(f"{precision} moves a score by up to {most:g}" for precision, most in (value or {}).items())
        return "; ".join(filter(None, [moved, document.get("precision_note")]))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {setting}" for name, setting in value.items())
    return "" if value is None else str(value)


def _told_of(weights: dict[str, Any]) -> str:
    size = "" if weights["megabytes"] is None else f"{round(weights['megabytes'], 1):,g} MB"
    told = [f"{weights['source']} {weights['file']}".strip(), size, weights["licence"]]
    where = f"here: {weights['path']}" if weights["path"] else f"not here: {weights['advice']}"
    return "; ".join([*filter(None, told), where])

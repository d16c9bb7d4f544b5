"""What is known of a name without its weights: class, spec, folder and checkpoints."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwk.rewards.registry import Registry
    from rwk.rewards.weights import Weights


@dataclass(frozen=True)
class Known:
    """What stands behind a name."""

    kind: type[Any]
    spec: dict[str, Any]
    """The fields of its spec; `name` is what it calls itself."""
    folder: Path | None = None
    """Where it was saved."""
    weights: tuple[Weights, ...] = ()
    """Empty where it computes without any, or is a kind of network that has to be trained first."""

    @property
    def bare(self) -> bool:
        """Whether it is a kind of network that has to be trained first."""
        from rwk.rewards.trainable import Trainable

        return not self.weights and issubclass(self.kind, Trainable)

    @property
    def megabytes(self) -> float | None:
        """Size of its weights, 0 where it computes without any; None where that is not known."""
        sizes = [each.megabytes for each in self.weights]
        known = [size for size in sizes if size is not None]
        return None if self.bare or len(known) < len(sizes) else sum(known)


def known(registry: Registry[Any], name: str) -> Known:
    """What stands behind a name: a registered or kept one, a folder, `NAME@PATH`, or `module:Class`.

    Raises:
        ValueError: for an unknown name, a folder that rwk did not write, or a plug-in that cannot be imported.
    """
    from rwk.rewards.weights import local, named, weights_of

    folder = None if name in registry.names() else saved(registry, name)
    if folder is not None:
        held = _held(registry, folder)
        kind = registry.target(held[f"rwk_{registry.kind}"])
        return Known(kind, _spec(kind) | held.get("spec", {}), folder, (local(folder),))
    plain, own = registry.parted(name)
    path, kind = own.get("weights"), registry.target(plain)
    if path is not None:
        if getattr(kind, "made_of_reward", False):
            return _of_reward(kind, path)
        given = dataclasses.replace(named(kind, path), revision=own.get("revision"))
        return Known(kind, _spec(kind), weights=(given,))
    weights = [dataclasses.replace(each, revision=own.get("revision")) for each in weights_of(kind)]
    return Known(kind, _spec(kind), weights=tuple(weights))


def _of_reward(kind: type[Any], name: str) -> Known:
    """What stands behind a pair judge that is made of the reward of that name, which may be an expression."""
    from rwk.rewards.expression import is_expression
    from rwk.rewards.registry import REWARDS

    if is_expression(name) and not REWARDS.knows(name):
        return Known(kind, _spec(kind))
    made = known(REWARDS, name)
    shared = {key: made.spec[key] for key in ("licence", "source", "needs_prompt", "deterministic")}
    return Known(kind, _spec(kind) | shared, made.folder, made.weights)


def saved(registry: Registry[Any], name: str) -> Path | None:
    """The folder that a name stands for, or None."""
    from rwk.rewards.home import home

    for folder in (Path(name), home(registry.kind + "s", name)):
        try:
            if (folder / "config.json").is_file():
                return folder
        except OSError:  # a name too long for a file: an expression
            continue
    return None


def _held(registry: Registry[Any], folder: Path) -> dict[str, Any]:
    """The folder's config.json, which names a class by a registered name: no folder may choose what is imported."""
    key = f"rwk_{registry.kind}"
    try:
        held: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = held[key]
    except (ValueError, KeyError, TypeError) as error:
        told = f"its config.json holds no readable {key} ({error})"
        raise ValueError(f"{folder} is not a saved {registry.kind}: {told}; give a folder that rwk wrote.") from error
    if name not in registry.names():
        raise ValueError(f"{folder} was saved by {registry.kind} {name!r}, which is not installed here.")
    return held


def _spec(kind: type[Any]) -> dict[str, Any]:
    return dataclasses.asdict(getattr(kind, "spec", None) or kind.tiny().spec)

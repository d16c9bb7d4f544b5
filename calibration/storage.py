"""Calibrators as JSON files that belong to one reward: another network or another resize refuses to load them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rwk.calibration.absolute import AbsoluteCalibrator
from rwk.calibration.calibrator import Calibrator
from rwk.calibration.conformal import ConformalPairs
from rwk.calibration.lapse_power import LapsePower
from rwk.calibration.sliced_temperature import SlicedTemperature
from rwk.calibration.style_controlled import StyleControlled
from rwk.calibration.symmetric_isotonic import SymmetricIsotonic
from rwk.calibration.temperature import Temperature
from rwk.calibration.ties import TieCalibrator
from rwk.rewards.base import Reward

SCHEMA = "rwk-calibration/1"
FILE = "calibration.json"
"""Its name in the folder of a reward."""
KINDS: dict[str, type[Calibrator]] = {
    kind.kind: kind
    for kind in (
        AbsoluteCalibrator,
        ConformalPairs,
        LapsePower,
        SlicedTemperature,
        StyleControlled,
        SymmetricIsotonic,
        Temperature,
        TieCalibrator,
    )
}
"""All that a file may name; nothing else is ever built from one."""


@dataclass(frozen=True)
class Binding:
    """What scores depend on."""

    reward: str
    """Name of the reward, for people; it may change."""
    code: str
    """`module:Class` of the reward, or the expression of a combination."""
    weights_sha256: str
    """Over every tensor of its networks by name, type and shape; of nothing where it has none."""
    preprocessing: dict[str, Any]
    """How images become the network's input, by part for a combination; empty where the reward states none."""

    @classmethod
    def of(cls, reward: Reward) -> Binding:
        """The binding of a reward as it is loaded."""
        total = hashlib.sha256()
        for name, tensor in _tensors(reward):
            total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        code = reward.spec.name if reward.parts() else f"{type(reward).__module__}:{type(reward).__qualname__}"
        settings = json.loads(json.dumps(_preprocessing(reward)))  # as a file gives them back: lists for tuples
        return cls(reward.spec.name, code, total.hexdigest(), settings)

    def differences(self, held: Mapping[str, Any]) -> list[str]:
        """What is not as in a file, in words."""
        found = [
            f"{name} {_told(held.get(key))} there and {_told(getattr(self, key))} here"
            for key, name in (("code", "the code"), ("weights_sha256", "the weights' SHA-256"))
            if held.get(key) != getattr(self, key)
        ]
        before, now = (_flat(settings) for settings in (held.get("preprocessing", {}), self.preprocessing))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                found.append(f"preprocessing {key} {_told(before.get(key))} there and {_told(now.get(key))} here")
        return found


def save(path: Path, calibrator: Calibrator, binding: Binding, *, data: Mapping[str, Any], force: bool = False) -> None:
    """Writes a fitted calibrator.

    Args:
        path: the file, by custom calibration.json in the reward's folder.
        calibrator: what was fitted.
        binding: of the reward that gave the scores.
        data: what it was fitted on: name, sha256, and the label protocol; temperatures of one protocol say nothing
            of another.
        force: write one with the status `separable` or `uninformative` too.

    Raises:
        ValueError: for an unfitted calibrator, and for those two statuses.
    """
    document = {"schema": SCHEMA, **_document(calibrator), "binds": dataclasses.asdict(binding), "data": dict(data)}
    if calibrator.status_ != "ok" and not force:
        raise ValueError(
            f"{path} was to hold a calibrator whose fit is ok, got {calibrator.status_}; "
            f"take pairs that the reward gets right more often than not, and some wrong, or force it."
        )
    document |= {"created_by": f"rwk {version('rwk')}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_no_nan(document), indent=2, allow_nan=False, sort_keys=True) + "\n")
    partial.replace(path)


def load(path: Path, binding: Binding | None) -> Calibrator:
    """The calibrator of a file, which predicts what the saved one did, bit for bit.

    Args:
        path: what `save` wrote.
        binding: of the reward that it shall be used with; None to look at the file alone.

    Raises:
        ValueError: for what is no such file, and for one of other weights, code or preprocessing; the message says
            what differs.
    """
    document = read(path)
    calibrator = _built(path, document)
    if binding is None:
        return calibrator
    differences = binding.differences(document.get("binds", {}))
    if differences:
        raise ValueError(
            f"{path} must belong to the reward {binding.reward} as it is now, got another: {'; '.join(differences)}; "
            f"run `rwk calibrate` again."
        )
    return calibrator


def read(path: Path) -> dict[str, Any]:
    """The document of a file, whose schema is checked."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except ValueError as error:
        raise ValueError(f"{path} must be a calibration in JSON, got something else: {error}.") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path} must have the schema {SCHEMA}, got {schema}; run `rwk calibrate` again.")
    found: dict[str, Any] = document
    return found


def _document(calibrator: Calibrator) -> dict[str, Any]:
    settings = {
        name: _document(value) if isinstance(value, Calibrator) else value
        for name, value in calibrator.get_params().items()
    }
    found = {"kind": calibrator.kind, "settings": settings, "state": calibrator.state()}
    return found | {"status": calibrator.status_, "fit": dict(calibrator.fit_)}


def _built(path: Path, document: Mapping[str, Any]) -> Calibrator:
    kind, status = document.get("kind"), document.get("status")
    if kind not in KINDS:
        raise ValueError(f"{path} must hold a calibrator of a known kind, got {kind!r}; known are {', '.join(KINDS)}.")
    if status not in ("ok", "separable", "uninformative"):
        raise ValueError(f"{path} must state how its fit went, got {status!r}; fit again.")
    try:
        given = {
            name: _built(path, value) if isinstance(value, Mapping) and "kind" in value else value
            for name, value in document["settings"].items()
        }
        return KINDS[kind](**given).restore(document["state"], status, document["fit"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must hold settings, state and fit of a {kind}, got others: {error!r}.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _tensors(reward: Reward) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a reward's networks and of those of its parts, by name, in a fixed order."""
    for name, part in sorted(reward.parts().items()):
        for key, tensor in _tensors(part):
            yield f"{name}/{key}", tensor
    for name, value in sorted(vars(reward).items()):
        if isinstance(value, nn.Module):
            for key, tensor in sorted(value.state_dict().items()):
                yield f"{name}.{key}", tensor


def _preprocessing(reward: Reward) -> dict[str, Any]:
    """The settings that a reward keeps as a dataclass under `preprocessing` or `preprocess`."""
    for name in ("preprocessing", "preprocess"):
        held = getattr(reward, name, None)
        if dataclasses.is_dataclass(held) and not isinstance(held, type):
            return dataclasses.asdict(held)
    return {name: _preprocessing(part) for name, part in reward.parts().items()}


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        return {prefix: settings}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix} {key}".strip())
    return found


def _told(value: Any) -> str:
    return str(value)[:16] + "..." if isinstance(value, str) and len(value) > 60 else str(value)


def _no_nan(value: Any) -> Any:
    """The value with null for NaN."""
    if isinstance(value, Mapping):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

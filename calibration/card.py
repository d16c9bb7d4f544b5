"""The reward card: what was measured of a reward, as a JSON file in which no number stands without its interval."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from rwk.calibration.calibrate import place_of
from rwk.calibration.probe import Level, Result, Subject
from rwk.calibration.statistics import FEW_CLUSTERS, Interval
from rwk.calibration.storage import Binding

SCHEMA = "rwk-reward-card/1"
FILE = "reward_card.json"
STATUSES = ("pass", "warn", "fail", "skip")
_VERSIONS = ("rwk", "numpy", "scipy", "torch", "pillow")
_OWN = ("schema", "reward", "probed_on", "scale", "probes", "env", "probe_seed", "limits")
"""None is a name that `rwk train-reward` gives a part of the card that it writes."""


@dataclass(frozen=True)
class RewardCard:
    """What probing came to, in JSON's types."""

    reward: Mapping[str, Any]
    """Which reward: name, code, weights_sha256, preprocessing."""
    probed_on: Sequence[Mapping[str, Any]]
    """What it was probed on, by domain."""
    scale: Mapping[str, Any]
    """What a margin was measured against."""
    probes: Mapping[str, Mapping[str, Any]]
    """Name -> definition, version, gate, unit, status, reason, value, levels."""
    probe_seed: int
    limits: Sequence[str]
    """What the card does not say."""
    env: Mapping[str, str]

    @classmethod
    def build(cls, subject: Subject, results: Sequence[Result], *, sources: Mapping[str, str]) -> Self:
        """The card of a probed reward.

        Args:
            subject: what was probed.
            results: of its probes.
            sources: domain -> where its images and judgements come from.
        """
        scale, binding = subject.scale, Binding.of(subject.reward)
        data = [
            {
                "name": domain.name,
                "source": sources.get(domain.name, ""),
                "images": len(domain.images),
                "prompts": len(set(domain.prompts)),
                "pairs": len(pairs),
                "unscored": int(sum(not math.isfinite(score) for score in scores)),
            }
            for domain, scores, pairs in zip(subject.domains, subject.scores, subject.pairs, strict=True)
        ]
        card = cls(
            {"name": binding.reward} | {key: value for key, value in asdict(binding).items() if key != "reward"},
            data,
            {"name": scale.name, "value": _number(scale.value), "floor": 0.25},
            {result.probe.name: _probe(result) for result in results},
            subject.seed,
            _limits(subject, results),
            {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS},
        )
        check(card.document())
        return card

    def document(self) -> dict[str, Any]:
        """The card as a JSON object."""
        return {"schema": SCHEMA, **asdict(self)}

    @property
    def counts(self) -> dict[str, int]:
        """How many probes have each status."""
        held = [probe["status"] for probe in self.probes.values()]
        return {status: held.count(status) for status in STATUSES}

    def save(self, path: Path) -> None:
        """Writes the card; what else a card at that place holds, such as how the reward was trained, stays.

        Raises:
            ValueError: where that file holds no JSON object, or the card is not whole.
        """
        document = self.document()
        check(document)
        held = _held(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        merged = {key: value for key, value in held.items() if key not in _OWN} | document
        partial.write_text(json.dumps(merged, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The card of a file.

        Raises:
            ValueError: where it breaks the schema.
        """
        document = _held(path)
        check(document)
        return cls(**{key: document[key] for key in _OWN[1:]})


def card_of(name: str) -> Path:
    """Where the card of a reward of that name is kept: in its own folder, else in `$RWK_HOME/calibrations`."""
    return place_of(name).with_name(FILE)


def check(document: Mapping[str, Any]) -> None:
    """Raises ValueError unless a card has all its parts and every value its interval and its number of clusters."""
    missing = [key for key in _OWN if key not in document]
    if missing or document["schema"] != SCHEMA:
        said = f"without {missing[0]}" if missing else f"with the schema {document['schema']!r}"
        raise ValueError(f"a reward card needs the schema {SCHEMA} and {', '.join(_OWN[1:])}, got one {said}.")
    for name, probe in document["probes"].items():
        for key in ("definition", "version", "gate", "unit", "status", "reason", "value", "levels"):
            if key not in probe:
                raise ValueError(f"probe {name} of a reward card needs {key}, got {', '.join(probe)}.")
        if probe["status"] not in STATUSES or not probe["reason"]:
            raise ValueError(
                f"probe {name} needs a status of {', '.join(STATUSES)} and a reason, got {probe['status']!r}."
            )
        if (probe["value"] is None) != (probe["status"] == "skip"):
            raise ValueError(
                f"probe {name} needs a value unless it was skipped, got {probe['value']} at {probe['status']}."
            )
        if probe["value"] is not None:
            _check_value(name, probe["value"])
        for level in probe["levels"]:
            _check_value(f"{name}, {level.get('name')}", level.get("value"))
            for measure, value in level.get("measures", {}).items():
                _check_value(f"{name}, {level['name']}, {measure}", value)


def _check_value(name: str, value: Any) -> None:
    """Raises ValueError unless the value has an interval round it and a number of clusters."""
    held = value if isinstance(value, Mapping) else {"value": value}
    numbers = [held.get(key) for key in ("value", "lo", "hi")]
    good = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    if not good or not isinstance(held.get("clusters"), int) or held["clusters"] < 2:
        raise ValueError(
            f"{name} needs a value with lo, hi and 2 clusters or more, got {dict(held)}; leave out what has none."
        )
    if not held["lo"] <= held["hi"]:
        raise ValueError(f"{name} needs lo to be at most hi, got {held['lo']} and {held['hi']}.")


def _held(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must hold a reward card in JSON, got something else: {error}.") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(document).__name__}; move that file away.")
    return document


def _probe(result: Result) -> dict[str, Any]:
    return asdict(result.probe) | {
        "status": result.status,
        "reason": result.reason,
        "value": result.value and _value(result.value),
        "levels": [_level(level) for level in result.levels],
        "findings": [
            {
                "prompt": f.prompt,
                "prompt_after": f.prompt_after,
                "before": f.score_before,
                "after": f.score_after,
                "what": f.what,
            }
            for f in result.findings
        ],
    }


def _level(level: Level) -> dict[str, Any]:
    measures = {name: _value(interval) for name, interval in level.measures.items()}
    return {"name": level.name, "value": _value(level.value), "measures": measures}


def _value(interval: Interval) -> dict[str, Any]:
    numbers = (_number(number) for number in interval[:3])
    return dict(zip(("value", "lo", "hi"), numbers, strict=True)) | {"clusters": interval.clusters}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _limits(subject: Subject, results: Sequence[Result]) -> list[str]:
    """What the numbers do not bear out."""
    said = [f"{result.probe.name} was not run: {result.reason}" for result in results if result.status == "skip"]
    if subject.ideal is not None:
        count = len(subject.ideal.images)
        said.append(f"prompts are made false of {count} images that hold all of theirs, which no generator drew")
    for domain in subject.domains:
        prompts = len(set(domain.prompts))
        if prompts < FEW_CLUSTERS:
            said.append(f"{domain.name} has {prompts} prompts; intervals of fewer than {FEW_CLUSTERS} deserve doubt")
    return said

"""A study as a grid: algorithms x rewards x generators x points of scaling axes x seeds; loads no torch.

Every reward is learnt from at the settings that the study names, and the points of each axis vary them one axis at a
time. A point that comes to the settings of another is the same cell, so an axis passes through the common one.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from rwk.policy_opt.configs import Dpo, Grpo, Rebel, Rft
from rwk.policy_opt.experiment import Experiment, Recipe
from rwk.policy_opt.ladder_config import Ladder
from rwk.policy_opt.prompts import Domains, gold_of
from rwk.policy_opt.study_budget import SECONDS, Config, matched, of_draws, per_unit, unlimited
from rwk.rewards.readable import text_of

Match = Literal["images", "seconds", "none"]
ALGORITHMS: dict[str, type[Config]] = {"dpo": Dpo, "grpo": Grpo, "ladder": Ladder, "rebel": Rebel, "rft": Rft}


@dataclass(frozen=True)
class Axis:
    """What is varied: points by label, in order, each with the settings that make it.

    A setting is a field of `Experiment` or of every algorithm, `images` or `seconds` (what is matched), `iterations`
    (runs after one another, each from the generator that the last left, which becomes the reference), or the name of
    an algorithm or variant with a table of its own.
    """

    name: str
    points: Mapping[str, Mapping[str, Any]]
    rewards: tuple[str, ...] = ()
    """Those that it is varied for; the study's first by default."""


@dataclass(frozen=True)
class Study:
    """What is to be run."""

    name: str = "world"
    algorithms: tuple[str, ...] = ("dpo", "grpo")
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> `of`, the algorithm that it is one of, and what it changes; each is held against that algorithm, or that
    named `against`."""
    rewards: tuple[str, ...] = ("shapes.verifier",)
    generators: tuple[str, ...] = ("shapes.llama",)
    seeds: int = 2
    match: Match = "images"
    images: int = 4096
    """Images that every cell draws to learn from, where they are matched."""
    seconds: float = 0.0
    """Of processor time that every cell may learn for, where they are matched; it ends at the next update."""
    margin: float = 0.01
    """The least difference of gold accuracy that counts."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """As those of a point of an axis."""
    axes: tuple[Axis, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        of = [*self.algorithms, *(variant.get("of") for variant in self.variants.values())]
        of += [variant["against"] for variant in self.variants.values() if "against" in variant]
        unknown = sorted({str(name) for name in of} - set(ALGORITHMS))
        if unknown or not self.algorithms:
            raise ValueError(f"a study needs algorithms of {', '.join(ALGORITHMS)}, got {unknown or 'none'}.")
        known = {*ALGORITHMS, *(item.name for kind in (Experiment, *ALGORITHMS.values()) for item in fields(kind))}
        if taken := sorted(set(self.variants) & known):
            raise ValueError(f"a variant needs a name of its own, got that of an algorithm or setting, {taken[0]}.")
        if self.seeds < 1 or self.images < 1 or not self.rewards or not self.generators:
            raise ValueError("a study needs a reward, a generator, and seeds and images of at least 1.")
        if self.match not in get_args(Match):
            raise ValueError(f"match must be one of {', '.join(get_args(Match))}, got {self.match!r}.")
        if self.match == "seconds" and not self.seconds > 0:
            raise ValueError(f"a study matched on seconds needs seconds above 0, got {self.seconds}; name --seconds.")


WORLD = Study(
    rewards=("shapes.noisy", "shapes.clip", "shapes.long_only", "shapes.no_counts", "colorfulness"),
    seeds=3,
    images=2048,
    settings={"eval_prompts": 80, "kl_every": 0, "save_every": 8, "dpo": {"prompts_per_round": 64}},
    axes=(
        Axis("samples per prompt", {"4": {"group_size": 4}, "8": {}, "16": {"group_size": 16}}),
        Axis("prompts", {"128": {"prompt_count": 128}, "2000": {}}),
        Axis(
            "iterations",
            {
                "1": {"dpo": {"prompts_per_round": 256}, "grpo": {"beta": 0.02}},
                "4": {"grpo": {"beta": 0.02, "reference_every": 4}},
            },
        ),
    ),
)
"""The study of the built-in world: the truth with noise, a learned reward, one that breaks out of domain, and two that
ruin a generator. An iteration is a round of DPO, and a stretch of GRPO between two refreshings of its reference."""


def read_study(path: Path) -> Study:
    """The study in a TOML or JSON file, of the fields of `Study`; raises ValueError for what is none of them."""
    if path.is_dir():
        raise ValueError(f"a study must be a TOML or JSON file, got the folder {path}; name the file.")
    if not path.exists():
        raise ValueError(
            f"a study must be a TOML or JSON file, got no file at {path}; correct the path, or leave it out for the "
            f"study of the built-in world."
        )
    with text_of(path):
        text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        raise ValueError(f"{path} must set a field of a study, got an empty file; see rwk.policy_opt.study.Study.")
    try:
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ValueError(f"{path} must be {kind}, got what is none ({error}); correct it.") from error
    known = [item.name for item in fields(Study)]
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object of fields, got {found!r:.60}; see rwk.policy_opt.study.Study.")
    if unknown := sorted(set(found) - set(known)):
        raise ValueError(f"{path} must have fields of {', '.join(known)}, got {unknown[0]}; correct or remove it.")
    try:
        found["axes"] = tuple(
            Axis(**{**axis, "rewards": tuple(axis.get("rewards", ()))}) for axis in found.get("axes", ())
        )
        for name in ("algorithms", "rewards", "generators"):
            if name in found:
                found[name] = tuple(found[name])
        return Study(**found)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} holds no study ({error}); its fields are those of rwk.policy_opt.study.Study."
        ) from error


class Cell(NamedTuple):
    """One run of the grid."""

    algorithm: str
    """Or the variant."""
    reward: str
    """Of the study's; a variant may learn from another."""
    experiment: Experiment
    config: Config
    """Of one iteration."""
    iterations: int
    recipe: Recipe
    points: dict[str, str]
    """Axis -> label of the point."""
    main: bool
    """Whether it is at the study's own settings."""
    seconds: float | None = None
    """Of processor time after which one iteration ends; None where that has no limit but its updates or rounds."""

    @property
    def digest(self) -> str:
        """SHA-256 of all that the result depends on."""
        experiment, config = self.experiment.document(), asdict(self.config)
        held = [self.algorithm, experiment, config, self.iterations, asdict(self.recipe)]
        held += [] if self.seconds is None else [self.seconds]
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of its folder."""
        algorithm, reward = (re.sub(r"[^\w.]+", "_", name)[:40] for name in (self.algorithm, self.reward))
        return f"{algorithm}-{reward}-seed{self.config.seed}-{self.digest[:12]}"

    def plan(self) -> Plan:
        """What it will cost, computed from the settings."""
        config = self._foreseen()
        unit = per_unit(config, _prompts(self.experiment))
        images = self.iterations * (config.most_images if isinstance(config, Grpo) else unit * config.rounds)
        gold = gold_of(self.experiment.prompts)
        later = config.then if isinstance(config, Grpo) else ()
        scored = len({*self.experiment.rewards, *later, *([gold] if gold else [])})
        judged = self.iterations * 2 * sum(map(len, _sizes(self.experiment).test.values()))
        if isinstance(config, Grpo):
            trained = config.rows * config.steps
            seconds = images * SECONDS["grpo"]
        else:
            groups = unit // config.group_size
            trained = groups * config.learnt * config.epochs * config.rounds
            seconds = images * SECONDS["dpo"]
        judged *= self.experiment.eval_images
        return Plan(images, images * scored, self.iterations * trained, judged, seconds + judged * SECONDS["judged"])

    def _foreseen(self) -> Config:
        """The config with as many updates or rounds as it is likely to make."""
        if self.seconds is None:
            return self.config
        each = SECONDS["grpo" if isinstance(self.config, Grpo) else "dpo"]
        return of_draws(
            self.config, max(1, round(self.seconds / (each * per_unit(self.config, _prompts(self.experiment)))))
        )


class Plan(NamedTuple):
    """What a cell costs; with GRPO's resampling dynamic, what it trains is at most so much."""

    images: int
    forwards: int
    """Images that go through a reward, once for each."""
    trained: int
    """Images that are learnt from, counted for every update; of pairs at most, as ties make none."""
    judged: int
    """Images drawn to judge by."""
    seconds: float
    """On one idle core, of `shapes.llama`; elsewhere only a proportion."""


@cache
def _sizes(experiment: Experiment) -> Domains:
    from rwk.policy_opt.suites import chosen  # which loads torch

    return chosen(experiment, seed=0)[0]


def _prompts(experiment: Experiment) -> int:
    return len({prompt.text for prompt in _sizes(experiment).train})


def cells(study: Study) -> list[Cell]:
    """Every cell once, in an order that runs the algorithms of one condition one after another."""
    points: list[tuple[str, str, Mapping[str, Any], Sequence[str]]] = [("", "", {}, study.rewards)]
    for axis in study.axes:
        points += [(axis.name, label, s, axis.rewards or study.rewards[:1]) for label, s in axis.points.items()]
    found: dict[str, Cell] = {}
    for axis_name, label, settings, rewards in points:
        for generator in study.generators:
            for reward in rewards:
                for seed in range(study.seeds):
                    for algorithm in (*study.algorithms, *study.variants):
                        cell = _cell(study, algorithm, reward, generator, seed, settings)
                        known = found.setdefault(cell.digest, cell._replace(main=not axis_name))
                        if axis_name:
                            known.points[axis_name] = label
    return list(found.values())


def _cell(study: Study, algorithm: str, reward: str, generator: str, seed: int, point: Mapping[str, Any]) -> Cell:
    """A cell with the settings of the study, and over them those of a point."""
    variant = dict(study.variants.get(algorithm, {}))
    kind = variant.pop("of", algorithm)
    variant.pop("against", None)
    named = {*ALGORITHMS, *study.variants}
    given: dict[str, Any] = {}
    for source in (study.settings, variant, point):
        given |= {key: value for key, value in source.items() if key not in named}
        given |= {**source.get(kind, {}), **source.get(algorithm, {})}
    images, seconds = given.pop("images", study.images), given.pop("seconds", study.seconds)
    iterations = given.pop("iterations", 1)
    config_type = ALGORITHMS[kind]
    ours = {item.name for item in fields(config_type)}
    shared = {item.name for item in fields(Experiment)}
    foreign = sorted(set(given) - ours - shared)
    if foreign:
        raise ValueError(f"{foreign[0]} is no setting of {algorithm}; put it into the table of the algorithm it is of.")
    drawn: dict[str, Any] = {"generator": generator, "rewards": (reward,)}
    drawn |= {key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key in shared}
    experiment = Experiment(**drawn)
    if gold_of(experiment.prompts) is None and not experiment.judge_on:
        raise ValueError(
            f"a study needs prompts whose truth is known, got {experiment.prompts}; name a family, or benchmarks to "
            f"judge on with judge_on."
        )
    _sizes(experiment)  # refuses what is no benchmark before anything is run
    config: Config = config_type(seed=seed, **{key: value for key, value in given.items() if key in ours})
    if study.match == "images":
        if images % iterations:
            raise ValueError(f"{images} images do not fall into {iterations} iterations; take a multiple.")
        config = matched(config, images // iterations, _prompts(experiment))
    each = seconds / iterations if study.match == "seconds" else None
    if each is not None:
        config = unlimited(config)
    return Cell(algorithm, reward, experiment, config, iterations, Recipe(**study.recipe), {}, False, each)

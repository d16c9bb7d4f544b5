"""Images that differ in one known thing: those of the built-in world, files of them, and what probes make of both."""

from __future__ import annotations

import csv
import functools
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rwk.adapters.shapes_verifier import Verifier
from rwk.calibration.counterparts import Counterparts, Detailed, Edited, Grouped, read_counterparts
from rwk.calibration.probe import Domain, Result, Sizes, Subject
from rwk.calibration.probe_counterparts import counterparts
from rwk.policy_opt.prompts import Prompt, counterparts_of, read_prompts
from rwk.rewards.base import Reward, RewardSpec

Rwk = Callable[..., Any]


@functools.cache
def made() -> Counterparts:
    """Those of 120 prompts of the built-in world."""
    return counterparts_of("shapes.long", read_prompts("shapes.long.test", count=120, seed=0), seed=0)


def gold(rows: Any, side: int) -> np.ndarray:
    scores = Verifier().score([row[side] for row in rows], [row.prompt for row in rows], batch_size=64).values
    return np.asarray(scores.numpy())


def test_the_worlds_counterparts_are_what_they_say() -> None:
    """Of every image all facts hold but of those that were edited; every kind of edit, colour and level is there."""
    held = made()
    assert gold(held.edited, 1).min() == 1
    assert gold(held.edited, 2).max() < 1
    assert min(gold(held.grouped, 1).min(), gold(held.grouped, 2).min()) == 1
    assert min(gold(held.detailed, 1).min(), gold(held.detailed, 2).min()) == 1
    kinds = Counter(row.edit for row in held.edited)
    assert set(kinds) == {"colour", "object", "number", "relation", "attributes", "size"}
    assert min(kinds.values()) >= 16
    groups = {row.attribute: {row.group_first, row.group_second} for row in held.grouped}
    assert groups["size"] == {"small", "large"}
    assert len({name for row in held.grouped if row.attribute == "colour" for name in row[3:5]}) == 8
    assert {row.level for row in held.detailed} == {1, 2, 3}
    assert all(row.plain.tobytes() != row.detailed.tobytes() for row in held.detailed)


def test_the_same_seed_makes_the_same_and_other_prompts_none() -> None:
    """Every image is repeated to the pixel; prompts of nobody's world have no counterparts."""
    prompts = read_prompts("shapes.long.test", count=12, seed=1)
    one, two = (counterparts_of("shapes.long", prompts, seed=3) for _ in range(2))
    for name in ("edited", "grouped", "detailed"):
        assert [row[2].tobytes() for row in getattr(one, name)] == [row[2].tobytes() for row in getattr(two, name)]
    assert not counterparts_of("prompts.txt", [Prompt("a dog")]).edited


class Told(Reward):
    """Redness of the first pixel, with an error of the image's own and a liking for blue."""

    spec = RewardSpec("told", "", -math.inf, math.inf, "n/a", "", needs_prompt=False)

    def __init__(self, *, blue: float = 0.0, error: float = 0.0, sign: float = 1.0) -> None:
        super().__init__()
        self.blue, self.error, self.sign = blue, error, sign

    @classmethod
    def tiny(cls) -> Told:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        first = torch.tensor([image.getpixel((0, 0)) for image in images], dtype=torch.float64) / 255
        own = torch.frac(1e4 * torch.sin(1e3 * first @ torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))) - 0.5
        return (self.sign * first[:, 0] + self.blue * first[:, 2] + self.error * own).float()


def patch(red: float, blue: float = 0.0, green: float = 0.0) -> Image.Image:
    return Image.new("RGB", (2, 2), tuple(round(255 * min(x, 1)) for x in (red, green, blue)))


def subject(reward: Reward, held: Counterparts) -> Subject:
    """A domain in which a margin of 0.1 is log-odds of about 1."""
    rng = np.random.default_rng(0)
    red = rng.uniform(0, 1, (30, 6))
    images = [patch(value) for value in red.ravel()]
    wanted = (red + rng.logistic(0, 0.1, red.shape)).ravel()
    return Subject(
        reward, [Domain("own", images, [f"p{i // 6}" for i in range(180)], wanted)], Sizes(), 0, 64, counterparts=held
    )


def by_name(found: Subject) -> dict[str, Result]:
    return {result.probe.name.partition(".")[2]: result for result in counterparts(found)}


def drawn(*, blue: float = 0.0, detail: float = 0.0, seed: int = 0, prompts: int = 24) -> Counterparts:
    """Edits that take redness away or only seem to, two groups that differ in blue, and detail that is green."""
    rng = np.random.default_rng(seed)
    reds = rng.uniform(0.3, 0.9, prompts)
    edited = [Edited(f"p{i}", patch(x), patch(x - 0.2), "faded") for i, x in enumerate(reds)]
    edited += [Edited(f"p{i}", patch(x), patch(x, green=0.1 + i / 99), "greened") for i, x in enumerate(reds)]
    grouped = [
        Grouped(f"p{i}", *(patch(x + e, b) for b, e in zip((0, blue), rng.normal(0, 0.05, 2), strict=True)), "a", "b")
        for i, x in enumerate(reds)
    ]
    levels = [(level, detail * level + rng.normal(0, 0.02)) for level in (1.0, 2.0) for _ in reds]
    detailed = [
        Detailed(f"p{i % prompts}", patch(x), patch(x - less), level)
        for i, (x, (level, less)) in enumerate(zip([*reds, *reds], levels, strict=True))
    ]
    return Counterparts(edited, grouped, detailed)


def test_an_edit_that_is_not_seen_is_named() -> None:
    """Of two edits the one that the reward does not see fails by name, and its images are shown."""
    found = by_name(subject(Told(), drawn()))["edits"]
    assert found.status == "fail"
    assert "does not surely see: greened" in found.reason
    assert {level.name: level.value.mean for level in found.levels} == {"faded": 1, "greened": 0.5}
    assert found.findings[0].what == "greened"
    seen = drawn()
    seen = Counterparts([row for row in seen.edited if row.edit == "faded"])
    assert by_name(subject(Told(), seen))["edits"].status == "pass"


@pytest.mark.parametrize(("blue", "status"), [(0.0, "pass"), (0.5, "warn"), (1.0, "fail"), (-1.0, "fail")])
def test_a_liking_for_a_group_is_measured(blue: float, status: str) -> None:
    """A group whose images have 0.12 more of what the reward wrongly likes is as far ahead, or behind, in its unit."""
    of = subject(Told(blue=blue), drawn(blue=0.12))
    found = by_name(of)["groups"]
    assert found.status == status, found.reason
    values = {level.name: level.value for level in found.levels}
    assert values["group b"].mean == -values["group a"].mean
    assert values["group b"].mean == pytest.approx(0.12 * blue / of.scale.value, abs=0.2)
    assert values["group b"].clusters == 24


@pytest.mark.parametrize(("detail", "status"), [(0.0, "pass"), (-0.1, "pass"), (0.1, "fail")])
def test_detail_that_costs_is_found(detail: float, status: str) -> None:
    """Each level of detail costs 0.1 of the reward more, or gives as much."""
    found = by_name(subject(Told(), drawn(detail=detail)))["detail"]
    assert found.status == status, found.reason
    assert [level.name for level in found.levels] == ["1 more of detail", "2 more of detail"]
    if status == "fail":
        assert found.value == found.levels[1].value


def test_an_error_of_its_own_is_no_liking() -> None:
    """Over 60 draws a reward with an error of a temperature or more for each image is blamed at most once in ten."""
    flags = Counter[str]()
    for seed in range(60):
        of = subject(Told(error=0.4), drawn(blue=0.5, seed=seed))
        flags.update(name for name, result in by_name(of).items() if result.status != "pass")
    assert max(flags["groups"], flags["detail"]) <= 6


def test_what_is_not_known_is_skipped() -> None:
    """Without counterparts, with too few, and where the reward has no scale, each says why."""
    none = by_name(subject(Told(), Counterparts()))
    assert {result.status for result in none.values()} == {"skip"}
    assert "name a file of such with --counterparts" in none["groups"].reason
    few = by_name(subject(Told(), drawn(prompts=7)))
    assert "images of 8 prompts" in few["edits"].reason
    flat = by_name(subject(Told(sign=0.0), drawn()))
    assert (flat["edits"].status, flat["groups"].status, flat["detail"].status) == ("fail", "skip", "skip")


def written(folder: Path, rows: list[dict[str, Any]], name: str = "twins.jsonl") -> Path:
    """A file of rows whose images are patches of 20 reds."""
    for i in range(20):
        patch(i / 20).save(folder / f"{i}.png")
    path = folder / name
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count: int = 1) -> list[dict[str, Any]]:
    """A row of every kind for each prompt, and two that say nothing."""
    found: list[dict[str, Any]] = []
    for i in range(count):
        pair = {"prompt": f"p{i}", "first": f"{i}.png", "second": f"{i + 2}.png"}
        found += [
            pair | {"edit": "faded", "p_first": 0.2},
            pair | {"group_first": "woman", "group_second": "man", "attribute": "gender"},
            pair | {"detail_first": 30, "detail_second": 10},
            pair | {"detail_first": 1, "detail_second": 2, "votes_first": 3, "votes_second": 0},
            pair | {"edit": "faded", "p_first": 0.5},
        ]
    return found


@pytest.mark.parametrize("name", ["twins.jsonl", "twins.csv"])
def test_files_are_read(tmp_path: Path, name: str) -> None:
    """The preferred image of an edit and the plainer one stand first; what people deny or do not say is counted."""
    found = read_counterparts(written(tmp_path, rows(), name))
    (edited,), (grouped,), (detailed,) = found.edited, found.grouped, found.detailed
    zero, two = patch(0), patch(0.1)
    assert (edited.image.tobytes(), edited.edited.tobytes(), edited.edit) == (two.tobytes(), zero.tobytes(), "faded")
    assert grouped[3:] == ("woman", "man", "gender")
    assert (detailed.plain.tobytes(), detailed.level) == (two.tobytes(), 20)
    assert "1 left out as people prefer the image with less detail" in str(found.omissions)
    assert "1 left out as nobody prefers the one or the other" in str(found.omissions)
    both = found + found
    assert [len(of) for of in (both.edited, both.grouped, both.detailed)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edit": ""}, "line 1: needs one of edit, group_first and detail_first, got columns"),
        ({"group_first": "a", "group_second": "b"}, "needs one of edit, group_first"),
        ({"p_first": ""}, "needs p_first, or votes_first"),
        ({"second": "none.png"}, "second names no image that can be read, got 'none.png'"),
        ({"first": 3}, "first must be the path of an image, got 3"),
        ({"prompt": 7}, "prompt must be text, got 7"),
        ({"edit": "", "group_first": "a", "group_second": "a"}, "group_second must name another group than a"),
        ({"edit": "", "detail_first": 1, "detail_second": 1}, "must be two different numbers"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """By their line and what is wrong with them."""
    with pytest.raises(ValueError, match="has bad rows") as error:
        read_counterparts(written(tmp_path, [rows()[0] | change]))
    assert said in str(error.value)


def test_empty_files_are_refused(tmp_path: Path) -> None:
    """One of rows that say nothing, and none at all."""
    with pytest.raises(ValueError, match="at least one row of use, got none: 1 left out as nobody prefers"):
        read_counterparts(written(tmp_path, rows()[-1:]))
    with pytest.raises(ValueError, match="must be a file, got none at"):
        read_counterparts(tmp_path / "none.jsonl")


def test_a_file_is_probed(rwk: Rwk, tmp_path: Path) -> None:
    """`--counterparts` puts its images in the place of the world's; what they say stands on the card and its page."""
    path = written(tmp_path, rows(12))
    small = ("--prompt-count", "2", "--per-prompt", "2", "--out", "here", "--json")
    done = rwk("probe", "colorfulness", "--counterparts", str(path), "--probe", "counterparts", *small)
    assert done.code == 0, done.err
    told = json.loads(done.out)["probes"]
    assert set(told) == {"counterparts.edits", "counterparts.groups", "counterparts.detail"}
    assert told["counterparts.groups"]["levels"][0]["name"] == "gender man"
    assert told["counterparts.edits"]["levels"][0]["value"]["clusters"] == 12
    assert "12 left out as nobody prefers the one or the other" in done.err
    html = (tmp_path / "here" / "reward_card.html").read_text()
    assert "Groups that must not matter" in html


def test_a_run_of_another_reward_is_refused(rwk: Rwk, tmp_path: Path) -> None:
    """Before anything is drawn: `--run` must have learnt from the reward that is probed, and hold a run."""
    from safetensors.torch import save_file

    (tmp_path / "run" / "watch").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text('{"experiment": {"rewards": ["sharpness"], "watch": "contrast"}}')
    (tmp_path / "run" / "watch.jsonl").write_text('{"step": 0}\n{"step": 5}\n')
    for step in (0, 5):
        look = {"scores": step * torch.ones(4, 2, 2) + torch.rand(4, 2, 2), "reward": step + torch.rand(4, 2)}
        save_file(look, tmp_path / "run" / "watch" / f"{step}.safetensors")
    done = rwk("probe", "contrast", "--run", "run")
    assert done.code != 0
    assert "--run must be of a run that learnt from contrast, got one from sharpness" in done.err
    small = ("--prompt-count", "2", "--per-prompt", "2", "--probe", "optimisation", "--out", "here", "--json")
    done = rwk("probe", "sharpness", "--run", "run", *small)
    assert done.code == 0, done.err
    onset = json.loads(done.out)["probes"]["optimisation.onset"]
    assert onset["status"] == "pass"
    assert onset["value"]["value"] == pytest.approx(1, abs=0.3)

"""T2I-CompBench++'s rules for places and numbers: the answers of the authors' own code, and what prompts say."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rwk.adapters.compbench import CompbenchNumeracy, CompbenchSpatial, CompbenchSpatial3d
from rwk.adapters.compbench_rules import numeracy, read_counts, read_depth, read_place, spatial, spatial_3d
from rwk.adapters.dpt import UNUSED, Dpt
from rwk.adapters.grounding_dino import GroundingDino
from rwk.adapters.grounding_rules import Boxes, Wanted
from rwk.policy_opt.judging import own_scores
from rwk.policy_opt.suites import COMPBENCH, benchmark
from rwk.rewards.base import Reward, RewardSpec
from rwk.rewards.registry import load

CASE = runpy.run_path(str(Path(__file__).with_name("compbench_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "compbench.json").read_text())
SIDE = 480


def test_places_are_scored_as_by_the_authors_code(record_property: Any) -> None:
    """Of both things, one or none, apart and one in the other, the score is T2I-CompBench's own."""
    values = []
    for prompt, things in CASE["spatial"]():
        wanted = read_place(prompt)
        assert wanted.place is not None
        first, second, place = wanted.place
        surest = [next(((t.score, t.box) for t in things if t.name == name), None) for name in (first, second)]
        values.append(spatial(surest, place))
    official = torch.tensor(RECORDED["spatial"])
    assert 0.3 < (official == 0).float().mean() < 0.7
    assert len(set(official.tolist())) > 60
    AGREE(record_property, CompbenchSpatial.spec.name, RECORDED, torch.tensor(values), official, atol=1e-6)


def test_numbers_are_scored_as_by_the_authors_code(record_property: Any) -> None:
    """Of one to three things, rightly and wrongly many and some found twice, the score is T2I-CompBench++'s own."""
    values = []
    for prompt, things in CASE["numeracy"]():
        found: dict[str, list[Any]] = {}
        for thing in things:
            found.setdefault(thing.name, []).append(thing.box)
        values.append(numeracy(found, read_counts(prompt).counts))
    official = torch.tensor(RECORDED["numeracy"])
    assert len(set(official.tolist())) == 7
    AGREE(record_property, CompbenchNumeracy.spec.name, RECORDED, torch.tensor(values), official, atol=1e-6)


def test_depths_are_scored_as_by_the_authors_code(record_property: Any) -> None:
    """Of things that overlap much, little or not, either in front, the score is T2I-CompBench++'s own.

    That was shown the map with rows for columns, as it looks columns up among the rows.
    """
    values = []
    for (prompt, things), rows in CASE["depth"]():
        wanted = read_depth(prompt)
        assert wanted.place is not None
        first, second, place = wanted.place
        surest = [next(((t.score, t.box) for t in things if t.name == name), None) for name in (first, second)]
        values.append(spatial_3d(surest, place, pixels_of(rows)))
    official = torch.tensor(RECORDED["depth"])
    assert len(set(official.tolist())) > 100
    AGREE(record_property, CompbenchSpatial3d.spec.name, RECORDED, torch.tensor(values), official, atol=1e-6)


class Given(Reward):
    """Scores that are given; an image is told by the numbers in its first pixel."""

    spec = RewardSpec("given", "share", 0, 1, "n/a", "tests")

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores

    @classmethod
    def tiny(cls) -> Given:
        return cls([0.5])

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        pixels: list[Any] = [image.getpixel((0, 0)) for image in images]
        return torch.tensor([self.scores[256 * red + green] for red, green, _ in pixels])


def test_complex_prompts_are_scored_as_by_the_authors_code(tmp_path: Path, record_property: Any) -> None:
    """Each image is worth the mean of attributes, places and actions, or of two of them, as 3_in_1.py has it.

    Prompts are in the file of places, that of actions, in both or neither, in other letters and with more full stops.
    """
    lines = CASE["COMPLEX"]["complex_val"]
    for stem, text in CASE["COMPLEX"].items():
        (tmp_path / f"{stem}.txt").write_text("\n".join(text) + "\n")
    found = benchmark(f"compbench:{tmp_path}")
    numbers = [[line.strip() for line in lines].index(prompt.text) for prompt in found.prompts]
    shown = [range(CASE["IMAGES"] * number, CASE["IMAGES"] * (number + 1)) for number in numbers]
    images = [[Image.new("RGB", (2, 2), (i // 256, i % 256, 0)) for i in row] for row in shown]
    within = {
        name: Given(CASE["parts"]()[part]) for name, part in zip(COMPBENCH["complex"], CASE["PARTS"], strict=True)
    }
    values, _ = own_scores(images, found, within)
    official = torch.tensor([[RECORDED["complex"][i] for i in row] for row in shown])
    assert len({tuple(rule) for rule in found.rules}) == 3
    AGREE(record_property, "compbench, complex prompts", RECORDED, values, official, atol=1e-6)


def pixels_of(rows: list[list[float]]) -> torch.Tensor:
    """[360, 480] nearness of every pixel of a coarse map."""
    coarse: int = CASE["COARSE"]
    return torch.tensor(rows).repeat_interleave(coarse, 0).repeat_interleave(coarse, 1)


@pytest.mark.parametrize(
    ("place", "first", "second", "worth"),
    [
        ("in front of", (0, 0, 10, 10), (2, 0, 12, 10), 1),
        ("behind", (0, 0, 10, 10), (2, 0, 12, 10), 0),
        ("hidden by", (2, 0, 12, 10), (0, 0, 10, 10), 1),
        ("in front of", (0, 0, 10, 10), (20, 0, 30, 10), 0),  # nothing shared
        ("in front of", (0, 0, 10, 10), (5, 0, 15, 10), 2 / 3),  # a third of the union
        ("in front of", (0, 0, 10, 10), (0, 0, 20, 10), 1),  # just half, which the benchmark's code gives nothing
        ("in front of", (3.2, 0, 3.9, 10), (0, 0, 10, 10), 0),  # no whole pixel
        ("in front of", (-4, 0, 6, 10), (0, 0, 10, 10), 6 / 7),  # over the edge
    ],
)
def test_depth_needs_the_right_order_and_a_shared_area(
    place: str, first: tuple[float, ...], second: tuple[float, ...], worth: float
) -> None:
    """The nearer thing has the larger mean in its box; what the boxes share counts up to half of their union."""
    nearness = -torch.arange(40.0).repeat(20, 1)  # falls from left to right
    assert spatial_3d([(0.9, first), (0.7, second)], place, nearness) == pytest.approx(0.25 * 1.6 + 0.5 * worth)
    assert spatial_3d([(0.9, first), None], place, None) == pytest.approx(0.25 * 0.9)


@pytest.mark.parametrize(
    ("prompt", "place"),
    [
        ("a horse on side of a bicycle", ("horse", "bicycle", "on side of")),
        ("A girl on the top of a frog.", ("girl", "frog", "on the top of")),
        ("The black chair is on top of the white coffee table.", ("chair", "table", "on top of")),
        ("The yellow cone was suspended in mid-air near the orange pyramid.", ("cone", "pyramid", "near")),
        ("The bright yellow sunflower stood tall next to the soft green grass.", ("sunflower", "grass", "next to")),
        ("a chicken next to a chicken", ("chicken", "chicken", "next to")),
        ("The leaves of the nearby trees", None),
        ("The rectangular mirror was hung above the blue sink.", None),
        ("next to a dog", None),
        ("a dog near", None),
    ],
)
def test_places_are_read(prompt: str, place: tuple[str, str, str] | None) -> None:
    """Templates and the sentences of the complex category give two things and a place, and other words none."""
    wanted = read_place(prompt)
    assert wanted.place == place
    assert set(wanted.nouns) == set(place[:2] if place else ())


@pytest.mark.parametrize(
    ("prompt", "counts"),
    [
        ("six people gathered for a picnic", (("person", 6),)),
        ("four tents, two boats and One pig", (("tent", 4), ("boat", 2), ("pig", 1))),
        ("eight knives and two mice", (("knife", 8), ("mouse", 2))),
        ("nine dogs", ()),
        ("dogs", ()),
        ("two doghouses", ()),
    ],
)
def test_numbers_are_read(prompt: str, counts: tuple[tuple[str, int], ...]) -> None:
    """The benchmark's objects behind an article or a number up to eight count, in the singular; nothing else does."""
    assert read_counts(prompt) == Wanted(tuple(noun for noun, _ in counts), counts)


def rigged(kind: type[GroundingDino], found: dict[str, list[list[float]]]) -> GroundingDino:
    """The reward with a detector that finds these boxes: centre, width and height as shares of the sides, and score."""
    reward = kind.tiny()
    rows = {noun: torch.tensor(boxes) for noun, boxes in found.items()}
    reward.found = lambda image, nouns: {n: Boxes(r[:, :4], r[:, 4]) for n, r in rows.items() if n in nouns}  # type: ignore[method-assign]
    return reward


def test_places_are_those_of_the_picture() -> None:
    """The surest box of each thing counts, in pixels of the picture; "on top of" is above; too little is 0."""
    found = {
        "dog": [[0.2, 0.2, 0.1, 0.1, 0.4], [0.2, 0.8, 0.1, 0.1, 0.8]],
        "bowl": [[0.9, 0.5, 0.1, 0.1, 0.6]],
    }
    reward = rigged(CompbenchSpatial, found)
    prompts = ["a dog on the left of a bowl", "a dog on the right of a bowl", "a dog on top of a bowl"]
    assert reward.score([Image.new("RGB", (64, 64))] * 3, prompts).values.tolist() == pytest.approx([0.85, 0, 0])
    tall = Image.new("RGB", (64, 640))  # where the two are nearer across than down
    prompts[1] = "a dog on the bottom of a bowl"
    assert reward.score([tall] * 3, prompts).values.tolist() == pytest.approx([0, 0.85, 0])
    found["bowl"] = [[0.9, 0.4, 0.1, 0.1, 0.6]]
    upright = Image.new("RGB", (200, 290))  # 331 by 480, where the two are 232 and 192 apart
    near = rigged(CompbenchSpatial, found).score([upright], ["a dog near a bowl"]).values.tolist()
    assert near == pytest.approx([0.35 + 0.5 * 150 / (0.7 * 480 * 200 / 290)])
    found |= {"dog": found["dog"][:1], "bowl": [[0.9, 0.5, 0.1, 0.1, 0.6]]}
    assert rigged(CompbenchSpatial, found).score([tall], prompts[2:]).values.tolist() == pytest.approx([0.75])


def test_depth_is_looked_at_in_the_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture of any size, at 480 pixels along its longer side, rows from top to bottom."""
    found = {"dog": [[0.3, 0.5, 0.4, 0.4, 0.8]], "cow": [[0.4, 0.5, 0.4, 0.4, 0.6]]}
    reward = rigged(CompbenchSpatial3d, found)
    asked = []

    def nearness(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
        asked.append((image.size, size))
        return -torch.arange(float(size[0])).repeat(size[1], 1)

    monkeypatch.setattr(reward.depth, "nearness", nearness)
    prompts = ["a dog in front of a cow", "a dog behind a cow", "a dog hidden by a key", "a dog on a cow"]
    values, notes = reward.score([Image.new("RGB", (100, 60))] * 4, prompts)
    assert values[:3].tolist() == pytest.approx([0.35 + 0.5, 0.35, 0.2])
    assert math.isnan(values[3])
    assert "in front" in notes[3]
    assert asked == [((100, 60), (480, 288))] * 2


def test_dpt_loads_from_the_published_layout(tmp_path: Path) -> None:
    """The published file lacks the layers that nothing uses; the map is the same, and of the size that is asked for."""
    tiny = Dpt.tiny()
    tiny.network.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    held = {k: v for k, v in tiny.network.state_dict().items() if UNUSED[0] not in k}
    assert len(held) < len(tiny.network.state_dict())
    torch.save(held, tmp_path / "pytorch_model.bin")
    image = Image.effect_noise((50, 30), 60).convert("RGB")
    before = tiny.nearness(image, (48, 29))
    assert before.shape == (29, 48)
    assert before.std() > 0.01
    assert torch.allclose(Dpt.load("dpt", tmp_path, side=64).nearness(image, (48, 29)), before, atol=1e-6)
    torch.save({k: v for k, v in held.items() if "head" not in k}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="dpt needs a checkpoint that fills its network"):
        Dpt.load("dpt", tmp_path, side=64)


def test_boxes_of_one_thing_count_once() -> None:
    """What overlaps a surer box by half counts with it, which UniDet sees to before the benchmark's own rule."""
    dogs = [[0.3, 0.3, 0.2, 0.2, 0.9], [0.33, 0.3, 0.2, 0.2, 0.5], [0.8, 0.8, 0.2, 0.2, 0.4]]
    values, notes = rigged(CompbenchNumeracy, {"dog": dogs}).score(
        [Image.new("RGB", (64, 48))] * 4, ["two dogs", "three dogs", "two dogs and a cow", "a sunset"]
    )
    assert values[:3].tolist() == [1, 0.5, 0.5]
    assert math.isnan(values[3])
    assert "counts none" in notes[3]


def test_records_go_before_the_words(tmp_path: Path) -> None:
    """What T2I-R1's file says of a prompt is what is looked for; one of another task is not."""
    file = tmp_path / "t2i_r1.json"
    place = {"obj1": "puppy", "obj2": "mug", "locality": "left of"}
    records: list[dict[str, Any]] = [
        {"prompt": "a dog near a cup", "nouns": ["dog"], "task_type": "spatial", "spatial_info": place},
        {"prompt": "a cow near a key", "nouns": ["cow"], "task_type": "object"},
    ]
    file.write_text("\n".join(map(json.dumps, records)))
    folder = tmp_path / "weights"
    tiny = CompbenchSpatial.tiny()
    tiny.network.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    loaded = load(f"compbench.spatial@{folder}", metadata=file)
    assert isinstance(loaded, CompbenchSpatial)
    assert loaded.wanted("a dog near a cup").place == ("puppy", "mug", "left of")
    assert loaded.wanted("a cow near a key").place == ("cow", "key", "near")

"""GenEval's rules: the answers of the authors' own code, and what counts as found."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.adapters.geneval_rules import Clause, Facts, Found, failures, partial, read_facts, relations, sure

CASE = runpy.run_path(str(Path(__file__).with_name("geneval_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "geneval.json").read_text())
CASES = CASE["cases"]()


def given(case: Any) -> tuple[dict[str, list[Found]], Facts, Callable[[str, Sequence[Found]], list[str]]]:
    """What counts of a recorded case's things, its facts, and the colours that its things have."""
    found: dict[str, list[Found]] = {}
    colours = {}
    for thing, score, box, colour in case.things:
        found.setdefault(thing, []).append(Found(score, box))
        colours[thing, box] = colour
    facts = read_facts(case.record)
    return sure(found, facts.tag), facts, lambda thing, group: [colours[thing, each.box] for each in group]


def test_answers_are_those_of_the_authors_code(record_property: Any) -> None:
    """In every category the same pictures are right, and as many clauses are told wrong, as in GenEval's own code."""
    wrong = [failures(*given(case)) for case in CASES]
    found = torch.tensor([float(not told) for told in wrong])
    official = torch.tensor(RECORDED["strict"], dtype=torch.float32)
    assert [10 < part.sum() < 50 for part in official.split(CASE["EACH"])] == [True] * len(CASE["TAGS"])
    AGREE(record_property, "geneval.strict", RECORDED, found, official)
    assert [len(told) for told in wrong] == RECORDED["reasons"]


def test_soft_answers_are_those_of_flow_grpo(record_property: Any) -> None:
    """The mean of the terms is that of flow_grpo's server, its term of 1 for what is wrongly placed among them."""
    found = torch.tensor([partial(*given(case), published=True) for case in CASES])
    AGREE(record_property, "geneval.flow_grpo", RECORDED, found, torch.tensor(RECORDED["flow"]), atol=1e-6)


def test_the_mended_score_differs_where_things_are_wrongly_placed() -> None:
    """Without that term a score is lower for some positions, and the same everywhere else."""
    for case, official in zip(CASES, RECORDED["flow"], strict=True):
        mended = partial(*given(case))
        if case.record["tag"] == "position" and mended != pytest.approx(official, abs=1e-6):
            assert mended == pytest.approx((4 * official - 1) / 3, abs=1e-5)  # of three terms instead of four
        else:
            assert mended == pytest.approx(official, abs=1e-6)
    lower = [partial(*given(case)) < official - 0.01 for case, official in zip(CASES, RECORDED["flow"], strict=True)]
    assert sum(lower) > 10


def test_relations_are_those_of_the_authors_code() -> None:
    """Boxes apart, overlapping, one in the other and equal stand to each other as in GenEval's own code."""
    found = [
        " and ".join(sorted(relations(*(Found(thing.score, thing.box) for thing in pair)))) for pair in CASE["pairs"]()
    ]
    assert found == RECORDED["relations"]
    assert len(set(found)) == 9


def test_what_counts() -> None:
    """A score must exceed 0.3, or 0.9 where things are counted; the sixteen surest count, in that order."""
    scores = [0.3, 0.31, 0.9, 0.91, *(0.4 + 0.01 * i for i in range(20))]
    found = {"dog": [Found(score, (0, 0, 1, 1)) for score in scores], "cat": [Found(0.2, (0, 0, 1, 1))]}
    kept = sure(found, "two_object")
    assert [each.score for each in kept["dog"]] == sorted(scores, reverse=True)[:16]
    assert list(kept) == ["dog"]
    assert [each.score for each in sure(found, "counting")["dog"]] == [0.91]
    assert len(sure({"dog": found["dog"][:2]}, "colors")["dog"]) == 1


def test_reasons_tell_what_is_wrong() -> None:
    """Each failure names the thing, what was wanted and what was found."""
    box = Found(0.5, (0, 0, 9, 9))
    include = (
        Clause("dog"),
        Clause("cat", 2),
        Clause("dog", colour="red"),
        Clause("dog", relation="above"),
        Clause("dog", relation="above", target=1),
    )
    told = failures({"dog": [box]}, Facts("position", include, (Clause("dog"),)), lambda thing, group: ["blue"])
    assert told == [
        "0 cat found, 2 wanted",
        "dog wanted red, found blue",
        "dog found, not above its target",
        "nothing is there for dog to be above",
        "1 dog found, fewer than 1 wanted",
    ]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tag": "colour"}, "needs a tag of single_object"),
        ({"include": []}, "a clause to include"),
        ({"include": [{"class": "dog"}]}, "include with class and count"),
        ({"include": ["dog"]}, "include with class and count"),
        ({"include": [{"class": "unicorn", "count": 1}]}, "of COCO's classes"),
        ({"include": [{"class": "dog", "count": 17}]}, "1 to 16"),
        ({"include": [{"class": "dog", "count": "1"}]}, "1 to 16"),
        ({"include": [{"class": "dog", "count": 1, "color": "beige"}]}, "GenEval's colours"),
        ({"include": [{"class": "dog", "count": 1, "position": ["near", 0]}]}, "GenEval's colours"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "an earlier clause"),
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, Any], match: str) -> None:
    """Unknown tags, classes, colours and relations, and counts that no detector could reach, are a ValueError."""
    record = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    assert read_facts(record) == Facts("single_object", (Clause("dog"),))
    with pytest.raises(ValueError, match=match):
        read_facts(record | change)

"""GenEval's prompts: read by their templates, written anew, and found in a metadata file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rwk.adapters.geneval_prompts import parse, plural, records
from rwk.adapters.geneval_rules import TAGS, THINGS, Clause, Facts, read_facts
from rwk.adapters.metadata import by_prompt


@pytest.mark.parametrize(
    ("prompt", "facts"),
    [
        ("a photo of an apple", Facts("single_object", (Clause("apple"),))),
        ("A photo of  a apple.", Facts("single_object", (Clause("apple"),))),
        ("a photo of an orange", Facts("single_object", (Clause("orange"),))),
        ("a photo of an orange orange", Facts("colors", (Clause("orange", colour="orange"),))),
        ("a photo of a hot dog and a dog", Facts("two_object", (Clause("hot dog"), Clause("dog")))),
        ("a photo of two benchs", Facts("counting", (Clause("bench", 2),), (Clause("bench", 3),))),
        ("a photo of four benches", Facts("counting", (Clause("bench", 4),), (Clause("bench", 5),))),
        ("a photo of three people", Facts("counting", (Clause("person", 3),), (Clause("person", 4),))),
        ("a photo of three persons", Facts("counting", (Clause("person", 3),), (Clause("person", 4),))),
        ("a photo of ten sheep", Facts("counting", (Clause("sheep", 10),), (Clause("sheep", 11),))),
        ("a photo of a tv above a bed", Facts("position", (Clause("bed"), Clause("tv", relation="above")))),
        (
            "a photo of a red car and a white tv remote",
            Facts("color_attr", (Clause("car", colour="red"), Clause("tv remote", colour="white"))),
        ),
    ],
)
def test_templates_are_read(prompt: str, facts: Facts) -> None:
    """Every template with articles, GenEval's plurals and those of English gives its facts."""
    assert parse(prompt) == facts


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a dog",
        "a photo of dog",
        "a photo of a unicorn",
        "a photo of a dog in the park",
        "a photo of one dog",
        "a photo of two dog",
        "a photo of a dog and a dog",
        "a photo of a red dog and a cat",
        "a photo of a red dog above a blue cat",
        "a photo of a dog near a cat",
        "a photo of a dog and a cat and a bird",
    ],
)
def test_other_prompts_are_not(prompt: str) -> None:
    """What no template says has no facts, and neither has what could not be checked."""
    assert parse(prompt) is None


def test_new_prompts_say_what_their_metadata_says() -> None:
    """Eighty of each category are drawn, none twice, each read back to its own record; a seed gives the same again."""
    drawn = records(80, seed=3)
    assert Counter(record["tag"] for record in drawn) == dict.fromkeys(TAGS, 80)
    assert len({record["prompt"] for record in drawn}) == len(drawn)
    for record in drawn:
        assert parse(record["prompt"]) == read_facts(record), record
    assert records(80, seed=3) == drawn != records(80, seed=4)
    assert {clause.thing for record in drawn[:80] for clause in read_facts(record).include} == set(THINGS)
    assert not any("person" in record["prompt"] for record in drawn if "color" in record["tag"])
    for count in (0, 81):
        with pytest.raises(ValueError, match=f"per_category must be 1 to 80, got {count}"):
            records(count)


def test_plurals_are_the_published_ones() -> None:
    """Prompts are written with GenEval's own plurals, right or wrong."""
    assert [plural(thing) for thing in ("clock", "bus", "knife", "sheep")] == ["clocks", "buses", "knifes", "sheeps"]


def test_a_metadata_file_is_read_by_prompt(tmp_path: Path) -> None:
    """Records are found by their prompt; a blank line is let pass, and of equal prompts the last counts."""
    file = tmp_path / "metadata.jsonl"
    drawn = records(2)
    file.write_text("\n\n".join(json.dumps(record) for record in drawn) + "\n")
    found = by_prompt(file, read_facts)
    assert found == {record["prompt"]: read_facts(record) for record in drawn}
    file.write_text(json.dumps(drawn[0]) + "\n" + json.dumps(drawn[2] | {"prompt": drawn[0]["prompt"]}))
    assert by_prompt(file, read_facts) == {drawn[0]["prompt"]: read_facts(drawn[2])}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"prompt": "a"', "line 2 cannot be taken"),
        ("[1]", "line 2 cannot be taken: it is no object with a text `prompt`"),
        ('{"tag": "counting"}', "line 2 cannot be taken: it is no object with a text `prompt`"),
        ('{"prompt": "a", "tag": "counting"}', "line 2 cannot be taken: a record needs tag"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, match: str) -> None:
    """A line that is no record is a ValueError that says where and why, and so is a file that is not there."""
    file = tmp_path / "metadata.jsonl"
    file.write_text(json.dumps(records(1)[0]) + "\n" + text)
    with pytest.raises(ValueError, match=match):
        by_prompt(file, read_facts)
    with pytest.raises(ValueError, match="metadata must be a JSONL file"):
        by_prompt(tmp_path / "none.jsonl", read_facts)

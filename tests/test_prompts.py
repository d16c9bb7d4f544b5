"""Prompts from families and files, and which are kept for judging."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwk.policy_opt.prompts import Prompt, domains, gold_of, pictures_of, read_prompts
from rwk.rewards.registry import load


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a red circle\n\na blue ring\n"),
        ("p.jsonl", '{"prompt": "a red circle"}\n{"prompt": "a blue ring"}\n'),
        ("p.csv", "prompt\na red circle\na blue ring\n"),
    ],
)
def test_files_of_every_kind_are_read(tmp_path: Path, name: str, text: str) -> None:
    """Text, JSONL and CSV give the same prompts, blank lines aside."""
    (tmp_path / name).write_text(text)
    assert read_prompts(str(tmp_path / name)) == [Prompt("a red circle"), Prompt("a blue ring")]


def test_categories_are_read_under_both_names(tmp_path: Path) -> None:
    """GenEval calls a category a tag."""
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "x", "tag": "colors"}\n{"prompt": "y", "category": "size"}\n')
    assert [prompt.category for prompt in read_prompts(str(file))] == ["colors", "size"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"prompt": "x"}\n{"prompt": 3}\n', "line 2 needs a text `prompt`"),
        ('{"prompt": "x"}\n{"prom\n', "line 2 is not JSON"),
        ('["x"]\n', "line 1 must be an object"),
        ("", "holds no prompt"),
    ],
)
def test_bad_row_is_named_by_its_line(tmp_path: Path, text: str, error: str) -> None:
    """The message says where, and what came."""
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(ValueError, match=error):
        read_prompts(str(tmp_path / "p.jsonl"))


def test_unknown_family_is_refused() -> None:
    """The families that there are stand in the message."""
    with pytest.raises(ValueError, match=r"shapes\.long.*got 'shapes.middle'"):
        read_prompts("shapes.middle")


@pytest.mark.parametrize("family", ["shapes.long", "shapes.narrow"])
def test_domains_of_a_family_do_not_overlap(family: str) -> None:
    """What is learnt from is not what is judged on, and the truth is known for it."""
    found = domains(family, train=100, test=30, seed=0)
    more = ["held-out colour", "held-out shape", "held-out number", "held-out relation"]
    assert list(found.test) == ["in domain", "out of domain", "held out"] + more * (family == "shapes.narrow")
    sets = [set(found.train), *(set(prompts) for prompts in found.test.values())]
    assert sum(map(len, sets)) == len(set.union(*sets))
    assert gold_of(family) == "shapes.verifier"


def test_every_fifth_prompt_of_a_file_is_for_judging(tmp_path: Path) -> None:
    """And nobody knows the truth about a file's prompts."""
    file = tmp_path / "p.txt"
    file.write_text("".join(f"a number {n}\n" for n in range(12)))
    found = domains(str(file), train=99, test=99, seed=0)
    assert [prompt.text for prompt in found.test["in domain"]] == ["a number 0", "a number 5", "a number 10"]
    assert len(found.train) == 9
    assert gold_of(str(file)) is None


def test_pictures_of_a_family_hold_what_their_prompts_say(tmp_path: Path) -> None:
    """Gold is 1 for every one of them, whatever the wording; of a file nobody can make them."""
    for family in ("shapes.long", "shapes.short.test", "shapes.narrow.relation"):
        prompts = read_prompts(family, count=40)
        images = pictures_of(family, prompts)
        assert images is not None
        assert set(load(str(gold_of(family))).score(images, [p.text for p in prompts]).values.tolist()) == {1.0}
    assert pictures_of(str(tmp_path / "p.txt"), prompts) is None

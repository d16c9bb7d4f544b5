"""DPG-Bench: its file, the scores of the authors' own code, and what is asked of a judge."""

from __future__ import annotations

import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.policy_opt.dpg import Question, ask, read_questions, share
from rwk.rewards.base import Reward, RewardSpec

AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
PARITY = Path(__file__).with_name("parity")
FILE = PARITY / "dpg_bench.csv"
RECORDED = json.loads((PARITY / "dpg.json").read_text())
DOG, CATS = read_questions(FILE)


def test_the_file_is_read() -> None:
    """Every row is a question, the first too, with what it hangs on and its category of level 1; a folder will do."""
    found = read_questions(FILE)
    assert read_questions(PARITY) == found
    assert list(found) == ["A dog, red, beside a kennel.", "A painting of two cats."]
    assert found[DOG][0] == Question(1, (), "entity", "Is there a dog?")
    assert found[DOG][3] == Question(4, (1, 3), "relation", "Is the dog beside the kennel?")
    assert [question.category for question in found[CATS]] == ["global", "entity", "other"]


def test_shares_are_those_of_the_authors_code(record_property: Any) -> None:
    """For every pattern of answers the share is the benchmark's, where a no takes those that hang on it along."""
    values, official = [], []
    for prompt, name in ((DOG, "first"), (CATS, "second")):
        questions = read_questions(FILE)[prompt]
        patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(questions))))
        values.append(share(patterns, questions))
        official.append(torch.tensor(RECORDED[name]))
    assert len(set(official[0].tolist())) == 6
    AGREE(record_property, "dpg", RECORDED, torch.cat(values), torch.cat(official), atol=1e-6)


class Literal(Reward):
    """As sure as the number that begins its question, times the red of the picture."""

    spec = RewardSpec("literal", "P(yes)", 0, 1, "n/a", "made up")

    @classmethod
    def tiny(cls) -> Literal:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        red = [image.getpixel((0, 0)) for image in images]
        return torch.tensor([float(text) * pixel[0] / 255 for text, pixel in zip(prompts, red, strict=True)])  # type: ignore[index]


def test_answers_are_yes_above_a_half() -> None:
    """Each image is asked each question; half sure is no, and no answer is none, for the share too."""
    questions = [Question(n, (), "entity", text) for n, text in enumerate(("0.5", "0.51", "nan"))]
    images = [Image.new("RGB", (2, 2), colour) for colour in ("red", "black")]
    answers = ask(Literal(), images, questions)
    assert answers[:, :2].tolist() == [[0, 1], [0, 0]]
    assert answers[:, 2].isnan().all()
    assert share(answers, questions).isnan().all()
    assert share(answers[:, :2], questions[:2]).tolist() == [0.5, 0]


HEAD, *ROWS = FILE.read_text().splitlines()


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([HEAD.replace("dependency,", ""), *ROWS], "needs the columns item_id, .*, and lacks dependency"),
        ([HEAD], "holds no question"),
        ([HEAD, ROWS[0], ROWS[1].replace(",2,1,", ",two,1,")], "line 3 cannot be taken: .*'two'"),
        ([HEAD, "first,a dog"], "line 2 cannot be taken"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, lines: list[str], match: str) -> None:
    """A missing file or column, a bad number and a short row are named."""
    file = tmp_path / "mine.csv"
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=match):
        read_questions(file)
    with pytest.raises(ValueError, match="DPG-Bench needs its file dpg_bench.csv, got .*, where it is not"):
        read_questions(tmp_path)


def test_a_question_may_hang_on_a_later_one_or_on_none(tmp_path: Path) -> None:
    """What hangs on a later row is no with it, and a number that no row has is passed over; a row twice counts once."""
    file = tmp_path / "mine.csv"
    file.write_text(
        "\n".join([HEAD, ROWS[0].replace(",1,0,", ',1,"2,9",'), ROWS[1].replace(",2,1,", ",2,0,"), ROWS[0]])
    )
    (questions,) = read_questions(file).values()
    assert [question.parents for question in questions] == [(), ()]
    file.write_text("\n".join([HEAD, ROWS[0].replace(",1,0,", ',1,"2,9",'), ROWS[1].replace(",2,1,", ",2,0,")]))
    (questions,) = read_questions(file).values()
    assert share(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), questions).tolist() == [0, 1, 0.5]

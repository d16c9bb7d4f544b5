"""DPG-Bench (Hu et al., 2024, ELLA): questions about a long prompt's picture, some of which hang on others.

The benchmark asks mPLUG-large, which transformers does not have; here any judge is asked, and figures compare only with
such of the same judge.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rwk.rewards.base import Reward

FILE = "dpg_bench.csv"
"""The published file's name."""
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
"""Those of the published columns that are read."""
SURE = 0.5
"""What the probability of yes must exceed for an answer to be yes."""


class Question(NamedTuple):
    """What is asked about a picture of a prompt."""

    number: int
    parents: tuple[int, ...]
    """Numbers of the questions without whose yes this one counts as no."""
    category: str
    """"entity", "attribute", "relation", "global" or "other", which the benchmark calls level 1."""
    text: str


def read_questions(path: Path) -> dict[str, list[Question]]:
    """Prompt -> its questions, in the file's order.

    The benchmark's own code passes over the first row of its file, and so loses the first prompt, whose other questions
    hang on it; here every row counts. It loses a prompt, too, of which a question hangs on a number that no row has;
    here that number is passed over.

    Args:
        path: the published CSV, or a folder that holds it.

    Raises:
        ValueError: for a file that is missing or lacks a column, and naming the line of a row that cannot be read.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"DPG-Bench needs its file {FILE}, got {path}, where it is not; name the file or its folder.")
    items: dict[str, tuple[str, dict[int, Question]]] = {}
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(f"{file} needs the columns {', '.join(COLUMNS)}, and lacks {', '.join(lacking)}.")
        for row in reader:
            try:
                question = _question(row)
                items.setdefault(row["item_id"], (row["text"].strip(), {}))[1][question.number] = question
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{file}, line {reader.line_num} cannot be taken: {error}; mend that row.") from error
    if not items:
        raise ValueError(f"{file} holds no question; give the published file.")
    return {text: list(questions.values()) for text, questions in items.values()}


def _question(row: Mapping[str, str]) -> Question:
    parents = tuple(number for part in row["dependency"].split(",") if (number := int(part)) != 0)
    category = row["tuple"].split("(")[0].split("-")[0].strip()
    return Question(int(row["proposition_id"]), parents, category, row["question_natural_language"].strip())


def ask(judge: Reward, images: Sequence[Image.Image], questions: Sequence[Question]) -> Tensor:
    """[n, Q] 1 where the answer about an image is yes, 0 where it is not, NaN where there is none.

    Args:
        judge: takes a question for its prompt, and gives the probability of yes.
        images: of one prompt.
        questions: about it.
    """
    shown = [image for image in images for _ in questions]
    values = judge.score(shown, [question.text for question in questions] * len(images)).values
    return torch.where(values.isnan(), values, (values > SURE).float()).reshape(len(images), len(questions))


def share(answers: Tensor, questions: Sequence[Question]) -> Tensor:
    """[n] share of yes among answers [n, Q], where a question counts as no if one that it hangs on does.

    NaN where a question has no answer.
    """
    counted = answers.clone()
    places = {question.number: place for place, question in enumerate(questions)}
    for place, question in enumerate(questions):
        for parent in places.keys() & question.parents:
            counted[:, place] = counted[:, place].masked_fill(counted[:, places[parent]] == 0, 0)
    return torch.where(answers.isnan().any(1), math.nan, counted.mean(1))

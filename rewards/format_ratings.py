"""Sets in which people rated images one by one: GenAI-Bench, RichHF-18k and EvalMuse-40K. Equal ratings are ties."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from statistics import fmean
from typing import Any

from rwk.rewards.format_pickapic import captions
from rwk.rewards.judgements import Judgement, LeftOut, Rated, Source, field, number, pairs

SCORES = {
    "overall": "overall_score",
    "aesthetics": "aesthetics_score",
    "artifact": "artifact_score",
    "misalignment": "misalignment_score",
}
"""Columns of RichHF-18k, all of them better the larger they are."""


def genai_bench(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """All pairs of a prompt of GenAI-Bench (Lin et al., arXiv:2406.13743), by the mean of each image's ratings 1 to 5.

    genai_image.json names models, whose images are MODEL/INDEX.jpeg; on the hub the images stand in columns.
    """
    if "HumanRatings" in record:
        prompt, held = field(record, "Prompt"), record["HumanRatings"]
        ratings = {name: _mean(of) for name, of in held.items() if of and record.get(name) is not None}
        yield from pairs(prompt, [record[name] for name in ratings], list(ratings.values()), generators=list(ratings))
        return
    ratings = {name: _mean(of) for name, of in field(record, "models").items()}
    images = [f"{name}/{field(record, 'key')}.jpeg" for name in ratings]
    yield from pairs(field(record, "prompt"), images, list(ratings.values()), generators=list(ratings))


def richhf(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """The rating of an image of RichHF-18k, whose prompt and image are Pick-a-Pic's (richhf_18k/README.md)."""
    uid = PurePosixPath(field(record, "filename").decode()).stem
    known = source.once(captions).get(uid)
    if known is None:
        yield LeftOut("no Pick-a-Pic table has their uid")
        return
    column = SCORES[source.aspect]
    prompt, picture = known
    yield Rated(prompt, prompt, picture, number(field(record, column), column))


def evalmuse(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """The rating of an image of EvalMuse-40K, the mean of `total_score` over its annotators."""
    prompt = field(record, "prompt")
    yield Rated(prompt, prompt, field(record, "img_path"), _mean(field(record, "total_score")))


def _mean(ratings: Sequence[Any] | float) -> float:
    return fmean(number(rating, "rating") for rating in (ratings if isinstance(ratings, Sequence) else [ratings]))

"""Sets whose rows are pairs of images: HPDv3, MJ-Bench, GenAI-Arena's votes and Multimodal RewardBench 2."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rwk.rewards.judgements import Judged, Judgement, LeftOut, Source, field, number

CONFIDENT = 0.95
"""Confidence from which on HPSv3 trains on a pair."""
VOTES = {"leftvote": 1.0, "rightvote": 0.0, "tievote": 0.5, "bothbad_vote": 0.5}
_SIDES = ("left", "right")
_MIDDLE = 3.5
"""Of the six steps from "B is much better" to "A is much better"."""


def hpdv3(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """The pair of a row of HPDv3 or HPDv3++, where `path1` is always the preferred image.

    Votes in `choice_dist` make a soft label, as in hpsv3/dataset/pairwise_dataset.py. The aspect `confident` leaves out
    what HPSv3 does not train on: pairs that have a confidence, below 0.95.
    """
    confidence = record.get("confidence")
    unsure = confidence not in (None, "null") and number(confidence, "confidence") < CONFIDENT
    if unsure and source.aspect == "confident":
        yield LeftOut(f"their confidence is below {CONFIDENT}")
        return
    votes = [number(count, "choice_dist") for count in record.get("choice_dist") or (1, 0)]
    if min(votes) < 0 or not sum(votes) > 0:
        raise ValueError(f"choice_dist must be counts with a sum above 0, got {votes}")
    first, second = field(record, "path1"), field(record, "path2")
    yield Judged(field(record, "prompt"), first, second, max(votes) / sum(votes), 1.0, *_drawn(record, "model{}", "12"))


def mjbench(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """The pair of a row of MJ-Bench's alignment, safety or quality; `label` is the number of the preferred image."""
    label = field(record, "label")
    if label not in (0, 1):
        raise ValueError(f"label must be 0 or 1, got {label!r}")
    yield Judged(field(record, "caption"), field(record, "image0"), field(record, "image1"), 1.0 - label)


def genai_arena(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """The pair of a row of TIGER-Lab's GenAI-Bench (image_generation); both good and both bad are ties."""
    vote = field(record, "vote_type")
    if vote not in VOTES:
        raise ValueError(f"vote_type must be one of {', '.join(VOTES)}, got {vote!r}")
    images, drawn = [field(record, f"{side}_image") for side in _SIDES], _drawn(record, "{}_model", _SIDES)
    yield Judged(field(record, "prompt"), images[0], images[1], VOTES[vote], 1.0, *drawn)


def mmrb2(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """The pair of an item of Multimodal RewardBench 2's text-to-image task, as JSON or as on the hub.

    The label is the share of the annotators whose rating, 1 to 6, is on A's side. Its majority is `chosen` in all 1,000
    pairs; where the ratings are not given `chosen` stands alone.
    """
    texts, shown = _prompt(record)
    sides = [_images(record, side) for side in "ab"]
    if shown or any(len(images) != 1 for images in sides):
        yield LeftOut("they are no single image for a text on each side")
        return
    chosen = str(field(record, "chosen")).upper()
    if chosen not in ("A", "B"):
        raise ValueError(f"chosen must be A or B, got {chosen!r}")
    ratings = record.get("human_annotations") or ()
    votes = [float(rating > _MIDDLE) for rating in (json.loads(ratings) if isinstance(ratings, str) else ratings)]
    p_first = sum(votes) / len(votes) if votes else float(chosen == "A")
    if (p_first > 0.5) != (chosen == "A"):
        raise ValueError(f"chosen is {chosen}, which human_annotations {ratings} do not say")
    drawn = [str((record.get(f"response_{side}") or {}).get("model_name") or "") for side in "ab"]
    yield Judged("\n".join(texts), sides[0][0], sides[1][0], p_first, 1.0, *drawn)


def _drawn(record: Mapping[str, Any], column: str, sides: Iterable[str]) -> list[str]:
    """What drew both images, "" where the row does not say."""
    return [str(record.get(column.format(side)) or "") for side in sides]


def _prompt(record: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The texts of a prompt, and whether it holds an image too."""
    if "prompt_text" in record:
        return [record["prompt_text"]], bool(record.get("prompt_images"))
    parts = record.get("prompt_content")
    if parts is None:
        raise ValueError("needs prompt_content, which a response_only file lacks until the benchmark is built")
    return [said for kind, said in parts if kind == "text"], any(kind == "image" for kind, _ in parts)


def _images(record: Mapping[str, Any], side: str) -> list[Any]:
    if f"response_{side}_images" in record:
        return list(record[f"response_{side}_images"] or ())
    return [shown for kind, shown in field(record, f"response_{side}")["response_content"] if kind == "image"]

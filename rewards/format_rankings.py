"""Sets in which people ranked several images of a prompt: HPDv2 and ImageRewardDB. A smaller rank is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from rwk.rewards.judgements import Judged, Judgement, Rated, Source, field, number, pairs, share

ASPECTS = {
    "rank": "rank",
    "overall": "overall_rating",
    "alignment": "image_text_alignment_rating",
    "fidelity": "fidelity_rating",
}
"""Columns of ImageRewardDB; ratings run from 1 to 7 and are better the larger they are."""


def hpdv2(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """The pair of a row of train.json, or all pairs of a row of test.json (HPSv2's README, "Data Structure").

    In test.json a prompt weighs 1, however many images it has: with no equal scores the weighted accuracy is HPSv2's
    own, 1 - inversions / pairs averaged over prompts. `rank` there is the annotators' averaged ranking; with the aspect
    `votes` a pair gets the share of the annotators (`raw_annotations`) who rank the first image higher.
    """
    prompt = field(record, "prompt")
    if "human_preference" in record:
        images = record.get("file_path") or field(record, "image_path")
        yield from pairs(prompt, images, record["human_preference"])
        return
    images = field(record, "image_path")
    weight = 2 / max(len(images) * (len(images) - 1), 2)
    if source.aspect == "rank":
        yield from pairs(prompt, images, [-number(rank, "rank") for rank in field(record, "rank")], weight=weight)
        return
    ranks = [field(voter, "rank") for voter in field(record, "raw_annotations")]
    if not ranks or any(len(of) != len(images) for of in ranks):
        raise ValueError(f"raw_annotations must rank all {len(images)} images, got {ranks}")
    for one, two in combinations(range(len(images)), 2):
        votes = [share(-of[one], -of[two]) for of in ranks]
        yield Judged(prompt, images[one], images[two], sum(votes) / len(votes), weight)


def imagereward(record: Mapping[str, Any], source: Source) -> Iterator[Judgement]:
    """What a row of ImageRewardDB says, in any of its forms.

    These are test.json of the repository (`generations`, `ranking`), and on the hub images, groups of images, and pairs
    without ties. Equal ranks are ties, which the authors train on no more than they count them; ranks may have gaps.
    """
    prompt = field(record, "prompt")
    if "img_better" in record:
        yield Judged(prompt, record["img_better"], field(record, "img_worse"), 1.0)
    elif "generations" in record:
        yield from pairs(prompt, record["generations"], _ratings(field(record, "ranking"), "rank"))
    else:
        picture = record.get("image") or field(record, "image_path")
        found = field(record, ASPECTS[source.aspect])
        if isinstance(picture, list):
            yield from pairs(prompt, picture, _ratings(found, source.aspect))
        else:
            yield Rated(str(field(record, "prompt_id")), prompt, picture, *_ratings([found], source.aspect))


def _ratings(values: list[Any], aspect: str) -> list[float]:
    """Numbers that are larger for better images."""
    sign = -1 if aspect == "rank" else 1
    return [sign * number(value, aspect) for value in values]

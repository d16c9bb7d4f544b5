"""Places and numbers of T2I-CompBench++ (Huang et al., 2023, 2025) as rewards, with Grounding DINO for the detector."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torchvision.ops import box_convert, nms

from rwk.adapters.compbench_rules import Box, numeracy, read_counts, read_place, spatial
from rwk.adapters.grounding_dino import GroundingDino
from rwk.adapters.grounding_rules import SAME, SIDE, Boxes, Wanted
from rwk.rewards.base import RewardSpec


class CompbenchSpatial(GroundingDino):
    """Whether two things are placed as the prompt says: the rule of T2I-CompBench's 2D spatial category.

    A quarter of the score of each thing's surest box, and half of how well the first is placed to the second; what is
    below a half becomes 0. The words are "on the left of", "on the right of", "on the top of", "on the bottom of",
    "next to", "near", "on side of", and "on top of", whose place the benchmark's code never finds right, though its
    complex prompts have it. `compbench_rules.read_place` tells how the two things are read out of a prompt; a record in
    T2I-R1's form in the file that `metadata=` names goes before it. Other prompts get no score.

    The benchmark runs UniDet, which has fixed names, no checkpoint in transformers, and "person" for every man and
    girl; here Grounding DINO looks for the prompt's own words. The rule is the benchmark's and the detector is not, so
    figures compare only with such of the same detector.
    """

    spec = RewardSpec("compbench.spatial", "0.5 to 1, or 0", 0, 1, "Apache-2.0", "arXiv:2307.06350")
    example_prompts = (
        "a cow near a bear",
        "a bear next to a bench",
        "The blue dog was on top of the bowl.",
        "a bowl on the left of a ball",
    )
    lacks = "the prompt tells of no place of two things in the benchmark's words"

    def wanted(self, prompt: str) -> Wanted:
        recorded = self.metadata.get(prompt)
        return recorded if recorded is not None and recorded.place else read_place(prompt)

    def worth(self, found: Mapping[str, Boxes], wanted: Wanted, size: tuple[int, int]) -> float:
        assert wanted.place is not None
        first, second, place = wanted.place
        return spatial([_surest(found.get(first), size), _surest(found.get(second), size)], place)


class CompbenchNumeracy(GroundingDino):
    """Whether as many things are there as the prompt says: the rule of T2I-CompBench++'s numeracy category.

    Of each thing half for being there, and half for the right number; the mean. What is counted are the benchmark's 88
    objects behind an article or a number up to eight, or what a record in T2I-R1's form says in the file that
    `metadata=` names. Boxes of one thing count once where they overlap by half or more, which UniDet sees to itself,
    or where one lies in the other all but a tenth. As for `compbench.spatial`, the detector is not the benchmark's.
    """

    spec = RewardSpec("compbench.numeracy", "share of things and numbers", 0, 1, "Apache-2.0", "arXiv:2307.06350")
    example_prompts = ("two dogs and a key", "three bowls", "a dog and a key")
    lacks = "the prompt counts none of the benchmark's objects"

    def wanted(self, prompt: str) -> Wanted:
        recorded = self.metadata.get(prompt)
        return recorded if recorded is not None and recorded.counts else read_counts(prompt)

    def worth(self, found: Mapping[str, Boxes], wanted: Wanted, size: tuple[int, int]) -> float:
        return numeracy({thing: _apart(boxes, size) for thing, boxes in found.items()}, wanted.counts)


def _corners(found: Boxes, size: tuple[int, int]) -> Tensor:
    """[N, 4] left, top, right, bottom, of a picture whose longer side is `SIDE`."""
    sides = found.boxes.new_tensor([*size, *size]) * (SIDE / max(size))
    corners: Tensor = box_convert(found.boxes, "cxcywh", "xyxy") * sides
    return corners


def _surest(found: Boxes | None, size: tuple[int, int]) -> tuple[float, Box] | None:
    if found is None or not len(found.boxes):
        return None
    best = int(found.scores.argmax())
    return float(found.scores[best]), _corners(found, size)[best].tolist()


def _apart(found: Boxes, size: tuple[int, int]) -> list[Box]:
    """The boxes that overlap no surer one by half or more, the surest first."""
    boxes = _corners(found, size)
    kept: list[Box] = boxes[nms(boxes, found.scores, SAME)].tolist()
    return kept

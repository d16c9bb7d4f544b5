"""Places, depths and numbers of T2I-CompBench++ (Huang et al., 2023, 2025), with Grounding DINO for the detector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert, nms

from rwk.adapters.compbench_rules import Box, numeracy, read_counts, read_depth, read_place, spatial, spatial_3d
from rwk.adapters.dpt import ORIGIN, Dpt
from rwk.adapters.grounding_dino import GroundingDino
from rwk.adapters.grounding_rules import SAME, SIDE, Boxes, Wanted
from rwk.adapters.published import Origin
from rwk.rewards.base import RewardSpec

DEPTH_SIDE = 480
"""Pixels of the square that the benchmark shows to DPT."""


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

    def worth(self, found: Mapping[str, Boxes], wanted: Wanted, image: Image.Image) -> float:
        assert wanted.place is not None
        first, second, place = wanted.place
        return spatial([_surest(found.get(first), image.size), _surest(found.get(second), image.size)], place)


class CompbenchSpatial3d(GroundingDino):
    """Whether one thing is in front of another as the prompt says: the rule of T2I-CompBench++'s 3D category.

    A quarter of the score of each thing's surest box, and half of whether the first is the nearer ("in front of") or
    the farther ("behind", "hidden by"), by the mean nearness in its box; where the boxes share less than half of their
    union, in proportion to the share. The words are read as `compbench_rules.read_depth` says; other prompts get no
    score.

    Nearness is that of DPT-Hybrid, the benchmark's own network, at its 480 pixels. The detector is not the benchmark's,
    as for `compbench.spatial`. Two faults of the benchmark's code are mended: it takes rows of the map for columns, so
    that it looks at another place than the box wherever that does not lie on the diagonal; and where a thing is found
    several times before the other is found once, it takes the last of these, not the surest.

    `weights` is a folder of the detector's files, with those of DPT in its folder `depth`.
    """

    spec = RewardSpec("compbench.spatial_3d", "0 to 1", 0, 1, "Apache-2.0", "doi:10.1109/TPAMI.2025.3531907")
    example_prompts = ("a dog in front of a desk", "a cat behind a boy", "a chair hidden by a mouse")
    lacks = "the prompt does not tell which of two things is in front, in the benchmark's words"
    depth: Dpt

    def __init__(self, *, weights: str | Path | None = None, revision: str | None = None, device: str = "cpu") -> None:
        """
        Args:
            weights: the folder; by default both networks come from the hub.
            revision: branch, tag or commit of the detector's repository on the hub.
            device: where the networks run.

        Raises:
            ValueError: for files that are not these checkpoints.
            RunFailed: where a checkpoint or the tokenizer cannot be had.
        """
        super().__init__(weights=weights, revision=revision, device=device)
        inner = None if weights is None else Path(weights).expanduser() / "depth"
        self.depth = Dpt.load(self.spec.name, inner, side=DEPTH_SIDE, device=device)

    @classmethod
    def origins(cls) -> tuple[Origin, Origin]:
        """Where detector and DPT are published."""
        return cls.origin, ORIGIN

    @classmethod
    def tiny(cls) -> Self:
        made = super().tiny()
        made.depth = Dpt.tiny()
        return made

    def wanted(self, prompt: str) -> Wanted:
        return read_depth(prompt)

    def worth(self, found: Mapping[str, Boxes], wanted: Wanted, image: Image.Image) -> float:
        assert wanted.place is not None
        first, second, place = wanted.place
        surest = [_surest(found.get(thing), image.size) for thing in (first, second)]
        if None in surest:
            return spatial_3d(surest, place, None)
        width, height = (max(1, round(side * SIDE / max(image.size))) for side in image.size)
        return spatial_3d(surest, place, self.depth.nearness(image, (width, height)))


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

    def worth(self, found: Mapping[str, Boxes], wanted: Wanted, image: Image.Image) -> float:
        return numeracy({thing: _apart(boxes, image.size) for thing, boxes in found.items()}, wanted.counts)


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

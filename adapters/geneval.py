"""GenEval (Ghosh et al., 2023) as a reward: a detector and CLIP say whether a picture shows what its prompt says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from rwk.adapters.clip_towers import OPENAI, SMALL, architecture, open_clip_network, seeded, small, tokenizer
from rwk.adapters.geneval_prompts import parse
from rwk.adapters.geneval_rules import COLOURS, Clause, Facts, Found, failures, partial, read_facts, sure
from rwk.adapters.mask2former import ORIGIN, UNUSED, Mask2Former, tiny
from rwk.adapters.metadata import by_prompt
from rwk.adapters.preprocess import LONGEST, Preprocess
from rwk.adapters.pretrained import load_folder
from rwk.adapters.published import Origin, beside, fill, find, read
from rwk.rewards.base import Reward, RewardSpec, Scores

TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
"""What CLIP reads for a colour and a thing."""
GREY = (153, 153, 153)
"""What stands around a thing when its colour is judged."""
LICENCE = f"{ORIGIN.licence} (detector), MIT (CLIP)"
UNKNOWN = "the prompt is neither in the metadata nor of one of GenEval's templates, so there are no facts to check"


class Geneval(Reward):
    """1 where every fact of the prompt holds in the picture, else 0, with the reason as a note.

    The facts of a prompt are those of its record in the metadata file that `metadata=` names (a JSONL as GenEval
    publishes), else they are read out of the prompt where it has the form of one of GenEval's templates ("a photo of
    three clocks", "a photo of a dog right of a teddy bear"); any other prompt gets no score. `geneval_rules` has the
    rules, `mask2former` the detector. The colour of a thing is the one of ten whose three sentences are, on average,
    nearest in CLIP ViT-L/14 to the picture cut to the thing's box, all but its mask painted grey.

    GenEval's figures are means of this over four pictures a prompt, by category, and the mean of the six categories.
    The detector is another checkpoint than theirs: Mask2Former with Swin-S on COCO instances as its authors published
    it, where GenEval takes the one that mmdetection trained. The rules, thresholds and CLIP are GenEval's, so figures
    are near, and should be compared with such of the same detector.

    Each picture goes through the detector alone, as the sizes differ and a threshold must not depend on neighbours.
    """

    spec = RewardSpec("geneval.strict", "1 where all facts hold", 0, 1, LICENCE, "arXiv:2310.11513")
    precision_note = "both networks stay in float32, as facts hold by thresholds, which half precision could tip"
    architecture: ClassVar[str] = "ViT-L-14-quickgelu"
    preprocess: ClassVar[Preprocess] = Preprocess(224)
    """Of what CLIP sees."""
    example_prompts = (
        "a photo of an apple",
        "a photo of a wine glass and an apple",
        "a photo of two apples",
        "a photo of a pink wine glass",
        "a photo of an apple left of a wine glass",
        "a photo of a purple wine glass and a black apple",
    )
    detector: Mask2Former
    clip: Any
    metadata: Mapping[str, Facts]

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        clip: str | Path | None = None,
        metadata: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            weights: a folder with the detector's published files; by default they come from the hub.
            clip: CLIP's file in open_clip's layout, or a folder that holds it; by default it is looked for beside
                `weights`, and then comes from the hub.
            metadata: a JSONL file of records as GenEval publishes.
            revision: branch, tag or commit of the detector's repository on the hub.
            device: where both networks run.

        Raises:
            ValueError: for files that are not these checkpoints, or no metadata.
            RunFailed: where a checkpoint cannot be had.
        """
        from transformers import Mask2FormerForUniversalSegmentation

        facts = by_prompt(metadata, read_facts) if metadata is not None else {}
        name, (origin, origin_of_clip) = self.spec.name, self.origins()
        network = load_folder(name, Mask2FormerForUniversalSegmentation, origin, weights, revision, unused=UNUSED)
        by_hand = f"copy it into one folder with the files of {origin.hub} and name that as {{name}}@PATH"
        file = find(name, origin_of_clip, clip or beside(weights, origin_of_clip.file), by_hand=by_hand)
        tensors = read(file)  # before the network, which takes its time
        tower = open_clip_network(architecture(self.architecture))
        fill(f"CLIP of {name}", tower, tensors)
        self._take(Mask2Former(network), tower, facts, device)

    @classmethod
    def origins(cls) -> tuple[Origin, Origin]:
        """Where detector and CLIP are published."""
        return ORIGIN, OPENAI[cls.architecture]

    @classmethod
    def of(cls, detector: Mask2Former, clip: nn.Module, *, preprocess: Preprocess, device: str = "cpu") -> Self:
        """The reward around networks of any size."""
        reward = cls.__new__(cls)
        reward.preprocess = preprocess  # type: ignore[misc]
        return reward._take(detector, clip, {}, device)

    def _take(self, detector: Mask2Former, clip: nn.Module, metadata: Mapping[str, Facts], device: str) -> Self:
        super().__init__(device=device)
        for network in (detector.network, clip):
            network.eval().requires_grad_(False).to(device)
        self.detector, self.clip, self.metadata = detector, clip, metadata
        self._colours: dict[str, Tensor] = {}
        return self

    @classmethod
    def tiny(cls) -> Self:
        with seeded():
            clip = open_clip_network({**SMALL, "quick_gelu": True})
            detector = tiny({clause.thing for prompt in cls.example_prompts for clause in _known(prompt)})
        return cls.of(detector, clip, preprocess=small(cls.preprocess))

    def facts(self, prompt: str) -> Facts | None:
        """What the prompt says; None where nothing is known of it."""
        return self.metadata.get(prompt) or parse(prompt)

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        values, notes = torch.full([len(images)], math.nan), [UNKNOWN] * len(images)
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            facts = self.facts(prompt)
            if facts is not None:
                values[i], notes[i] = self.judged(image, facts)
        return Scores(values, notes)

    def judged(self, image: Image.Image, facts: Facts) -> tuple[float, str]:
        """The score of a picture, and what there is to say of it."""
        wrong = failures(self.found(image, facts), facts, lambda thing, group: self.colours(image, thing, group))
        return float(not wrong), "; ".join(wrong)

    def found(self, image: Image.Image, facts: Facts) -> dict[str, list[Found]]:
        """What counts in a picture, of the classes that the facts are about."""
        things = {clause.thing for clause in (*facts.include, *facts.exclude)}
        return sure(self.detector(image, things), facts.tag)

    def colours(self, image: Image.Image, thing: str, group: Sequence[Found]) -> list[str]:
        """The colour of each thing of one class."""
        pixels = self.preprocess.exact([cut_out(image, each) for each in group]).to(self.device)
        likeness = normalize(self.clip.encode_image(pixels), dim=1) @ self._directions(thing).T  # [N, 10]
        return [COLOURS[number] for number in likeness.argmax(1).tolist()]

    def _directions(self, thing: str) -> Tensor:
        """[10, E] where CLIP puts each colour of a thing, of length 1."""
        if thing not in self._colours:
            texts = [template.format(colour, thing) for colour in COLOURS for template in TEMPLATES]
            states = normalize(self.clip.encode_text(tokenizer()(texts).to(self.device)), dim=1)
            self._colours[thing] = normalize(states.unflatten(0, (len(COLOURS), -1)).mean(1), dim=1)
        return self._colours[thing]


class GenevalSoft(Geneval):
    """The mean over the prompt's facts of how nearly each holds, as flow_grpo trains on (arXiv:2505.05470).

    A count n of w wanted is worth 1 - |n - w| / w, which falls below 0 where more than twice as many are found; a
    colour the same of how many have it; a place 1 or 0; colour and place are 0 where the count is wrong. Other than for
    `geneval.strict` too many are a fault in every category. flow_grpo's server adds 1 to the terms of a picture whose
    things are wrongly placed, which is mended here; `geneval.flow_grpo` is the reward with it.
    """

    spec = RewardSpec("geneval.soft", "mean of how nearly each fact holds", -14, 1, LICENCE, "arXiv:2505.05470")
    published: ClassVar[bool] = False

    def judged(self, image: Image.Image, facts: Facts) -> tuple[float, str]:
        found = self.found(image, facts)
        colour_of = lambda thing, group: self.colours(image, thing, group)  # noqa: E731
        return partial(found, facts, colour_of, published=self.published), ""


class GenevalFlowGrpo(GenevalSoft):
    """`geneval.soft` as flow_grpo's server computes it: 0.75, not 2/3, for two things that are wrongly placed."""

    spec = RewardSpec("geneval.flow_grpo", "mean of how nearly each fact holds", -14, 1, LICENCE, "arXiv:2505.05470")
    published = True


def _known(prompt: str) -> tuple[Clause, ...]:
    facts = parse(prompt)
    return facts.include if facts else ()


def cut_out(image: Image.Image, found: Found) -> Image.Image:
    """The picture cut to a thing's box, grey where the thing is not.

    Of a box more than 64 times as long as wide only the middle is kept, which is all that CLIP sees of it.
    """
    if found.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, GREY), Image.fromarray(found.mask))
    left, top, right, bottom = found.box
    most = LONGEST * min(right - left, bottom - top)
    spare, over = max(right - left - most, 0) / 2, max(bottom - top - most, 0) / 2
    return image.crop((round(left + spare), round(top + over), round(right - spare), round(bottom - over)))

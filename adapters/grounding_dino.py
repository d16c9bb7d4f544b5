"""Grounding DINO (Liu et al., 2023) as the reward of T2I-R1: are the prompt's things there, so many and so placed?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.blip_towers import randomised, small_tokenizer
from rwk.adapters.blip_vqa import PLACES
from rwk.adapters.clip_towers import seeded
from rwk.adapters.grounding_rules import INTENDED, PUBLISHED, Boxes, Rules, Wanted, read_wanted, score
from rwk.adapters.metadata import by_prompt
from rwk.adapters.noun_phrases import DETERMINERS, noun_phrases
from rwk.adapters.preprocess import IMAGENET_MEAN, IMAGENET_STD
from rwk.adapters.pretrained import load_folder, load_tokenizer
from rwk.adapters.published import Origin
from rwk.rewards.base import Reward, RewardSpec, Scores

JOINT = " . "
"""What stands between nouns."""
LEAST = 0.3
"""What a box's score for a noun must exceed."""


def bare_nouns(prompt: str) -> list[str]:
    """The prompt's noun phrases without the article or number before them, and without such as only name a place.

    >>> bare_nouns("a red cube on the left of two balls")
    ['red cube', 'balls']
    """
    phrases = [phrase for phrase in noun_phrases(prompt) if phrase.lower() not in PLACES]
    words = [phrase.split() for phrase in phrases]
    return [" ".join(each[1:] if each[0].lower() in DETERMINERS else each) for each in words]


class GroundingDino(Reward):
    """How much of the prompt Grounding DINO finds in the picture, by the prompt's task.

    * things: the share of the nouns that are found;
    * numbers: of each thing 1 where as many are found as are asked for, 0.2 where another number, 0 where none; the
      mean. Boxes of one thing that overlap by half or more count once;
    * a place: 0.2 for each of the two things, and up to 0.5 for how the surest boxes stand to each other: 0.9 at most.

    Nouns, task, numbers and place of a prompt come from its record in the JSONL file that `metadata=` names, in the
    form of T2I-R1's prompts (`prompt`, `nouns`, `task_type`, `numeracy_info`, `spatial_info`). Of a prompt without
    a record only things are looked for: by default the noun phrases of the rule in `noun_phrases`, bare of articles and
    numbers; in Python `nouns=` takes another function. A prompt without a noun gets no score.

    The network reads the nouns as "dog . teddy bear." with the picture, its shorter side resized to 800 pixels or the
    longer to 1333. The score of a box for a noun is the mean of the sigmoid over the noun's tokens.

    Six faults of T2I-R1's code are mended. The place of "above" and "on top of" is never right there; everything is
    near, as a distance in pixels is compared with shares of the picture; before boxes of one thing are sorted out,
    their centre and size are taken for corners; a noun of three words or more is never found, as it is looked for by
    the first and the last; a failure gives 0; no noun gives 1. `grounding_dino.t2i_r1_published` has the first four.

    The checkpoint is the authors' own SwinT-OGC, in the layout of transformers.
    """

    spec = RewardSpec("grounding_dino.t2i_r1", "share of what is asked for", 0, 1, "Apache-2.0", "arXiv:2505.00703")
    origin: ClassVar[Origin] = Origin("IDEA-Research/grounding-dino-tiny", "model.safetensors", "Apache-2.0", 689)
    precision_note = (
        "the detector stays in float32, as it takes its queries by rank and boxes by a threshold, which half "
        "precision could tip"
    )
    rules: ClassVar[Rules] = INTENDED
    short: int = 800
    longest: int = 1333
    example_prompts = (*(prompt for prompt in Reward.example_prompts if prompt), "a green bench and a blue bowl")
    nouns: Callable[[str], Sequence[str]] = staticmethod(bare_nouns)
    lacks: ClassVar[str] = "the prompt has no noun, so there is nothing to look for"
    """Note of a prompt in which nothing is found to look for."""
    metadata: Mapping[str, Wanted]

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        metadata: str | Path | None = None,
        nouns: Callable[[str], Sequence[str]] = bare_nouns,
        revision: str | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            weights: a folder with the published files, tokenizer included; by default they come from the hub.
            metadata: a JSONL file of records like T2I-R1's.
            nouns: the nouns of a prompt that has no record.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.

        Raises:
            ValueError: for files that are not this checkpoint, or no metadata.
            RunFailed: where the checkpoint or the tokenizer cannot be had.
        """
        from transformers import GroundingDinoForObjectDetection

        records = by_prompt(metadata, read_wanted) if metadata is not None else {}
        network = load_folder(self.spec.name, GroundingDinoForObjectDetection, self.origin, weights, revision)
        tokenizer = load_tokenizer(self.spec.name, self.origin.hub, weights, revision)
        self._take(network, tokenizer, records, device)
        self.nouns = nouns

    @classmethod
    def of(cls, network: Any, tokenizer: Any, *, short: int, longest: int, device: str = "cpu") -> Self:
        """The reward around a network of any size, for pictures of those sides."""
        reward = cls.__new__(cls)
        reward.short, reward.longest = short, longest
        return reward._take(network, tokenizer, {}, device)

    def _take(self, network: Any, tokenizer: Any, metadata: Mapping[str, Wanted], device: str) -> Self:
        super().__init__(device=device)
        self.network = network.eval().requires_grad_(False).to(device)
        self.tokenizer, self.metadata = tokenizer, metadata
        return self

    @classmethod
    def tiny(cls) -> Self:
        from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

        tokenizer = small_tokenizer((*cls.example_prompts, "."))
        layers: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        bert = BertConfig(vocab_size=len(tokenizer), hidden_size=32, **layers)
        stages: dict[str, Any] = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "out_indices": [2, 3, 4]}
        swin = SwinConfig(image_size=64, embed_dim=8, window_size=4, **stages)
        heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 64}
        sizes: dict[str, Any] = {"encoder_layers": 1, "encoder_ffn_dim": 32, "decoder_layers": 2, "decoder_ffn_dim": 32}
        config = GroundingDinoConfig(backbone_config=swin, text_config=bert, num_queries=8, **heads, **sizes)
        with seeded():
            network = GroundingDinoForObjectDetection(config)
        return cls.of(randomised(network), tokenizer, short=64, longest=112)

    def wanted(self, prompt: str) -> Wanted:
        """What the prompt asks for; without nouns where it names nothing."""
        return self.metadata.get(prompt) or Wanted(tuple(dict.fromkeys(filter(None, self.nouns(prompt)))))

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        values, notes = torch.full([len(images)], math.nan), [""] * len(images)
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            wanted = self.wanted(prompt)
            notes[i] = self.refusal(wanted.nouns)
            if not notes[i]:
                values[i] = self.worth(self.found(image, wanted.nouns), wanted, image)
        return Scores(values, notes)

    def worth(self, found: Mapping[str, Boxes], wanted: Wanted, image: Image.Image) -> float:
        """The score of what was found in a picture."""
        return score(found, wanted, size=image.size, rules=self.rules)

    def refusal(self, nouns: Sequence[str]) -> str:
        """Why such nouns get no score, or ""."""
        if not nouns:
            return self.lacks
        count, most = len(self.tokenizer(caption(nouns), verbose=False)["input_ids"]), self.network.config.max_text_len
        return f"the prompt's nouns are {count} tokens, and the detector reads {most}" if count > most else ""

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize."""
        low, high = sorted((width, height))
        size = self.short
        if high / low * size > self.longest:
            size = round(self.longest * low / high)
        other = int(size * high / low) if size else self.longest
        return (max(size, 1), other) if width < height else (other, max(size, 1))

    def pixels(self, image: Image.Image) -> Tensor:
        """[1, 3, H, W] normalised pixels of an RGB picture."""
        resized = image.resize(self.fitted(*image.size), Image.Resampling.BILINEAR)
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        normalised: Tensor = (pil_to_tensor(resized).float() / 255 - mean) / std
        return normalised[None]

    def found(self, image: Image.Image, nouns: Sequence[str]) -> dict[str, Boxes]:
        """The boxes of each noun in an RGB picture."""
        read = self.tokenizer(caption(nouns), return_offsets_mapping=True, return_tensors="pt")
        offsets = read.pop("offset_mapping")[0]
        made = self.network(pixel_values=self.pixels(image).to(self.device), **read.to(self.device))
        likely = made.logits[0].sigmoid().cpu()  # [Q, 256]
        boxes = made.pred_boxes[0].cpu()
        found = {}
        end = -len(JOINT)
        for noun in nouns:
            start = end + len(JOINT)
            end = start + len(noun)
            if not self.rules.long and len(noun.split(" ")) > 2:
                continue
            inside = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            scores = likely[:, : len(offsets)][:, inside].mean(1)
            found[noun] = Boxes(boxes[scores > LEAST], scores[scores > LEAST])
        return found


class GroundingDinoPublished(GroundingDino):
    """`grounding_dino.t2i_r1` with what T2I-R1's code does to boxes and words, for figures to be compared with its."""

    spec = RewardSpec(
        "grounding_dino.t2i_r1_published", "share of what is asked for", 0, 1, "Apache-2.0", "arXiv:2505.00703"
    )
    rules = PUBLISHED


def caption(nouns: Sequence[str]) -> str:
    """What the network reads for these nouns."""
    return JOINT.join(nouns) + "."

"""LlamaGen with a class of ImageNet as its condition."""

from __future__ import annotations

import functools
import re

from torch import Tensor

from rwk.adapters.llamagen import LlamaGen, spec_of
from rwk.adapters.llamagen_gpt import GptConfig
from rwk.adapters.published import Origin
from rwk.policy_opt.sampling import Sampling

HUB = "FoundationVision/LlamaGen"
RECIPE = Sampling(guidance=4.0, top_k=2000)
"""That of the authors' sample_c2i.py; for FID they draw with guidance between 1.5 and 2 and from all codes."""


class ClassToImage(LlamaGen):
    """Pictures of one of the 1000 classes of ImageNet.

    A prompt names it by its number from 0, "207" or "class 207", or by one of its names in timm, such as "golden
    retriever", with or without "a photo of a" before it. A name that two classes share is refused.
    """

    vq_origin = Origin(HUB, "vq_ds16_c2i.pt", "MIT", 288)
    example_prompts = ("7", "class 360", "a photo of a golden retriever")

    def prompt_ids(self, prompt: str) -> list[int]:
        return [class_of(self.spec.name, prompt)]

    def null_ids(self, prompt: str) -> list[int]:
        return [self.causal_lm.config.classes]

    def embed_ids(self, ids: Tensor) -> Tensor:
        return self.causal_lm.cls_embedding.embedding_table(ids)  # type: ignore[no-any-return]


@functools.cache
def _classes() -> dict[str, list[int]]:
    """The classes that each name of ImageNet stands for, in small letters."""
    from timm.data.imagenet_info import ImageNetInfo

    info, found = ImageNetInfo("imagenet-1k"), dict[str, list[int]]()
    for number in range(1000):
        for name in info.index_to_description(number).lower().split(", "):
            found.setdefault(name, []).append(number)
    return found


def class_of(asks: str, prompt: str) -> int:
    """The number of the class that a prompt names; raises ValueError where it names none or several.

    >>> class_of("me", "a photo of an ice bear")
    296
    """
    plain = " ".join(prompt.lower().split())
    number = re.fullmatch(r"(?:class )?([0-9]{1,3})", plain)
    if number:
        return int(number[1])
    name = re.sub(r"^a photo of (an? |the )?", "", plain)
    found = _classes().get(name, [])
    if len(found) == 1:
        return found[0]
    told = f"{name!r}, which is classes {' and '.join(map(str, found))}" if found else repr(prompt)
    raise ValueError(f"{asks} draws a class of ImageNet, got {told}; give its number, 0 to 999, or one of its names.")


class Base256(ClassToImage):
    """LlamaGen-B at 256 pixels: 111 million weights. See `ClassToImage`."""

    spec = spec_of("c2i_b_256", 16, RECIPE)
    sizes = GptConfig(layers=12, heads=12, width=768, grid=16)
    origin = Origin(HUB, "c2i_B_256.pt", "MIT", 444)


class Base384(ClassToImage):
    """LlamaGen-B at 384 pixels: 111 million weights. See `ClassToImage`."""

    spec = spec_of("c2i_b_384", 24, RECIPE)
    sizes = GptConfig(layers=12, heads=12, width=768, grid=24)
    origin = Origin(HUB, "c2i_B_384.pt", "MIT", 444)


class Large256(ClassToImage):
    """LlamaGen-L at 256 pixels: 343 million weights. See `ClassToImage`."""

    spec = spec_of("c2i_l_256", 16, RECIPE)
    sizes = GptConfig(layers=24, heads=16, width=1024, grid=16)
    origin = Origin(HUB, "c2i_L_256.pt", "MIT", 1372)


class Large384(ClassToImage):
    """LlamaGen-L at 384 pixels: 343 million weights. See `ClassToImage`."""

    spec = spec_of("c2i_l_384", 24, RECIPE)
    sizes = GptConfig(layers=24, heads=16, width=1024, grid=24)
    origin = Origin(HUB, "c2i_L_384.pt", "MIT", 1372)


class Xl384(ClassToImage):
    """LlamaGen-XL at 384 pixels: 775 million weights. See `ClassToImage`."""

    spec = spec_of("c2i_xl_384", 24, RECIPE)
    sizes = GptConfig(layers=36, heads=20, width=1280, grid=24)
    origin = Origin(HUB, "c2i_XL_384.pt", "MIT", 3099)


class Xxl384(ClassToImage):
    """LlamaGen-XXL at 384 pixels: 1.4 billion weights. See `ClassToImage`."""

    spec = spec_of("c2i_xxl_384", 24, RECIPE)
    sizes = GptConfig(layers=48, heads=24, width=1536, grid=24)
    origin = Origin(HUB, "c2i_XXL_384.pt", "MIT", 5644)


class ThreeB384(ClassToImage):
    """LlamaGen-3B at 384 pixels: 3.1 billion weights. See `ClassToImage`."""

    spec = spec_of("c2i_3b_384", 24, RECIPE)
    sizes = GptConfig(layers=24, heads=32, width=3200, grid=24)
    origin = Origin(HUB, "c2i_3B_384.pt", "MIT", 12387)

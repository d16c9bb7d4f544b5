"""Two towers in the shape of CLIP, as published rewards use them: how near an image and a prompt are embedded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from rwk.adapters.dual_encoder import DualHead
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.published import Origin, PublishedReward
from rwk.rewards.tunable import HeadKind, ScaledHead, own_head

OPENAI = {
    "ViT-B-32-quickgelu": Origin("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors", "MIT", 605),
    "ViT-B-16-quickgelu": Origin("timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors", "MIT", 599),
    "ViT-L-14-quickgelu": Origin("timm/vit_large_patch14_clip_224.openai", "open_clip_model.safetensors", "MIT", 1711),
}
"""OpenAI's weights by the architecture that runs them right: without `-quickgelu` open_clip takes the exact GELU."""
SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 2, "width": 32, "heads": 2},
}
"""An architecture in open_clip's terms that is built in no time."""
_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's own files hold besides weights."""


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Random weights made inside depend on the seed alone, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@cache
def tokenizer() -> Any:
    """OpenAI's byte pairs as open_clip ships them, text mended by ftfy and unescaped first."""
    import open_clip

    return open_clip.SimpleTokenizer()


def each_once(encode: Callable[[list[str]], Tensor], prompts: Sequence[str]) -> Tensor:
    """[B, E] rows of `encode`, which is given every different prompt once."""
    place = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    rows = encode(list(place))
    return rows[torch.tensor([place[prompt] for prompt in prompts], device=rows.device)]


def architecture(name: str) -> dict[str, Any]:
    """`embed_dim`, `vision_cfg`, `text_cfg` and perhaps `quick_gelu` of an open_clip architecture."""
    import open_clip

    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def open_clip_network(config: dict[str, Any]) -> nn.Module:
    """An open_clip model of that architecture, its weights random."""
    from open_clip.model import CLIP

    network: nn.Module = CLIP(**config)
    return network


class TowersReward(PublishedReward):
    """A function of the cosine of image and prompt; a subclass embeds both."""

    context = 77
    tolerance = 0.005

    @abstractmethod
    def image_features(self, pixels: Tensor) -> Tensor:
        """[B, E] of pixels as `preprocess` makes them, of any length."""

    @abstractmethod
    def text_features(self, prompts: list[str]) -> Tensor:
        """[B, E] of prompts, of any length."""

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """[B, E] features of RGB images alone, without gradient."""
        with torch.no_grad():
            return self.image_features(self.preprocess.exact(list(images)).to(self.device))

    def cosine(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B] of pixels [B, 3, size, size] and as many prompts."""
        image = normalize(self.image_features(pixels), dim=1)
        text = normalize(each_once(self.text_features, prompts), dim=1)
        return (image * text).sum(1)

    def take_head(self, kind: HeadKind, *, probe: bool) -> nn.Module:
        """The scale that the towers were trained with, times the cosine; to probe, of a linear map of each embedding.

        So it is with rewards that leave the scale out, as their authors had it in training.
        """
        own_head(self.spec.name, kind)
        scale = self.network.get_parameter("logit_scale").exp().item()
        self.probed = probe
        if not probe:
            return ScaledHead(nn.Identity(), scale)
        with torch.no_grad():
            width = self.text_features([""]).shape[1]
        head = DualHead(width)
        head.rescale(scale / head.scale().item())
        return head

    def features(self, prepared: Tensor, prompts: Sequence[str]) -> Tensor:
        read = self.read(prompts)
        if not self.probed:
            return self.cosine(prepared, read).float()[:, None]
        return torch.cat([self.image_features(prepared), each_once(self.text_features, read)], 1).float()

    def read(self, prompts: Sequence[str]) -> list[str]:
        """What the text tower reads for these prompts."""
        return list(prompts)


class OpenClipReward(TowersReward):
    """Towers of open_clip, whose files have the layout of OpenAI's; a subclass makes a score of their cosine.

    A prompt of more than 77 tokens loses its end; the last token that is read is then the end of text.
    """

    architecture: ClassVar[str]
    """open_clip's name of it."""

    @classmethod
    def build(cls) -> nn.Module:
        return open_clip_network(architecture(cls.architecture))

    @classmethod
    def tiny(cls) -> OpenClipReward:
        gelu = architecture(cls.architecture).get("quick_gelu", False)
        with seeded(5):  # of this seed the cosines are above 0, where CLIPScore is not flat
            network = open_clip_network({**SMALL, "quick_gelu": gelu})
        return cls.of(network, preprocess=small(cls.preprocess))

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in tensors.items() if key not in _NUMBERS}

    def image_features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network.encode_image(pixels)  # type: ignore[operator]
        return features

    def text_features(self, prompts: list[str]) -> Tensor:
        self.warn_of_cut(prompts, [len(tokenizer().encode(prompt)) + 2 for prompt in prompts])
        features: Tensor = self.network.encode_text(tokenizer()(prompts).to(self.device))  # type: ignore[operator]
        return features


def small(preprocess: Preprocess) -> Preprocess:
    """The same way to make pixels, for networks of `SMALL`."""
    return replace(preprocess, size=SMALL["vision_cfg"]["image_size"])

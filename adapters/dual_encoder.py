"""Rewards in the shape of CLIP: how well an image and its prompt agree, by an open_clip model of any size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from rwk.adapters.attention import quick_in_half
from rwk.adapters.preprocess import FITS
from rwk.adapters.truncation import tell_of_cut
from rwk.rewards.base import RewardSpec
from rwk.rewards.errors import RunFailed
from rwk.rewards.trainable import Preprocessing, TrainableReward

MAX_SCALE = 100.0
"""Bound of the learned scale, as in CLIP."""
_WORD = re.compile(r"\w+")


class Tokenizer(Protocol):
    """Text in, ids out."""

    def __call__(self, texts: list[str]) -> Tensor:
        """[B, context] long; the highest id stands where a text ends."""

    def encode(self, text: str) -> list[int]:
        """Ids of the whole text, however long, without those that begin and end it."""


class WordTokenizer:
    """Ids of the words in a closed list; every other word gets one and the same id.

    0 fills up, 1 is an unknown word, the last two ids begin and end a text. A text that is too long loses its end.
    """

    def __init__(self, words: Sequence[str], context: int) -> None:
        self.ids = {word: index for index, word in enumerate(words, 2)}
        self.context = context
        self.begin = len(words) + 2
        self.end = len(words) + 3

    def __call__(self, texts: list[str]) -> Tensor:
        rows = torch.zeros(len(texts), self.context, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.begin, *self.encode(text)[: self.context - 2], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def encode(self, text: str) -> list[int]:
        return [self.ids.get(word, 1) for word in _WORD.findall(text.lower())]


class DualHead(nn.Module):
    """Cosine of two embeddings after a linear map each, times the learned scale.

    The maps start as the identity. They are what a linear probe trains: together with the last projection of any tower
    they are that projection.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.image_map, self.text_map = (nn.Linear(embed_dim, embed_dim, bias=False) for _ in range(2))
        for part in (self.image_map, self.text_map):
            nn.init.eye_(part.weight)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def scale(self) -> Tensor:
        """[] what cosines are multiplied with, at most `MAX_SCALE`."""
        return self.log_scale.clamp(max=math.log(MAX_SCALE)).exp()

    def rescale(self, factor: float) -> None:
        """Multiplies every score, up to the largest scale."""
        self.log_scale.data.copy_((self.scale() * factor).log())

    def forward(self, features: Tensor) -> Tensor:
        image, text = features.chunk(2, dim=1)  # [B, E] each
        cosine = (normalize(self.image_map(image), dim=1) * normalize(self.text_map(text), dim=1)).sum(1)
        return cosine.clamp(-1, 1) * self.scale()


class DualTowers(nn.Module):
    """An open_clip model without its scale, and the head."""

    def __init__(self, clip: nn.Module, embed_dim: int) -> None:
        super().__init__()
        del clip.logit_scale  # the head has it
        self.clip = clip
        self.head = DualHead(embed_dim)


class DualEncoder(TrainableReward):
    """Cosine of the image's and the prompt's embedding, times a learned scale of at most 100.

    The scale is part of the weights, so that a difference of two scores is a logit: what training on preferences makes
    of it is the log-odds that people prefer the first.

    A prompt of more tokens than the text tower reads loses its end, with a warning.

    `architecture` holds open_clip's `embed_dim`, `vision_cfg` and `text_cfg`, and `words` for a closed vocabulary or
    null for CLIP's own. As a base, `open_clip:NAME` is a model with random weights, `open_clip:NAME/TAG` with the
    published weights of that tag, and pictures prepared as it asks, `open_clip:NAME@FILE` with those of a file.
    """

    spec = RewardSpec(
        "dual_encoder",
        "scale times cosine (logits)",
        low=-MAX_SCALE,
        high=MAX_SCALE,
        licence="n/a",
        source="arXiv:2103.00020",
        differentiable=True,
    )
    registered = "dual_encoder"
    _warned = False

    @classmethod
    def tiny(cls) -> DualEncoder:
        words = ["a", "red", "blue", "green", "circle", "square", "and", "two", "of", "left"]
        return DualEncoder(architecture(words, width=32, layers=1, patch=16, context=24), Preprocessing(32))

    @classmethod
    def build(cls, architecture: Mapping[str, Any], preprocessing: Preprocessing) -> nn.Module:
        import open_clip.model

        kind = open_clip.model.CustomTextCLIP if architecture.get("custom_text") else open_clip.model.CLIP
        clip = kind(
            embed_dim=architecture["embed_dim"],
            vision_cfg=dict(architecture["vision_cfg"]),
            text_cfg=dict(architecture["text_cfg"]),
            quick_gelu=architecture.get("quick_gelu", False),
        )
        return DualTowers(quick_in_half(clip), architecture["embed_dim"])

    @classmethod
    def check_model(cls, model: str) -> None:
        import open_clip

        name, at, file = model.partition("@")
        name, slash, tag = name.partition("/")
        config = open_clip.get_model_config(name)
        if config is None or "hf_tokenizer_name" in config["text_cfg"]:
            raise ValueError(
                f"open_clip:NAME must be a model of open_clip with CLIP's own tokenizer, got {name!r}; "
                f"take one such as ViT-B-32."
            )
        if slash and tag not in (tags := open_clip.list_pretrained_tags_by_model(name)):
            raise ValueError(f"open_clip model {name} has no weights {tag!r}; there are {', '.join(tags) or 'none'}.")
        if at and not Path(file).is_file():
            raise ValueError(f"open_clip:{name}@FILE names no file, got {file}; correct the path.")

    @classmethod
    def from_model(cls, model: str, *, image_size: int = 0, seed: int = 0, device: str = "cpu") -> DualEncoder:
        import open_clip

        cls.check_model(model)
        name, at, file = model.partition("@")
        name, slash, tag = name.partition("/")
        config: Any = open_clip.get_model_config(name)
        published: dict[str, Any] = dict(open_clip.get_pretrained_cfg(name, tag)) if slash else {}
        vision = dict(config["vision_cfg"])
        vision["image_size"] = image_size or vision["image_size"]
        made = {"quick_gelu": published.get("quick_gelu", False), **config, "vision_cfg": vision, "words": None}
        mean = published.get("mean", open_clip.OPENAI_DATASET_MEAN)
        std = published.get("std", open_clip.OPENAI_DATASET_STD)
        preprocessing = Preprocessing(
            vision["image_size"],
            FITS[published.get("resize_mode", "shortest")],
            published.get("interpolation", "bicubic"),
            tuple(mean),
            tuple(std),
        )
        reward = cls(made, preprocessing, name=name, seed=seed, device=device)
        if at:
            reward.take(_read(Path(file)))
        elif slash:
            reward.take(_fetch(name, tag, published, vision["image_size"]))
        return reward

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Loads the weights of a plain open_clip model, which must fit name by name."""
        clip = dict(state)
        scale = clip.pop("logit_scale", None)
        try:
            self.module.get_submodule("clip").load_state_dict(clip)
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit open_clip model {self.spec.name}: {error}") from error
        if scale is not None:
            self.module.get_parameter("head.log_scale").data.copy_(scale.reshape(()))

    @property
    def context(self) -> int:
        """Tokens of a prompt that are read, begin and end among them."""
        length: int = self.architecture["text_cfg"].get("context_length", 77)
        return length

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the architecture names."""
        words = self.architecture.get("words")
        if words is not None:
            return WordTokenizer(words, self.context)
        import open_clip

        made: Tokenizer = open_clip.SimpleTokenizer(context_length=self.context)
        return made

    def features(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.cat([self.image_features(pixels), self.text_features(prompts)], 1)  # [B, 2E]

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        with torch.no_grad():
            return self.image_features(self.prepared([self.preprocessing.image(image) for image in images]))

    def image_features(self, pixels: Tensor) -> Tensor:
        """[B, E] embeddings of pixels [B, 3, size, size] in 0..1, before the head's map."""
        clip: Any = self.module.get_submodule("clip")
        embedded: Tensor = clip.encode_image(self.preprocessing.normalised(pixels))
        return embedded.float()

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """[B, E] embeddings of prompts, before the head's map; each different prompt is encoded once."""
        different = list(dict.fromkeys(prompts))
        place = {prompt: index for index, prompt in enumerate(different)}
        ids = self.tokenizer(different)  # [B, context]
        self._warn_of_cut([prompt for prompt, row in zip(different, ids, strict=True) if row[-1]])
        clip: Any = self.module.get_submodule("clip")
        embedded: Tensor = clip.encode_text(ids.to(self.device))
        return embedded.float()[torch.tensor([place[prompt] for prompt in prompts], device=self.device)]

    def _warn_of_cut(self, prompts: Sequence[str]) -> None:
        """Warns, once for each reward, of the first prompt that is longer than what the text tower reads.

        Args:
            prompts: those that fill all that it reads, or more.
        """
        for prompt in prompts:
            if self._warned:
                return
            length = len(self.tokenizer.encode(prompt)) + 2
            if length > self.context:
                self._warned = True
                tell_of_cut(self.spec.name, prompt, length, self.context)


def architecture(
    words: Sequence[str], *, image_size: int = 32, patch: int, width: int, layers: int, context: int
) -> dict[str, Any]:
    """A small dual encoder with a closed vocabulary, as `DualEncoder` takes it."""
    heads = max(1, width // 32)
    tower = {"width": width, "layers": layers}
    return {
        "embed_dim": width,
        "vision_cfg": {**tower, "image_size": image_size, "patch_size": patch, "head_width": width // heads},
        "text_cfg": {**tower, "heads": heads, "context_length": context, "vocab_size": len(words) + 4},
        "words": list(words),
    }


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if file.suffix != ".safetensors":
        raise ValueError(f"weights must be a .safetensors file, got {file}; convert them with safetensors first.")
    return load_file(file)


def _fetch(name: str, tag: str, published: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    import open_clip

    try:
        whole = open_clip.create_model(name, pretrained=tag, force_image_size=size)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunFailed(
            f"the weights {tag} of open_clip model {name} could not be had from {published.get('hf_hub') or 'the web'} "
            f"({reason}); put their .safetensors file on this machine and name open_clip:{name}@FILE."
        ) from error
    state: dict[str, Tensor] = whole.state_dict()
    return state

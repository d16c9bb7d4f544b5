"""Two towers in the shape of CLIP, as published rewards use them: how near an image and a prompt are embedded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from rwk.adapters.attention import quick_in_half
from rwk.adapters.clip_layout import refuse_other_gelu, under_open_clip_keys
from rwk.adapters.dual_encoder import DualHead
from rwk.adapters.preprocess import Preprocess
from rwk.adapters.published import Origin, PublishedReward
from rwk.rewards.networks import Networks
from rwk.rewards.staged import EmbeddedReward, each_once
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
ONE_FILE = ("model.safetensors", "pytorch_model.bin")
"""What a folder of transformers holds."""


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


def bucketed(encode: Callable[[list[list[int]]], Tensor], ids: Sequence[list[int]]) -> Tensor:
    """[B, E] rows of `encode`, which is given rows of ids together whose lengths round up to one multiple of 16."""
    buckets: dict[int, list[int]] = {}
    for place, row in enumerate(ids):
        buckets.setdefault(-(-len(row) // 16), []).append(place)
    rows = torch.cat([encode([ids[place] for place in places]) for places in buckets.values()])
    order = torch.tensor([place for places in buckets.values() for place in places], device=rows.device)
    return rows[order.argsort()]


def architecture(name: str) -> dict[str, Any]:
    """`embed_dim`, `vision_cfg`, `text_cfg` and perhaps `quick_gelu` of an open_clip architecture."""
    import open_clip

    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def open_clip_network(config: dict[str, Any]) -> nn.Module:
    """An open_clip model of that architecture, its weights random."""
    from open_clip.model import CLIP

    network: nn.Module = CLIP(**config)
    return quick_in_half(network)


class TowersReward(EmbeddedReward, PublishedReward):
    """A function of the cosine of image and prompt; a subclass embeds both."""

    context = 77
    tolerance = 0.005

    @property
    def tower(self) -> nn.Module:
        return self.network

    @property
    def text_tower(self) -> nn.Module:
        return self.network

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """What makes ids of texts."""

    @property
    def reader(self) -> Any:
        return self.tokenizer

    @abstractmethod
    def image_features(self, pixels: Tensor) -> Tensor:
        """[B, E] of pixels as `preprocess` makes them, of any length."""

    def embed_ready(self, ready: Tensor) -> Tensor:
        return self.image_features(self.preprocess.normalised(ready.to(self.device)))

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """[B, E] features of RGB images alone, without gradient."""
        with torch.no_grad():
            return self.image_features(self.preprocess.exact(list(images)).to(self.device))

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.score_features(self.image_features(pixels), self.embedded_texts(prompts))

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
        image, text = self.image_features(prepared), each_once(self.text_features, self.texts(prompts))
        image, text = image.float(), text.float()
        return torch.cat([image, text], 1) if self.probed else cosine(image, text)[:, None]


def cosine(image: Tensor, text: Tensor | None) -> Tensor:
    """[B] of embeddings [B, E] and as many of texts."""
    if text is None:
        raise ValueError("a cosine needs texts, got none")
    return (normalize(image, dim=1) * normalize(text, dim=1)).sum(1)


class OpenClipReward(TowersReward):
    """Towers of open_clip, whose files have the layout of OpenAI's; a subclass makes a score of their cosine.

    A prompt of more than 77 tokens loses its end; the last token that is read is then the end of text.
    """

    architecture: ClassVar[str]
    """open_clip's name of it."""
    files: ClassVar[tuple[str, ...]] = ONE_FILE
    """What a folder may hold in place of the published file."""

    @classmethod
    def config(cls) -> dict[str, Any]:
        """The architecture in open_clip's terms."""
        return architecture(cls.architecture)

    @classmethod
    def build(cls) -> nn.Module:
        return open_clip_network(cls.config())

    @classmethod
    def tiny(cls) -> Self:
        gelu = cls.config().get("quick_gelu", False)
        with seeded(5):  # of this seed the cosines are above 0, where CLIPScore is not flat
            network = open_clip_network({**SMALL, "quick_gelu": gelu})
        return cls.of(network, preprocess=small(cls.preprocess))

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return under_open_clip_keys({key: value for key, value in tensors.items() if key not in _NUMBERS})

    @classmethod
    def found(cls, weights: str | Path | None, revision: str | None) -> Path:
        """The published file, or one in the layout of transformers, which a folder may hold instead."""
        folder = Path(weights).expanduser() if weights is not None else None
        if folder is not None and folder.is_dir() and not (folder / Path(cls.origin.file).name).is_file():
            weights = next((folder / file for file in cls.files if (folder / file).is_file()), folder)
        path = super().found(weights, revision)
        refuse_other_gelu(cls.spec.name, path, cls.config().get("quick_gelu", False))
        return path

    @classmethod
    def family(cls) -> Hashable:
        return OpenClipReward, cls.architecture

    @classmethod
    def loaded(cls, path: Path, networks: Networks, device: str) -> nn.Module:
        network: Any = super().loaded(path, networks, device)
        network.visual = networks.get(picture_tower(cls.architecture, path, device), lambda: network.visual)
        return cast(nn.Module, network)

    @property
    def tower(self) -> nn.Module:
        return self.network.get_submodule("visual")

    def image_features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.tower(pixels)
        return features

    @cached_property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer of the architecture."""
        return tokenizer()

    def text_features(self, prompts: list[str]) -> Tensor:
        self.warn_of_cut(prompts, [len(self.tokenizer.encode(prompt)) + 2 for prompt in prompts])
        ids: Tensor = self.tokenizer(prompts)  # [B, 77], 0 after the end of text
        return bucketed(self._texts, [row[: int(row.argmax()) + 1].tolist() for row in ids])

    def _texts(self, ids: list[list[int]]) -> Tensor:
        """[B, E] of ids that end with the end of text, as open_clip embeds them among 77; text looks back only."""
        clip: Any = self.network
        rows = pad_sequence([torch.tensor(row, device=self.device) for row in ids], batch_first=True)  # [B, L]
        length = rows.shape[1]
        states = clip.token_embedding(rows) + clip.positional_embedding[:length]
        states = clip.ln_final(clip.transformer(states, attn_mask=clip.attn_mask[:length, :length]))
        ends: Tensor = states[torch.arange(len(ids), device=self.device), rows.argmax(1)]
        embeddings: Tensor = ends @ clip.text_projection
        return embeddings


def picture_tower(architecture: str, path: Path, device: str) -> Hashable:
    """The key of a file's picture tower in `Networks`, whichever reward loads it."""
    return "open_clip's picture tower", architecture, path.resolve(), device


def small(preprocess: Preprocess) -> Preprocess:
    """The same way to make pixels, for networks of `SMALL`."""
    return replace(preprocess, size=SMALL["vision_cfg"]["image_size"])

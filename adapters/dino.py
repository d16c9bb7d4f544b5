"""DINOv2 (Oquab et al., 2023): how near a picture is to pictures that the user gives, whatever it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from rwk.adapters.clip_towers import seeded
from rwk.adapters.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from rwk.adapters.published import Origin, PublishedReward, fill, find, read
from rwk.rewards.base import RewardSpec, to_rgb
from rwk.rewards.images import find as find_images
from rwk.rewards.images import read as read_image
from rwk.rewards.staged import EmbeddedReward

ENDINGS = frozenset({".safetensors", ".bin", ".pt", ".pth"})
"""Of files that hold weights; any other file is taken for a picture."""
_ATTENTION = {
    "attention.query": "q_proj",
    "attention.key": "k_proj",
    "attention.value": "v_proj",
    "output.dense": "o_proj",
}
"""What the published file calls the maps of a layer's attention, and what transformers calls them since."""
_AUTHORS = {
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "blocks.": "encoder.layer.",
    ".attn.proj.": ".attention.output.dense.",
    ".ls1.gamma": ".layer_scale1.lambda1",
    ".ls2.gamma": ".layer_scale2.lambda1",
}
"""What the authors' own file calls parts of the network, and what the one on the hub does."""
_LEARNT, _SEEN, _OFFSET = 37, 16, 0.1
"""Positions along a side that were learnt and that are seen, and what the authors' code adds to the latter's number."""


@dataclass(frozen=True)
class ResizedLarger(Preprocess):
    """A centre crop of `size` pixels out of a picture whose shorter side is resized to `short`."""

    short: int = 256

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return Preprocess(self.short).resized(width, height)


class DinoSimilarity(EmbeddedReward, PublishedReward):
    """The mean, over the reference pictures, of the cosine of DINOv2's [CLS] states of picture and reference.

    This is DreamBooth's measure of subject fidelity (arXiv:2208.12242) with DINOv2 ViT-B/14 in the place of DINO
    ViT-S/16, as later work computes it; the two are not on one scale. [CLS] is taken after the last normalisation. All
    pictures that one reward scores are compared with the same references, and prompts have no say.

    References are named in one of two ways. `dino.similarity@PATH` (that is, `weights=PATH`) takes a picture, or a
    folder, searched below; where the folder holds model.safetensors too, that is the network, else it comes from the
    hub. In Python `references=` takes a file, folder, glob, or PIL images, and `weights=` may then be the file alone.

    The shorter side is resized to 256 pixels, and the centre of 224 is read, as the processor on the hub does (the
    margin is rounded down). The file's positions are for 518 pixels and are interpolated, here as in transformers;
    `dino.similarity_authors` does as the authors' code. Their own file, `dinov2_vitb14_pretrain.pth`, is read too.
    `score_pixels` stands from `score` as far as float32 bicubic stands from Pillow's on 8 bits.
    """

    spec = RewardSpec(
        "dino.similarity",
        "mean cosine with the references",
        -1,
        1,
        "Apache-2.0",
        "arXiv:2304.07193",
        needs_prompt=False,
        differentiable=True,
    )
    origin = Origin("facebook/dinov2-base", "model.safetensors", "Apache-2.0", 346)
    preprocess = ResizedLarger(224, rounding="floor", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    tolerance = 0.02
    drift = {"bfloat16": 6.4e-4, "float16": 6.7e-5}
    reference: Tensor
    """[E] mean of the references' states, each of length 1."""

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        references: str | Path | Sequence[Image.Image] | None = None,
        revision: str | None = None,
        device: str = "cpu",
    ) -> None:
        """
        Args:
            weights: the published file, or reference pictures with or without it; see the class.
            references: pictures to compare with; by default those that `weights` names.
            revision: branch, tag or commit of the hub's repository.
            device: where the network runs.

        Raises:
            ValueError: where no reference is named, or one cannot be read.
            RunFailed: where the checkpoint cannot be had.
        """
        path = Path(weights).expanduser() if weights is not None else None
        own = path if path is not None and _holds_weights(path, self.origin.file) else None
        if references is None and (path is None or path.suffix in ENDINGS):
            raise ValueError(
                f"{self.spec.name} needs reference pictures, got none; name their folder as {self.spec.name}@FOLDER, "
                f"or give references=."
            )
        if references is not None and path is not None and own is None:
            raise ValueError(f"{self.spec.name} needs weights at {path}, got no {self.origin.file}; leave weights out.")
        pictures = self._pictures(references if references is not None else str(path))
        file = find(self.spec.name, self.origin, own, revision, by_hand="copy the file into the folder of references")
        tensors = self.converted(read(file))  # before the network, which takes its time
        network = self.build()
        fill(self.spec.name, network, tensors)
        self._take(network, device).compare_with(pictures)

    @classmethod
    def _pictures(cls, references: str | Path | Sequence[Image.Image]) -> list[Image.Image]:
        """The pictures that were named."""
        if not isinstance(references, str | Path):
            return list(references)
        found = []
        for path in find_images(str(references)).paths:
            image, note = read_image(path)
            if image is None:
                raise ValueError(f"{cls.spec.name} cannot read the reference {path}: {note}; take it out.")
            found.append(image)
        return found

    @classmethod
    def build(cls) -> nn.Module:
        return network(518, hidden_size=768, num_hidden_layers=12, num_attention_heads=12)

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {}
        for key, value in (_as_on_hub(tensors) if "pos_embed" in tensors else tensors).items():
            for old, new in _ATTENTION.items():
                key = key.replace(f".attention.{old}.", f".attention.{new}.")
            named[key] = value
        return named

    @classmethod
    def tiny(cls) -> Self:
        with seeded():
            made = network(56, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
            for parameter in made.parameters():  # the usual numbers are so small that all pictures look alike
                spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2
                parameter.data.add_(torch.randn_like(parameter), alpha=spread)
        small = ResizedLarger(28, rounding=cls.preprocess.rounding, mean=IMAGENET_MEAN, std=IMAGENET_STD, short=32)
        ramp = Image.linear_gradient("L").convert("RGB")
        return cls.of(made, preprocess=small).compare_with([ramp, Image.new("RGB", (40, 30), "teal")])

    def compare_with(self, references: Sequence[Image.Image]) -> Self:
        """The reward itself, from now on with these references.

        Raises:
            ValueError: where there is none, or one is too long to be cropped.
        """
        pictures = [to_rgb(image) for image in references]
        if not pictures:
            raise ValueError(f"{self.spec.name} needs one reference picture or more, got none; give one.")
        for number, picture in enumerate(pictures):
            if refusal := self.preprocess.refusal(picture):
                raise ValueError(f"{self.spec.name} cannot take reference {number}: it {refusal}; crop it.")
        with torch.no_grad():
            states = [self.states(self.preprocess.exact([picture]).to(self.device)) for picture in pictures]
        self.reference = torch.cat(states).mean(0)
        return self

    def states(self, pixels: Tensor) -> Tensor:
        """[B, E] states of [CLS], each of length 1, of pixels as `preprocess` makes them."""
        made: Any = self.network(pixel_values=pixels)
        return normalize(made.pooler_output, dim=1)

    @property
    def tower(self) -> nn.Module:
        return self.network

    @property
    def text_tower(self) -> None:
        return None

    def embed_ready(self, ready: Tensor) -> Tensor:
        return self.states(self.preprocess.normalised(ready.to(self.device)))

    def score_features(self, image: Tensor, text: Tensor | None) -> Tensor:
        return (image * self.reference.to(image.dtype)).sum(1)

    def score_prepared(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.score_features(self.states(pixels), None)


class DinoAuthors(DinoSimilarity):
    """`dino.similarity` as the authors' own code gives it, torch.hub's network on the transform of their evaluations.

    Two details differ: it spreads the learnt positions by 16.1/37, where transformers has 16/37, and it rounds the
    margin of the centre crop. With random positions, rougher than learnt ones, scores that lie 0.14 apart move by up to
    0.009. References and weights are named as for `dino.similarity`, in either file's layout.
    """

    spec = replace(DinoSimilarity.spec, name="dino.similarity_authors")
    preprocess = ResizedLarger(224, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @classmethod
    def build(cls) -> nn.Module:
        return network(14 * _SEEN, hidden_size=768, num_hidden_layers=12, num_attention_heads=12)

    @classmethod
    def converted(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        named, key = super().converted(tensors), "embeddings.position_embeddings"
        if key in named and named[key].shape[1] == 1 + _LEARNT**2:  # of any other the shape is refused
            learnt = named[key][0, 1:].T.unflatten(1, (_LEARNT, _LEARNT))[None].float()  # [1, D, 37, 37]
            scale = (_SEEN + _OFFSET) / _LEARNT
            seen = interpolate(learnt, scale_factor=(scale, scale), mode="bicubic").flatten(2).mT
            named[key] = torch.cat([named[key][:, :1], seen.to(named[key].dtype)], 1)
        return named


def _as_on_hub(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the authors' file under the keys of the one on the hub."""
    named = {}
    for key, value in tensors.items():
        for old, new in _AUTHORS.items():
            key = key.replace(old, new)
        if ".attn.qkv." in key:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                named[key.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            named[f"layer{key}" if key.startswith("norm.") else key] = value
    return named


def _holds_weights(path: Path, file: str) -> bool:
    return path.suffix in ENDINGS or (path / file).is_file()


def network(size: int, **shape: Any) -> nn.Module:
    """DINOv2 with patches of 14 pixels and positions for pictures of that size, its weights random."""
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(image_size=size, patch_size=14, **shape))

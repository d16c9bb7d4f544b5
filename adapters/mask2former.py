"""Mask2Former (Cheng et al., 2022) on COCO: what things are in a picture, each with its score, mask and box."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.geneval_rules import SURE, THINGS, Found
from rwk.adapters.preprocess import IMAGENET_MEAN, IMAGENET_STD
from rwk.adapters.published import Origin

ORIGIN = Origin("facebook/mask2former-swin-small-coco-instance", "pytorch_model.bin", "CC-BY-NC-4.0", 275)
UNUSED = ("relative_position_index", "swin.layernorm.", "criterion.")
"""Parts of keys of Swin's constants, of a normalisation behind the states that are read, and of the loss: the published
file has the first and not the second."""
MOST = 100
"""Pairs of a query and a class that are looked at, the likeliest ones."""
STRIDE = 32
"""Pixels that both sides of what the network reads are a multiple of."""


class Mask2Former:
    """The detector on pictures of any size, as GenEval runs it.

    The shorter side is resized to 800 pixels, or the longer to 1333 where it would be more (Pillow's bilinear); right
    and bottom are filled up to multiples of 32. Of every query and class the score is the softmax of the class times
    the mean of the mask's sigmoid where that is above a half. Masks are resized to the picture before they are cut at a
    half, and a box is the smallest that holds its mask. The processor in the repository on the hub does otherwise: it
    squashes pictures to 384 by 384 and cuts masks at that size.
    """

    def __init__(self, network: Any, *, short: int = 800, longest: int = 1333) -> None:
        """
        Args:
            network: Mask2FormerForUniversalSegmentation of transformers.
            short: pixels of the resized picture's shorter side.
            longest: most pixels of its longer side.

        Raises:
            ValueError: for a network of other than 80 classes.
        """
        if network.config.num_labels != len(THINGS):
            raise ValueError(
                f"a detector of COCO's {len(THINGS)} things is needed, got one of {network.config.num_labels} classes; "
                f"give a checkpoint for COCO instance segmentation."
            )
        self.network, self.short, self.longest = network, short, longest

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize."""
        scale = min(self.short / min(width, height), self.longest / max(width, height))
        return max(int(width * scale + 0.5), 1), max(int(height * scale + 0.5), 1)

    def pixels(self, image: Image.Image) -> Tensor:
        """[1, 3, H, W] normalised pixels of an RGB picture, resized and not filled up yet."""
        resized = image.resize(self.fitted(*image.size), Image.Resampling.BILINEAR)
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        normalised: Tensor = (pil_to_tensor(resized).float() / 255 - mean) / std
        return normalised[None]

    def __call__(self, image: Image.Image, things: Collection[str], *, least: float = SURE) -> dict[str, list[Found]]:
        """What is found of some classes with a score above `least`, by class.

        Args:
            image: RGB, upright.
            things: names of `THINGS`.
        """
        pixels = self.pixels(image).to(self.network.device)
        high, wide = pixels.shape[2:]
        filled = pad(pixels, (0, -wide % STRIDE, 0, -high % STRIDE))
        made = self.network(pixel_values=filled)
        likely = made.class_queries_logits[0].softmax(1)[:, :-1]  # [Q, 80]
        scores, places = likely.flatten().topk(min(MOST, likely.numel()))
        found: dict[str, list[Found]] = {}
        for score, place in zip(scores.tolist(), places.tolist(), strict=True):
            query, thing = divmod(place, len(THINGS))
            if score <= least or THINGS[thing] not in things:  # the mask can only lower it
                continue
            mask = interpolate(made.masks_queries_logits[:, query, None], filled.shape[2:], mode="bilinear")
            mask = interpolate(mask[..., :high, :wide], image.size[::-1], mode="bilinear")[0, 0]
            one = _found(score, mask)
            if one is not None and one.score > least:
                found.setdefault(THINGS[thing], []).append(one)
        return found


def _found(likely: float, mask: Tensor) -> Found | None:
    """The thing of mask logits [H, W]; None where no pixel is its own."""
    inside = mask > 0
    if not inside.any():
        return None
    score = likely * mask[inside].sigmoid().mean().item()
    held = inside.cpu().numpy()
    across, down = (np.flatnonzero(held.any(axis)) for axis in (0, 1))
    return Found(score, (across[0].item(), down[0].item(), across[-1].item() + 1, down[-1].item() + 1), held)


def tiny(things: Collection[str]) -> Mask2Former:
    """A random Mask2Former of COCO's classes that finds no others than these, but finds them often."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages: dict[str, Any] = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "out_indices": [1, 2, 3, 4]}
    swin = SwinConfig(image_size=64, embed_dim=8, window_size=4, **stages)
    widths: dict[str, Any] = {"feature_size": 64, "mask_feature_size": 64, "hidden_dim": 64, "num_attention_heads": 2}
    layers: dict[str, Any] = {"encoder_layers": 1, "decoder_layers": 2}
    inner: dict[str, Any] = {"encoder_feedforward_dim": 32, "dim_feedforward": 32}
    heads: dict[str, Any] = {"num_queries": 16, "num_labels": len(THINGS)}
    network: Any = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=swin, **widths, **layers, **inner, **heads)
    )
    for weight in network.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.7 / weight[0].numel() ** 0.5 if weight.dim() > 1 else 0.2)
    network.class_predictor.weight.data *= 6
    network.class_predictor.bias.data[:-1] -= torch.tensor([0.0 if thing in things else 30.0 for thing in THINGS])
    return Mask2Former(network, short=48, longest=96)

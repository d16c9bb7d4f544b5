"""DPT (Ranftl et al., 2021) by its published checkpoint: how near each pixel of a picture is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.blip_towers import randomised
from rwk.adapters.clip_towers import seeded
from rwk.adapters.pretrained import load_folder
from rwk.adapters.published import Origin

ORIGIN = Origin("Intel/dpt-hybrid-midas", "pytorch_model.bin", "Apache-2.0", 490)
UNUSED = ("neck.fusion_stage.layers.0.residual_layer1",)
"""Parts of keys that the published checkpoint lacks, as the first fusion has nothing to add."""


class Dpt:
    """DPT-Hybrid on ViT-B and ResNet-50, in the layout of transformers, for pictures squashed to a square."""

    def __init__(self, network: Any, *, side: int, device: str = "cpu") -> None:
        """
        Args:
            network: a `DPTForDepthEstimation` of any size.
            side: pixels of the square, a multiple of 32; position embeddings are interpolated to it.
        """
        self.network, self.side, self.device = network.eval().requires_grad_(False).to(device), side, device
        network.dpt.embeddings.image_size = (side, side)  # else transformers takes no other than it was trained with

    @classmethod
    def load(
        cls, name: str, weights: str | Path | None, *, side: int, revision: str | None = None, device: str = "cpu"
    ) -> Self:
        """The published network, or that of a folder; arguments and errors are those of `pretrained.load_folder`."""
        from transformers import DPTForDepthEstimation

        return cls(
            load_folder(name, DPTForDepthEstimation, ORIGIN, weights, revision, unused=UNUSED), side=side, device=device
        )

    @classmethod
    def tiny(cls) -> Self:
        """A small random network in the published layout."""
        from transformers import DPTConfig, DPTForDepthEstimation

        backbone = {
            "model_type": "bit",
            "embedding_size": 8,
            "hidden_sizes": [16, 32, 32],
            "depths": [1, 1, 1],
            "num_groups": 4,
            "layer_type": "bottleneck",
            "global_padding": "same",
            "embedding_dynamic_padding": True,
            "out_features": ["stage1", "stage2", "stage3"],
        }
        config = DPTConfig(
            is_hybrid=True,
            backbone_config=backbone,
            backbone_featmap_shape=[1, 32, 3, 3],
            image_size=48,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=32,
            backbone_out_indices=[0, 1, 2, 3],
            reassemble_factors=[1, 1, 1, 0.5],
            neck_hidden_sizes=[16, 32, 16, 16],
            fusion_hidden_size=16,
        )
        with seeded():
            network = DPTForDepthEstimation(config)
        return cls(randomised(network), side=64)

    def nearness(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """[H, W] inverse depth of an RGB picture, larger is nearer, in units of its own; `size` is W and H."""
        square = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = (pil_to_tensor(square).float()[None] / 255 - 0.5) / 0.5
        with torch.no_grad():
            found = self.network(pixel_values=pixels.to(self.device)).predicted_depth  # [1, side, side]
        resized: Tensor = interpolate(found[:, None], size=size[::-1], mode="bilinear", align_corners=True)
        return resized[0, 0].cpu()

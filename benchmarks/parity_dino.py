"""Record the cosines of DINOv2's own states of [CLS] of the weights and pictures of tests/dino_case.py.

    git clone https://github.com/facebookresearch/dinov2
    pip install torch torchvision pillow numpy
    python benchmarks/parity_dino.py dinov2 tests/parity/dino.json

The network is made as torch.hub's is, only narrower, and filled strictly; pictures, as RGB, go through the transform of
the authors' evaluations.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import sys
import types
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from recording import commit, one_step

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "dino_case.py"))
NOTE = "cosines of pictures (rows) with references, of hub.backbones' network and make_classification_eval_transform"


def network(checkout: Path) -> Any:
    """What torch.hub makes of `dinov2_vitb14`, of the case's width and weights."""
    sys.path.insert(0, str(checkout))
    os.environ["XFORMERS_DISABLED"] = "1"
    kinds = importlib.import_module("dinov2.models.vision_transformer")
    layers = importlib.import_module("dinov2.layers")
    block = functools.partial(layers.NestedTensorBlock, attn_class=layers.MemEffAttention)
    sizes = {"embed_dim": CASE["WIDTH"], "depth": CASE["DEPTH"], "num_heads": CASE["HEADS"], "mlp_ratio": 4}
    vars(kinds)["vit_case"] = functools.partial(kinds.DinoVisionTransformer, block_fn=block, **sizes)
    made = importlib.import_module("dinov2.hub.backbones")._make_dinov2_model(arch_name="vit_case", pretrained=False)
    made.load_state_dict({key: torch.from_numpy(value) for key, value in CASE["authors"]().items()}, strict=True)
    return made.eval()


def record(checkout: Path, out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that xFormers is left out
        embed = network(checkout)
    data = types.ModuleType("dinov2.data")  # its own __init__ imports data sets
    data.__path__ = [str(checkout / "dinov2" / "data")]
    sys.modules["dinov2.data"] = data
    prepare = importlib.import_module("dinov2.data.transforms").make_classification_eval_transform()
    states = []
    with torch.no_grad():
        for images in (CASE["pictures"](), CASE["references"]()):
            states.append(torch.cat([embed(prepare(image.convert("RGB"))[None]) for image in images]))
    cosines = torch.cosine_similarity(states[0][:, None], states[1][None], dim=2)
    versions = {name: version(name) for name in ("torch", "torchvision", "pillow")}
    versions["dinov2"] = commit(checkout)
    recorded = {"package": "dinov2", "versions": versions, "note": NOTE, "cosines": cosines.tolist()}
    out.write_text(json.dumps(recorded, indent=1))


if __name__ == "__main__":
    one_step(__doc__, record, checkout="facebookresearch/dinov2")

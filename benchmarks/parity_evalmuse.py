"""Record what the official code of FGA-BLIP2 says of the weights, pictures and prompts of tests/evalmuse_case.py.

    git clone https://github.com/DYEvaLab/EvalMuse
    pip install torch torchvision transformers==4.33.2 timm==0.6.13 fairscale omegaconf iopath pandas webdataset \
        opencv-python-headless
    python benchmarks/parity_evalmuse.py EvalMuse tests/parity/evalmuse.json

The code runs as it is, the functions of its demonstration among it. Replaced are downloads, the sizes that are written
into it, and packages' own __init__, which import all of LAVIS.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import runpy
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from recording import commit, one_step

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "evalmuse_case.py"))
BERT = {
    "model_type": "bert",
    "hidden_size": CASE["HIDDEN"],
    "intermediate_size": 4 * CASE["HIDDEN"],
    "num_hidden_layers": CASE["DEPTH"],
    "num_attention_heads": CASE["HEADS"],
    "vocab_size": len(CASE["VOCABULARY"]),
    "layer_norm_eps": 1e-12,
}


def bare_packages(checkout: Path) -> None:
    """Lets modules of LAVIS be imported one by one."""
    for name in ("lavis", "lavis.common", "lavis.models", "lavis.models.blip2_models", "lavis.processors"):
        package: Any = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    sys.path.insert(0, str(checkout))
    bare: Any = sys.modules
    bare["lavis.models"].load_model_and_preprocess = None  # for the demonstration, which is given what it would load
    bare["lavis.processors"].BaseProcessor = importlib.import_module("lavis.processors.base_processor").BaseProcessor
    bare["lavis.models"].BaseModel = importlib.import_module("lavis.models.base_model").BaseModel


def network(folder: Path) -> Any:
    """The authors' network, small, with the weights of the tests read by its own `load_checkpoint`."""
    Path("bert-base-uncased").mkdir()
    Path("bert-base-uncased/vocab.txt").write_text("\n".join(CASE["VOCABULARY"]))
    Path("bert-base-uncased/config.json").write_text(json.dumps(BERT))
    blip2 = importlib.import_module("lavis.models.blip2_models.blip2")
    eva = importlib.import_module("lavis.models.eva_vit")
    language = blip2.BertLMHeadModel
    language.from_pretrained = lambda name, config: language(config)

    def small(size: int, drop_path: float, checkpointing: bool, precision: str) -> Any:
        norm = lambda width: torch.nn.LayerNorm(width, eps=1e-6)  # noqa: E731
        shape = {"embed_dim": CASE["WIDTH"], "depth": CASE["DEPTH"], "num_heads": CASE["HEADS"], "mlp_ratio": 4}
        return eva.VisionTransformer(size, CASE["PATCH"], qkv_bias=True, norm_layer=norm, **shape)

    blip2.create_eva_vit_g = small
    fga = importlib.import_module("lavis.models.blip2_models.fga_blip2")
    made = fga.FGA_Blip2(img_size=CASE["SIZE"], vit_precision="fp32", freeze_vit=False)
    tensors = {key: torch.tensor(value) for key, value in CASE["published"]().items()}
    made.load_state_dict(tensors, strict=True)
    torch.save({"model": tensors}, folder / "fga_blip2.pth")
    made.load_checkpoint(str(folder / "fga_blip2.pth"))
    return made.eval()


def scores(checkout: Path, folder: Path) -> dict[str, Any]:
    bare_packages(checkout)
    processors = importlib.import_module("lavis.processors.blip_processors")
    model = network(folder)
    see, read = processors.BlipImageEvalProcessor(image_size=CASE["SIZE"]), processors.BlipCaptionProcessor()
    pictures = [image.convert("RGB") for image in CASE["pictures"]()]
    pixels = torch.stack([see(image) for image in pictures])
    demonstration: Any = importlib.import_module("demo.demo")
    demonstration.model = model
    demonstration.vis_processors, demonstration.text_processors = {"eval": see}, {"eval": read}
    for i, image in enumerate(pictures):
        image.save(f"{i}.png")
    with torch.no_grad():
        found: dict[str, Any] = {"fga_blip2": [], "fga_blip2_whole": [], "element": []}
        for prompt in CASE["PROMPTS"]:
            texts = [read(prompt)] * len(pictures)
            asked = {"image": pixels, "text_input": texts}
            found["fga_blip2"].append(model(asked, match_head="itm", inference=True).tolist())
            found["fga_blip2_whole"].append(model.element_score(pixels, texts)[0].tolist())
        for prompt, elements in CASE["ELEMENTS"]:
            for element in elements:
                ask = demonstration.element_score
                found["element"].append([ask(prompt, f"{i}.png", element)[1].item() for i in range(len(pictures))])
    return found


def record(checkout: Path, out: Path) -> None:
    names = ("torch", "torchvision", "transformers", "PIL")
    versions = {name: importlib.import_module(name).__version__ for name in names}
    versions["EvalMuse"] = commit(checkout)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        found = scores(checkout, Path(folder))
    out.write_text(json.dumps({"package": "FGA_Blip2 of EvalMuse", "versions": versions, **found}, indent=1) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, checkout="DYEvaLab/EvalMuse")

"""Record t2v_metrics' scores by Qwen2.5-VL of tests/test_vqascore_vlm.py, and how it asks LLaVA-OneVision.

    python benchmarks/parity_vqascore_vlm.py case FOLDER
    git clone https://github.com/linzhiqiu/t2v_metrics && git -C t2v_metrics checkout 6ecb74f3
    git clone https://github.com/linzhiqiu/t2v_metrics before && git -C before checkout 10d549b3
    git clone https://github.com/LLaVA-VL/LLaVA-NeXT
    uv venv old --python 3.11
    uv pip install --python old/bin/python torch torchvision transformers==4.57.6 accelerate qwen-vl-utils einops
    old/bin/python benchmarks/parity_vqascore_vlm.py record FOLDER t2v_metrics before LLaVA-NeXT \\
        tests/parity/vqascore_vlm.json

The first line writes what the test reads, with this project's packages. The code runs as it is; it finds the case's
small network under the name of Qwen2.5-VL-7B, which then computes in float32. Version 3.1 has no LLaVA-OneVision any
more: that is asked of the commit before, with LLaVA's own text and picture code around a network that gives logits.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from recording import commit, two_steps

MODELS = "t2v_metrics.models.vqascore_models"
NOTE = (
    "Qwen2VLModel.forward on the CPU, the network in float32: `scores` with the repetition penalty of its "
    "generation_config.json left out, `penalised` with it; `llava_ov` is what LLaVAOneVisionModel.forward asks and how"
)


def write(folder: Path) -> None:
    """The case's network, pictures and prompts as files."""
    case = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "test_vqascore_vlm.py"))
    case["write"](folder / "Qwen" / "Qwen2.5-VL-7B-Instruct")
    for i, image in enumerate(case["pictures"]()):
        image.save(folder / f"{i}.png")
    (folder / "case.json").write_text(json.dumps({"prompts": case["PROMPTS"]}))


def packages(root: Path, *names: str) -> None:
    """Packages of a checkout, without what their own __init__ imports."""
    for name in names:
        package = types.ModuleType(name)
        package.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[name] = package


def module(name: str, **held: Any) -> None:
    """What `import name` finds from now on."""
    made = types.ModuleType(name)
    vars(made).update(held)
    sys.modules[name] = made


def t2v(checkout: Path, name: str) -> Any:
    """A module of t2v_metrics' models, which reads no videos here."""
    import transformers  # noqa: F401  before there are empty modules, as it looks what is installed

    for old in [key for key in sys.modules if key.startswith("t2v_metrics")]:
        del sys.modules[old]
    packages(checkout, "t2v_metrics", "t2v_metrics.models", MODELS)
    module("decord", VideoReader=None, cpu=None)
    module("cv2")
    return importlib.import_module(f"{MODELS}.{name}")


def qwen(folder: Path, checkout: Path, pictures: list[str], prompts: list[str]) -> dict[str, list[float]]:
    """Scores of version 3.1, with and without the penalty of the checkpoint."""
    with contextlib.chdir(folder):  # where "Qwen/Qwen2.5-VL-7B-Instruct" is a folder
        scorer = t2v(checkout, "qwen2vl_model").Qwen2VLModel()
    scorer.model.float()
    penalised = scorer.forward(pictures, prompts).tolist()
    scorer.model.generation_config.repetition_penalty = 1.0
    return {"scores": scorer.forward(pictures, prompts).tolist(), "penalised": penalised}


class Recorder:
    """A LLaVA-OneVision of the published configuration in pictures that tells what it is shown."""

    config = SimpleNamespace(
        image_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=[[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
        mm_patch_merge_type="spatial_unpad",
    )

    def __init__(self, words: int) -> None:
        self.logits = torch.randn(1, words, generator=torch.Generator().manual_seed(3))
        self.seen: list[dict[str, Any]] = []

    def eval(self) -> None:
        pass

    def generate(self, ids: Any, images: Any, modalities: Any, **named: Any) -> Any:
        self.seen.append({"ids": ids[0].tolist(), "shape": list(images[0].shape), "modalities": modalities})
        return SimpleNamespace(scores=[self.logits])


def llava(folder: Path, checkout: Path, llava_next: Path, pictures: list[str], prompts: list[str]) -> dict[str, Any]:
    """How the commit before version 3.1 asks LLaVA-OneVision."""
    from transformers import PreTrainedTokenizerFast

    packages(llava_next, "llava", "llava.model", "llava.model.multimodal_encoder")
    module("llava.model.builder", load_pretrained_model=None)
    source = folder / "Qwen" / "Qwen2.5-VL-7B-Instruct" / "tokenizer.json"
    words = PreTrainedTokenizerFast(tokenizer_file=str(source))
    models = t2v(checkout, "llavaov_model")
    squares = importlib.import_module("llava.model.multimodal_encoder.siglip_encoder").SigLipImageProcessor()
    network = Recorder(len(words))
    models.load_pretrained_model = lambda *given, **named: (words, network, squares, 32768)
    scorer = models.LLaVAOneVisionModel(device="cpu")
    values = scorer.forward(pictures, prompts)
    place = [seen["ids"].index(-200) for seen in network.seen]
    before = [words.decode(seen["ids"][:at]) for seen, at in zip(network.seen, place, strict=True)]
    after = [words.decode(seen["ids"][at + 1 :]) for seen, at in zip(network.seen, place, strict=True)]
    (yes,) = words.encode("Yes")
    return {
        "before": before,
        "after": after,
        "shapes": [seen["shape"] for seen in network.seen],
        "modalities": [seen["modalities"] for seen in network.seen],
        "scores": values.tolist(),
        "of_softmax": network.logits.softmax(1)[0, yes].item(),
    }


def record(folder: Path, checkout: Path, before: Path, llava_next: Path, out: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"  # else LLaVA's templates of conversations ask the hub for a tokenizer
    prompts = json.loads((folder / "case.json").read_text())["prompts"]
    pictures = [str(folder / f"{i}.png") for i in range(len(prompts))]
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        scores = qwen(folder, checkout, pictures, prompts)
        asked = llava(folder, before, llava_next, pictures, prompts)
    names = ("transformers", "tokenizers", "torch", "pillow", "qwen-vl-utils")
    versions = {name: version(name) for name in names} | {"t2v_metrics": f"3.1 ({commit(checkout)})"}
    asked["versions"] = {"t2v_metrics": f"{commit(before)} (before 3.1)", "LLaVA-NeXT": commit(llava_next)}
    recorded = {"package": "t2v_metrics", "versions": versions, "note": NOTE, **scores, "llava_ov": asked}
    out.write_text(json.dumps(recorded, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    t2v_metrics = "linzhiqiu/t2v_metrics"
    clones = {"checkout": t2v_metrics, "before": t2v_metrics, "llava_next": "LLaVA-VL/LLaVA-NeXT"}
    two_steps(__doc__, write, record, **clones)

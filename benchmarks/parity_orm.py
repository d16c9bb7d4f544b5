"""Record the margins of T2I-R1's outcome reward, by LLaVA's own code, of the weights and pictures of tests/test_orm.py.

    python benchmarks/parity_orm.py case FOLDER
    git clone https://github.com/ZiyuGuo99/Image-Generation-CoT
    uv venv old --python 3.11
    uv pip install --python old/bin/python torch transformers==4.45.2 pillow numpy einops requests
    old/bin/python benchmarks/parity_orm.py record FOLDER Image-Generation-CoT tests/parity/orm.json

The first line writes what the test reads, with this project's packages; the last needs those of the code's time. The
selector makes the inputs and the network is LLaVA's; replaced are the sizes, half precision, and the sampled answer, in
whose place stands one forward pass. The last digits of a margin depend on the number of threads: four ways to split the
sums differ by up to 1.6e-6 from one another.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import types
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from recording import commit, two_steps

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NOTE = "logit of yes minus logit of no, of one forward pass on the inputs that selector.py makes, in float32 on the CPU"


def write(folder: Path) -> None:
    """The case's weights, tokenizer, sizes, pictures and prompts as files."""
    from safetensors.torch import save_file

    case = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "test_orm.py"))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(case["published"](), folder / "model.safetensors")
    case["tokenizer"]().backend_tokenizer.save(str(folder / "tokenizer.json"))
    for i, image in enumerate(case["pictures"]()):
        image.save(folder / f"{i}.png")
    language, vision = case["configs"]()
    sizes = {key: getattr(language, key) for key in (*SIZES, "num_key_value_heads", "rms_norm_eps", "vocab_size")}
    sizes |= {"rope_theta": language.rope_parameters["rope_theta"]}
    facts = {"prompts": case["PROMPTS"], "language": sizes, "vision": {key: getattr(vision, key) for key in SIZES}}
    (folder / "case.json").write_text(json.dumps(facts))


def llava(checkout: Path) -> Any:
    """The selector's module, with as much of LLaVA as it needs."""
    for name in ("llava", "llava.model", "llava.model.language_model"):  # their own __init__ import all of it
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    loader: Any = types.ModuleType("llava.model.builder")
    loader.load_pretrained_model = None
    sys.modules["llava.model.builder"] = loader
    sys.path.insert(0, str(checkout))
    return importlib.import_module("selector")


def network(folder: Path, facts: dict[str, Any]) -> Any:
    """LLaVA's network of the case's sizes and weights, in float32."""
    from safetensors.torch import load_file

    siglip = importlib.import_module("llava.model.multimodal_encoder.siglip_encoder")
    qwen = importlib.import_module("llava.model.language_model.llava_qwen")
    whole = facts["vision"] | {"num_hidden_layers": facts["vision"]["num_hidden_layers"] + 1}  # the last is dropped
    config = siglip.SigLipVisionConfig(**whole)
    siglip.SigLipVisionConfig = lambda: config
    siglip.SigLipVisionModel.from_pretrained = lambda name, device_map: siglip.SigLipVisionModel(config)
    eyes = {"mm_vision_tower": "siglip", "mm_hidden_size": config.hidden_size, "mm_projector_type": "mlp2x_gelu"}
    whole = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "pad", "tie_word_embeddings": False}
    made = qwen.LlavaQwenForCausalLM(qwen.LlavaQwenConfig(**facts["language"], **eyes, **whole))
    tensors = load_file(folder / "model.safetensors")
    made.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=True)
    return made.float().eval()


def margins(folder: Path, checkout: Path) -> list[float]:
    os.environ["HF_HUB_OFFLINE"] = "1"  # else LLaVA's templates of conversations ask the hub for a tokenizer
    from transformers import PreTrainedTokenizerFast

    facts = json.loads((folder / "case.json").read_text())
    module = llava(checkout)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    selector = module.ImageSelector.__new__(module.ImageSelector)
    selector.tokenizer, selector.model, selector.device = tokenizer, network(folder, facts), "cpu"
    selector.image_processor = selector.model.get_vision_tower().image_processor
    found = []

    def answer(ids: torch.Tensor, images: list[torch.Tensor], image_sizes: list[Any], **ignored: Any) -> Any:
        logits = selector.model(ids, images=images, image_sizes=image_sizes).logits[0, -1]
        found.append((logits[yes] - logits[no]).item())
        return SimpleNamespace(sequences=torch.tensor([[yes]]), scores=[logits[None]])

    selector.model.generate = answer
    with patch.object(torch, "float16", torch.float32):
        for i, prompt in enumerate(facts["prompts"]):
            selector.orm([prompt], str(folder / f"{i}.png"))
    return found


def record(folder: Path, checkout: Path, out: Path) -> None:
    versions = {name: version(name) for name in ("transformers", "tokenizers", "torch", "pillow")}
    versions["Image-Generation-CoT"] = commit(checkout)
    recorded = {
        "package": "llava of Image-Generation-CoT",
        "versions": versions,
        "note": NOTE,
        "margins": margins(folder, checkout),
    }
    out.write_text(json.dumps(recorded, indent=1))


if __name__ == "__main__":
    two_steps(__doc__, write, record, checkout="ZiyuGuo99/Image-Generation-CoT")

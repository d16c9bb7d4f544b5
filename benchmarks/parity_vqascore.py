"""Record the scores of t2v_metrics' CLIP-FlanT5 of the weights, pictures and prompts of tests/test_vqascore.py.

    python benchmarks/parity_vqascore.py case FOLDER
    git clone https://github.com/linzhiqiu/t2v_metrics && git -C t2v_metrics checkout 10d549b3
    uv venv old --python 3.11
    uv pip install --python old/bin/python torch transformers==4.45.2 pillow numpy safetensors
    old/bin/python benchmarks/parity_vqascore.py record FOLDER t2v_metrics tests/parity/vqascore.json

The first line writes what the test reads, with this project's packages; the last needs those of the code's time, which
is before version 3.1. The code runs as it is; replaced are downloads, the sizes, the tokenizer's class and, after the
weights were cast to bfloat16, that type.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import runpy
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recording import commit, two_steps

T5 = ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_layers", "feed_forward_proj")
VISION = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
NOTE = (
    "CLIPT5Model.forward on the CPU: the model cast to bfloat16 as it does, then computed in float32; the tokenizer is "
    "the test's, as tokenizer.json"
)


def write(folder: Path) -> None:
    """The case's weights, tokenizer, sizes, pictures and prompts as files."""
    from safetensors.torch import save_file

    case = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "test_vqascore.py"))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone() for key, value in case["published"]().items()}, folder / "model.safetensors")
    case["tiny_tokenizer"]().backend_tokenizer.save(str(folder / "tokenizer.json"))
    for i, image in enumerate(case["pictures"]()):
        image.save(folder / f"{i}.png")
    t5, vision = case["configs"]()
    facts = {"t5": {key: getattr(t5, key) for key in T5}, "vision": {key: getattr(vision, key) for key in VISION}}
    (folder / "case.json").write_text(json.dumps(facts | {"prompts": case["PROMPTS"]}))


def official(folder: Path, checkout: Path, facts: dict[str, Any]) -> Any:
    """t2v_metrics' model, which loads the case's files in the place of published ones."""
    import transformers
    from safetensors.torch import load_file

    models = "t2v_metrics.models.vqascore_models"
    for name in ("t2v_metrics", "t2v_metrics.models", models):  # their own __init__ import every model
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    sys.modules["cv2"] = types.ModuleType("cv2")  # for videos
    side, config = facts["vision"]["image_size"], transformers.CLIPVisionConfig(**facts["vision"])
    squares = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = {"tokenizer_file": str(folder / "tokenizer.json"), **marks}
    loads = importlib.import_module(f"{models}.mm_utils")
    loads.AutoTokenizer = SimpleNamespace(
        from_pretrained=lambda path, use_fast, **also: transformers.PreTrainedTokenizerFast(**words, **also)
    )
    eyes = importlib.import_module(f"{models}.clip_t5.model.multimodal_encoder.clip_encoder")
    eyes.CLIPImageProcessor = SimpleNamespace(from_pretrained=lambda name: squares)
    eyes.CLIPVisionModel = SimpleNamespace(from_pretrained=lambda name: transformers.CLIPVisionModel(config))
    module = importlib.import_module(f"{models}.clip_t5_model")
    kind = module.CLIPT5ForConditionalGeneration

    def filled(path: str, cache_dir: str) -> Any:
        chosen = vars(module.ModelArguments())
        chosen = {key: chosen[key] for key in chosen if key.startswith("mm_")} | facts["t5"]
        seen = {"mm_vision_tower": "openai", "mm_hidden_size": config.hidden_size, "decoder_start_token_id": 0}
        seen |= {"tie_word_embeddings": False}  # as published; transformers 5 has it True whatever it is given
        network = kind(kind.config_class(**chosen, **seen))
        tensors = load_file(folder / "model.safetensors")
        network.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=True)
        return network

    kind.from_pretrained = filled
    made = module.CLIPT5Model(device="cpu")
    made.model.float()
    return made


def record(folder: Path, checkout: Path, out: Path) -> None:
    facts = json.loads((folder / "case.json").read_text())
    pictures = [str(folder / f"{i}.png") for i in range(len(facts["prompts"]))]
    with tempfile.TemporaryDirectory() as cache, contextlib.chdir(cache):
        scores = official(folder, checkout, facts).forward(pictures, facts["prompts"]).tolist()
    versions = {name: version(name) for name in ("transformers", "tokenizers", "torch", "pillow")}
    versions["t2v_metrics"] = f"{commit(checkout)} (before 3.1)"
    recorded = {"package": "t2v_metrics", "versions": versions, "note": NOTE, "scores": scores}
    out.write_text(json.dumps(recorded, indent=1))


if __name__ == "__main__":
    two_steps(__doc__, write, record, checkout="linzhiqiu/t2v_metrics")

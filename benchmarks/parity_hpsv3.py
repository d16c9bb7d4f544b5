"""Record the scores of hpsv3's inferencer of the weights, pictures and prompts of tests/test_hpsv3.py.

    python benchmarks/parity_hpsv3.py case FOLDER
    uv venv old --python 3.11
    uv pip install --python old/bin/python torch torchvision transformers==4.45.2 accelerate omegaconf pillow requests
    uv pip install --python old/bin/python --no-deps hpsv3==1.0.0
    old/bin/python benchmarks/parity_hpsv3.py record FOLDER tests/parity/hpsv3.json

The first line writes what the test reads, with this project's packages; the last needs those of the code's time. The
package runs as it is, with its own configuration: it finds the case's small network under the name of Qwen2-VL-7B.
What it imports for training alone is left out. The model, once cast to bfloat16, computes in float32; the last digits
depend on how sums are split, by up to 2e-6.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recording import two_steps

BASE = "Qwen/Qwen2-VL-7B-Instruct"
"""Where the package's configuration has the network come from: a folder here, as the record is made."""
TRAINING = {
    "trl": {"RewardTrainer": type("RewardTrainer", (), {}), "get_kbit_device_map": None},
    "peft": {"PeftModel": None, "LoraConfig": None, "get_peft_model": None},
    "fire": {},
    "datasets": {},
    "pandas": {},
    "matplotlib": {},
    "matplotlib.pyplot": {},
    "matplotlib.patches": {},
    "torch.utils.tensorboard": {"SummaryWriter": None},
}
"""Modules that the package imports, and what it takes from them, none of which has a part in inference."""
TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TEXT += ("num_key_value_heads", "rms_norm_eps", "bos_token_id", "eos_token_id")
VISION = ("depth", "embed_dim", "hidden_size", "num_heads", "mlp_ratio")
IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
CHAT = (
    "{% for message in messages %}"
    "{% if loop.first %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What Qwen2-VL's template makes of a user's turn."""
NOTE = (
    "HPSv3RewardInferencer.reward, first output, on the CPU; the model cast to bfloat16 as its configuration does, "
    "then computed in float32"
)


def write(folder: Path) -> None:
    """The case's weights, tokenizer, sizes, pictures and prompts as files."""
    from safetensors.torch import save_file

    case = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "test_hpsv3.py"))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone() for key, value in case["published"]().items()}, folder / "HPSv3.safetensors")
    tokenizer = case["tokenizer"]()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    for i, image in enumerate(case["pictures"]()):
        image.save(folder / f"{i}.png")
    config = case["config"](len(tokenizer))
    text, vision = config.text_config, config.vision_config
    facts = {key: getattr(text, key) for key in TEXT} | {key: getattr(config, key) for key in IDS}
    facts |= {"rope_theta": text.rope_parameters["rope_theta"], "tie_word_embeddings": False}
    facts["rope_scaling"] = {"type": "mrope", "mrope_section": text.rope_parameters["mrope_section"]}
    facts["vision_config"] = {key: getattr(vision, key) for key in VISION}
    (folder / "case.json").write_text(json.dumps({"config": facts, "prompts": case["PROMPTS"]}))


def stand_in(folder: Path, facts: dict[str, Any], base: Path) -> None:
    """A folder as that of Qwen2-VL on the hub, with the case's tokenizer and a network of its size."""
    import transformers

    marks = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = transformers.Qwen2TokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **marks)
    images = transformers.Qwen2VLImageProcessor()
    transformers.Qwen2VLProcessor(images, tokenizer, chat_template=CHAT).save_pretrained(base)
    transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig(**facts)).save_pretrained(base)


def left_out() -> None:
    """Puts empty modules in the place of those for training."""
    for name, held in TRAINING.items():
        made = types.ModuleType(name)
        vars(made).update(held)
        sys.modules[name] = made
    vars(sys.modules["trl"])["get_quantization_config"] = lambda config: None  # as trl's, of weights in full


def record(folder: Path, out: Path) -> None:
    facts = json.loads((folder / "case.json").read_text())
    pictures = [str(folder / f"{i}.png") for i in range(len(facts["prompts"]))]
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        os.environ["HF_HUB_OFFLINE"] = "1"
        stand_in(folder, facts["config"], Path(BASE))
        left_out()  # now, as transformers looks what is installed while it is imported
        from hpsv3 import HPSv3RewardInferencer

        scorer = HPSv3RewardInferencer(checkpoint_path=str(folder / "HPSv3.safetensors"), device="cpu")
        scorer.model.float()
        scores = scorer.reward(pictures, facts["prompts"])[:, 0].tolist()
    versions = {name: version(name) for name in ("hpsv3", "transformers", "tokenizers", "torch", "pillow")}
    recorded = {"package": "hpsv3", "versions": versions, "note": NOTE, "scores": scores}
    out.write_text(json.dumps(recorded, indent=1))


if __name__ == "__main__":
    two_steps(__doc__, write, record)

"""A small Qwen2.5-VL in the files of its repository on the hub, for tests and for official code to load."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.vlm import SPECIAL, tiny_processor

CHAT = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What Qwen2.5-VL's template makes of turns."""
PENALTY = 1.05
"""Qwen2.5-VL's repetition penalty."""


def pictures() -> list[Image.Image]:
    """Stripes and noise in four shapes, none a multiple of 28, and one with alpha."""
    draw = np.random.RandomState(4)
    made = []
    for height, width in ((90, 150), (61, 203), (130, 45), (99, 99)):
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / 3.1) * 90 + 128, np.sin(y / 5.3 + x / 50) * 90 + 128, (x + 2 * y) % 256]
        made.append(np.clip(np.stack(waves, 2) + draw.randint(-30, 31, (height, width, 3)), 0, 255).astype(np.uint8))
    return [Image.fromarray(image) for image in made]


def tokenizer(text: str, added: Sequence[str]) -> Any:
    """Qwen2's tokenizer of bytes, the words of a text, Yes and No, and what is added as one token."""
    from transformers import Qwen2Tokenizer

    plain = tiny_processor([*re.findall(" ?[a-zA-Z]+", text), "Yes", "No"]).tokenizer.backend_tokenizer
    model = json.loads(plain.to_str())["model"]
    made = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL),
    )
    made.add_tokens(list(added))
    return made


def config(words: Any) -> dict[str, Any]:
    """config.json, as Qwen's own has it."""
    ids = words.convert_tokens_to_ids
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **{"vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6},
        **{"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "tie_word_embeddings": False},
        **{"hidden_act": "silu", "max_position_embeddings": 4096, "torch_dtype": "float32"},
        **{"eos_token_id": ids("<|im_end|>"), "bos_token_id": ids("<|endoftext|>")},
        **{"image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>")},
        **{"vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>")},
        "vision_config": {
            **{"model_type": "qwen2_5_vl", "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2},
            **{"out_hidden_size": 32, "patch_size": 14, "spatial_patch_size": 14, "spatial_merge_size": 2},
            **{"temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1], "in_chans": 3},
            **{"hidden_act": "silu", "tokens_per_second": 2},
        },
    }


def tensors(sizes: dict[str, Any], said: Sequence[int] = (), seed: int = 11) -> dict[str, Tensor]:
    """Random tensors under the keys of the hub's files, which bfloat16 holds too.

    With `said` only these ids are ever the likeliest.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with torch.device("meta"):
        network = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**sizes))
    draw = np.random.RandomState(seed)
    made = {}
    for key, value in sorted(network.state_dict().items()):
        key = key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        shape = value.shape
        scale = 0.1 if len(shape) == 1 else 1.5 / math.sqrt(math.prod(shape[1:]))
        offset = 1.0 if "norm" in key or key.endswith("ln_q.weight") else 0.0
        made[key] = torch.from_numpy(offset + scale * draw.standard_normal(shape)).bfloat16().float()
    if said:
        rows = torch.zeros(len(made["lm_head.weight"]), dtype=torch.bool)
        rows[list(said)] = True
        made["lm_head.weight"][~rows] = 0
        made["model.embed_tokens.weight"] /= 64  # so that what the words add does not drown the image
    return made


def write(folder: Path, text: str, *, added: Sequence[str] = (), writes: bool = False, seed: int = 11) -> None:
    """The files of a repository of Qwen2.5-VL.

    Args:
        text: whose words are tokens.
        added: further tokens.
        writes: whether what is added, and the end of a turn, are the only tokens that the model says.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer(text, added)
    words.save_pretrained(folder)
    marks = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}
    held = {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072, "add_prefix_space": False, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps({**held, "chat_template": CHAT}))
    sizes = config(words)
    said = words.convert_tokens_to_ids([*added, "<|im_end|>"]) if writes else ()
    save_file(tensors(sizes, said, seed), folder / "model.safetensors", {"format": "pt"})
    ends = {"bos_token_id": words.convert_tokens_to_ids("<|endoftext|>"), "do_sample": True, "temperature": 1e-6}
    ends |= {"eos_token_id": [sizes["eos_token_id"], sizes["bos_token_id"]], "pad_token_id": sizes["bos_token_id"]}
    images = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    images |= {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    images |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    files = {
        "config.json": sizes,
        "generation_config.json": {**ends, "repetition_penalty": PENALTY},
        "preprocessor_config.json": images,
        "chat_template.json": {"chat_template": CHAT},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))

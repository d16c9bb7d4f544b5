"""Record what the authors' code of SimpleAR does with the weights, prompts and tokens of tests/simplear_case.py.

git clone https://github.com/wdrink/SimpleAR
pip install torch "transformers==4.48.3" einops loguru
python benchmarks/parity_simplear.py SimpleAR tests/parity/simplear.json
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from recording import commit, one_step

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "simplear_case.py"))


def decoder(**changes: Any) -> Any:
    """Cosmos' decoder as it is exported, at its published size but for the changes."""
    networks = importlib.import_module("simpar.model.tokenizer.cosmos_tokenizer.networks")
    config = networks.TokenizerConfigs["DV"].value | {"spatial_compression": 16, "temporal_compression": 8} | changes
    return networks.discrete_video.CausalDiscreteVideoTokenizer(**config).decoder_jit()


def filled(network: Any, shapes: dict[str, tuple[int, ...]]) -> Any:
    drawn = {key: torch.from_numpy(value) for key, value in CASE["WEIGHTS"](shapes, "cosmos").items()}
    network.load_state_dict(drawn)
    return network.float().eval()


def policy() -> Any:
    """The authors' causal model."""
    from transformers import Qwen2Config

    module = importlib.import_module("simpar.model.language_model.simpar_qwen2")
    config = Qwen2Config(vocab_size=CASE["WORDS"] + CASE["CODES"], tie_word_embeddings=True, **CASE["QWEN"])
    config._attn_implementation = "sdpa"
    made = module.SimpARForCausalLM(config)
    drawn = {key: torch.from_numpy(value) for key, value in CASE["qwen"]().items()}
    made.load_state_dict(drawn | {"lm_head.weight": drawn["model.embed_tokens.weight"]})
    return made.eval()


def logprobs(model: Any, prompt: str, codes: list[int]) -> list[float]:
    """Of each code, by the steps of the authors' `generate_visual` with that code in place of a drawn one."""
    module = importlib.import_module("simpar.model.language_model.simpar_qwen2")
    guide = module.CFGLogits(CASE["GUIDANCE"], torch.tensor([CASE["prefix"](CASE["FAULTS"])]), model)
    ids, first, found = torch.tensor([CASE["prefix"](CASE["LIKENESS"] + prompt)]), CASE["WORDS"], []
    for code in codes:
        guided = guide(ids, model(ids).logits[:, -1])[0, first:].log_softmax(0)
        found.append(guided[code].item())
        ids = torch.cat([ids, torch.tensor([[first + code]])], 1)
    return found


@torch.no_grad()
def record(checkout: Path, out: Path) -> None:
    sys.path.insert(0, str(checkout))
    whole = {key: list(value.shape) for key, value in decoder().state_dict().items()}
    small = decoder(**CASE["COSMOS"])
    small[0].quantizer.dtype = torch.float32
    shapes = {key: tuple(value.shape) for key, value in small.state_dict().items()}
    tokens = torch.tensor(CASE["TOKENS"])
    pixels = filled(small, shapes)(tokens.view(-1, 1, CASE["SIDE"], CASE["SIDE"]))  # [B, 3, 1, H, W]
    model = policy()
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers")}
    versions["SimpleAR"] = commit(checkout)
    recorded = {
        "package": "SimpleAR",
        "versions": versions,
        "layout": whole,
        "shapes": shapes,
        "pixels": pixels.flatten(1)[:, ::5].tolist(),
        "logprobs": [
            logprobs(model, prompt, codes)
            for prompt, codes in zip(CASE["PROMPTS"], CASE["TOKENS"].tolist(), strict=True)
        ],
    }
    rounded = json.loads(json.dumps(recorded), parse_float=lambda number: round(float(number), 6))
    out.write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, checkout="wdrink/SimpleAR")

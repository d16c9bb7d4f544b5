"""Record what VAR's own code does with the weights and classes of tests/var_case.py.

git clone https://github.com/FoundationVision/VAR
pip install torch numpy huggingface_hub
python benchmarks/parity_var.py VAR tests/parity/var.json
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from recording import commit, one_step
from torch import Tensor

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "var_case.py"))
GPT, VQ, SIDES = CASE["GPT"], CASE["VQ"], CASE["SIDES"]


def layout(network: torch.nn.Module) -> dict[str, Any]:
    """A digest of the keys and shapes that a network takes to decode, and the size of all of them."""
    state = network.state_dict()
    kept = [key for key in state if not key.startswith(CASE["LEFT_OUT"]) and not key.endswith(CASE["COMPUTED"])]
    lines = sorted(f"{key} {tuple(state[key].shape)}" for key in kept)
    size = sum(value.numel() * value.element_size() for value in state.values())
    return {"digest": hashlib.sha256("\n".join(lines).encode()).hexdigest(), "megabytes": round(size / 1e6)}


def on_cpu(function: str) -> Any:
    """A context in which this function of torch makes tensors on the CPU."""
    return patch.object(torch, function, functools.partial(getattr(torch, function), device="cpu"))


def layouts(models: Any) -> dict[str, Any]:
    """Of every published network at full size."""
    found = {}
    for name, (depth, sides) in CASE["PUBLISHED"].items():
        with torch.device("meta"), on_cpu("linspace"), on_cpu("tensor"):  # numbers that the constructors ask for
            vq = models.VQVAE(vocab_size=4096, z_channels=32, ch=160, v_patch_nums=sides)
            options = {"embed_dim": 64 * depth, "num_heads": depth, "shared_aln": name == "var.d36"}
            found[name] = layout(models.VAR(vq, depth=depth, attn_l2_norm=True, patch_nums=sides, **options))
        found["tokenizer"] = layout(vq) if name == "var.d16" else found["tokenizer"]
    return found


def fill(network: torch.nn.Module, seed: str) -> None:
    """Puts the weights of the case into a network; buffers stay as they are."""
    shapes = {key: tuple(value.shape) for key, value in network.named_parameters()}
    drawn = {key: torch.from_numpy(value) for key, value in CASE["weights"](shapes, seed).items()}
    network.load_state_dict(network.state_dict() | drawn)
    network.eval()


def draws(var: Any, network: Any, recipe: dict[str, Any]) -> dict[str, Any]:
    """Tokens that the authors' sampler drew, the logarithms of their probabilities, and every 211th number of the
    pictures."""
    tokens, logprobs = [], []
    intact = var.sample_with_top_k_top_p_

    def recording(logits: Tensor, **options: Any) -> Tensor:
        index: Tensor = intact(logits, **options)  # which truncates the logits in place
        tokens.append(index[..., 0])
        logprobs.append(logits.log_softmax(-1).gather(-1, index)[..., 0])
        return index

    with patch.object(var, "sample_with_top_k_top_p_", recording):
        labels = torch.tensor(CASE["LABELS"])
        pixels = network.autoregressive_infer_cfg(len(labels), labels, g_seed=0, **recipe)
    return {
        "tokens": torch.cat(tokens, 1).tolist(),
        "logprobs": torch.cat(logprobs, 1).tolist(),
        "pixels": pixels.flatten(1)[:, ::211].tolist(),
    }


def teacher_forced(network: Any, vq: Any, labels: Tensor, tokens: Tensor) -> list[Any]:
    """[B, L, 4] every twelfth logit, as in the authors' training."""
    maps = list(tokens.split([side**2 for side in SIDES], 1))
    network.cond_drop_rate = 0.0
    logits: Tensor = network(labels, vq.quantize.idxBl_to_var_input(maps))
    return logits[..., ::12].tolist()


def of_a_network(models: Any, var: Any, shared: bool) -> dict[str, Any]:
    """What is recorded of one transformer."""
    vq = models.VQVAE(vocab_size=VQ["codes"], z_channels=VQ["latent"], ch=VQ["width"], v_patch_nums=SIDES)
    sizes = {"depth": GPT["num_hidden_layers"], "num_heads": GPT["num_attention_heads"]}
    sizes |= {"embed_dim": GPT["hidden_size"], "patch_nums": SIDES, "shared_aln": shared, "attn_l2_norm": True}
    network = models.VAR(vq, **sizes)
    fill(vq, "vq")
    fill(network, "shared" if shared else "own")
    labels = torch.tensor(CASE["LABELS"])
    drawn = [draws(var, network, recipe) for recipe in CASE["RECIPES"]]
    tokens = torch.tensor(drawn[0]["tokens"])
    return {
        "draws": drawn,
        "cond": teacher_forced(network, vq, labels, tokens),
        "uncond": teacher_forced(network, vq, torch.full_like(labels, network.num_classes), tokens),
    }


def record(checkout: Path, out: Path) -> None:
    sys.path.insert(0, str(checkout))
    models, var = importlib.import_module("models"), importlib.import_module("models.var")
    torch.set_grad_enabled(False)
    versions = {"torch": torch.__version__}
    versions["VAR"] = commit(checkout)
    recorded = {
        "package": "VAR",
        "versions": versions,
        "layouts": layouts(models),
        "own": of_a_network(models, var, shared=False),
        "shared": of_a_network(models, var, shared=True),
    }
    rounded = json.loads(json.dumps(recorded), parse_float=lambda number: round(float(number), 6))
    out.write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, checkout="FoundationVision/VAR")

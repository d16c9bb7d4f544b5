"""Record what Show-o's own code does with the weights, prompts and pictures of tests/showo_case.py.

git clone https://github.com/showlab/Show-o
pip install torch "transformers==4.41.2" "diffusers==0.30.1" "huggingface_hub<0.26" einops numpy
python benchmarks/parity_showo.py Show-o tests/parity/showo.json
"""

from __future__ import annotations

import hashlib
import importlib
import json
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from recording import commit, one_step
from torch import Tensor

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "showo_case.py"))
LENGTH, CODES = CASE["SIDE"] ** 2, 1 << CASE["BITS"]
MARKS = 10


def layout(network: torch.nn.Module) -> dict[str, Any]:
    """A digest of a network's keys and shapes, and its size."""
    state = network.state_dict()
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items() if not key.startswith("quantize."))
    size = sum(value.numel() * value.element_size() for value in state.values())
    return {"digest": hashlib.sha256("\n".join(lines).encode()).hexdigest(), "megabytes": round(size / 1e6)}


def layouts(phi: Any, magvit: Any) -> dict[str, Any]:
    """Of the published networks at full size."""
    from transformers import PhiConfig

    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32}
    with torch.device("meta"):
        network = phi.PhiForCausalLM(PhiConfig(vocab_size=50295 + MARKS + 8192 + 1, **sizes))
        return {"network": layout(torch.nn.ModuleDict({"showo": network})), "tokenizer": layout(magvit.MAGVITv2())}


def fill(network: torch.nn.Module, seed: str) -> None:
    """Puts the weights of the case into a network; buffers stay as they are."""
    shapes = {key: tuple(value.shape) for key, value in network.named_parameters()}
    drawn = {key: torch.from_numpy(value) for key, value in CASE["weights"](shapes, seed).items()}
    network.load_state_dict(network.state_dict() | drawn)
    network.eval()


def small_network(showo: Any, words: int) -> Any:
    """The authors' network around a small Phi."""
    from transformers import PhiConfig

    vocabulary = words + MARKS + CODES + 1
    with tempfile.TemporaryDirectory() as folder:
        PhiConfig(vocab_size=vocabulary, bos_token_id=None, eos_token_id=None, **CASE["PHI"]).save_pretrained(folder)
        network = showo.Showo(False, vocabulary, words, folder, codebook_size=CODES, num_vq_tokens=LENGTH)
    fill(network.showo, "phi")
    return network


def read(prompting: Any, network: Any, prompts: list[str], guidance: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ids of masked pictures of the prompts, of none, and the mask of all of them."""
    masked = torch.full([len(prompts), LENGTH], network.config.mask_token_id)
    ids, _ = prompting.universal((prompts, masked), "t2i_gen")
    none = prompting.universal(([""] * len(prompts), masked), "t2i_gen")[0] if guidance > 0 else None
    marks = {f"{name}_id": int(prompting.universal.sptids_dict[f"<|{name}|>"]) for name in ("pad", "soi", "eoi")}
    both = ids if none is None else torch.cat([ids, none])
    mask = prompting.module.create_attention_mask_predict_next(both, rm_pad_in_image=True, **marks)
    return ids, none, mask


def draws(showo: Any, network: Any, prompting: Any, words: int, guidance: float) -> dict[str, Any]:
    """Tokens that the authors' sampler came to, the step that each was kept in, and the logarithm of its probability
    there."""
    length = {"max_seq_length": 128}
    config = SimpleNamespace(
        model=SimpleNamespace(
            showo=SimpleNamespace(num_vq_tokens=LENGTH, num_new_special_tokens=MARKS, llm_vocab_size=words)
        ),
        dataset=SimpleNamespace(preprocessing=SimpleNamespace(**length)),
    )
    intact, unknown, steps = showo.mask_by_random_topk, [], []
    kept = torch.full([len(CASE["PROMPTS"]), LENGTH], -1)
    logprobs = torch.zeros(kept.shape)

    def recording(count: Tensor, probabilities: Tensor, *rest: Any, **options: Any) -> Tensor:
        masking: Tensor = intact(count, probabilities, *rest, **options)
        before = kept < 0
        now = before & (~masking | (len(steps) == CASE["DRAWS"] - 1))
        kept[now] = len(steps)
        logprobs[now] = probabilities[now].log()
        unknown.append(int(before[0].sum()))
        steps.append(now)
        return masking

    torch.manual_seed(0)
    ids, none, mask = read(prompting, network, list(CASE["PROMPTS"]), guidance)
    prompt_ids = [[i for i in row[: -LENGTH - 1].tolist() if i != words] for row in ids]
    with patch.object(showo, "mask_by_random_topk", recording):
        tokens = network.t2i_generate(
            input_ids=ids,
            uncond_input_ids=none,
            attention_mask=mask,
            guidance_scale=guidance,
            temperature=CASE["TEMPERATURE"],
            timesteps=CASE["DRAWS"],
            config=config,
        )
    return {
        "ids": prompt_ids,
        "tokens": tokens.tolist(),
        "kept": kept.tolist(),
        "logprobs": logprobs.tolist(),
    }


def of_the_tokenizer(magvit: Any, tokens: list[list[int]]) -> dict[str, Any]:
    """Codes of pictures, and every fifth number of the pictures of codes."""
    multiples, blocks = list(CASE["MULTIPLES"]), list(CASE["BLOCKS"])
    network = magvit.MAGVITv2()
    sizes = {"ch": CASE["VQ_WIDTH"], "z_channels": CASE["BITS"], "attn_resolutions": [5]}
    network.encoder = magvit.VQGANEncoder(ch_mult=multiples, num_res_blocks=blocks, **sizes)
    multiples, blocks = list(CASE["DECODER_MULTIPLES"]), list(CASE["DECODER_BLOCKS"])
    network.decoder = magvit.VQGANDecoder(ch_mult=multiples, num_res_blocks=blocks, **sizes)
    network.quantize = magvit.LFQuantizer(codebook_dim=CASE["BITS"])
    fill(network, "vq")
    return {
        "codes": network.get_code(torch.from_numpy(CASE["pixels"]())).tolist(),
        "pixels": network.decode_code(torch.tensor(tokens)).flatten(1)[:, ::5].tolist(),
    }


def record(checkout: Path, out: Path) -> None:
    sys.path.insert(0, str(checkout))
    showo, magvit, phi = (
        importlib.import_module(f"models.{name}") for name in ("modeling_showo", "modeling_magvitv2", "phi")
    )
    module = importlib.import_module("training.prompting_utils")
    torch.set_grad_enabled(False)
    tokenizer = CASE["tokenizer"]()
    words = len(tokenizer)
    prompting = SimpleNamespace(module=module, universal=module.UniversalPrompting(tokenizer, max_text_len=128))
    network = small_network(showo, words)
    drawn = [draws(showo, network, prompting, words, guidance) for guidance in CASE["GUIDANCE"]]
    names = ("torch", "transformers")
    versions = {name: importlib.import_module(name).__version__ for name in names}
    versions["Show-o"] = commit(checkout)
    recorded = {
        "package": "Show-o",
        "versions": versions,
        "layouts": layouts(phi, magvit),
        "draws": drawn,
        "vq": of_the_tokenizer(magvit, drawn[0]["tokens"]),
    }
    rounded = json.loads(json.dumps(recorded), parse_float=lambda number: round(float(number), 6))
    out.write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, checkout="showlab/Show-o")

"""Record what the authors' code of Anole does with the weights, prompts and tokens of tests/anole_case.py.

git clone https://github.com/GAIR-NLP/anole
pip install torch transformers tokenizers pyyaml pillow tqdm
python benchmarks/parity_anole.py anole tests/parity/anole.json

The three functions that their transformer has from xformers, which need a GPU, are written out here for one sequence.
"""

from __future__ import annotations

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
from torch import Tensor, nn

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "anole_case.py"))


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rope_padded(xq: Tensor, xk: Tensor, xv: Tensor, cache_k: Tensor, cache_v: Tensor, theta: float, **_: Any) -> Tensor:
    """Queries [1, n, heads, size] turned, each number against the next; keys, turned too, and values into the cache."""
    size = xq.shape[-1]
    rates = theta ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(xq.shape[1])[:, None, None] * rates  # [n, 1, size / 2]

    def turned(x: Tensor) -> Tensor:
        even, odd = x[..., ::2], x[..., 1::2]
        pairs = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
        return torch.stack(pairs, -1).flatten(-2)

    cache_k.copy_(turned(xk))
    cache_v.copy_(xv)
    return turned(xq)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Any) -> Tensor:
    """Causal, of [1, n, heads, copies, size]."""
    q, k, v = (x[0].permute(1, 2, 0, 3) for x in (query, key, value))
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).permute(2, 0, 1, 3)[None]


def stand_in() -> None:
    """A module xformers with what the authors import of it."""
    names = ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias")
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}
    ops, fmha = modules["xformers.ops"], modules["xformers.ops.fmha"]
    ops.RMSNorm, ops.fmha, ops.rope_padded = RMSNorm, fmha, rope_padded
    fmha.memory_efficient_attention_forward = attention
    modules["xformers.ops.fmha.attn_bias"].BlockDiagonalCausalWithOffsetPaddedKeysMask = object
    sys.modules.update(modules)


def logits(transformer: Any, ids: list[int]) -> Tensor:
    """[n, words] of one sequence, read at once."""
    module = importlib.import_module("chameleon.inference.transformer")
    cache = module.make_cache(transformer.args, len(ids), dtype=torch.float32)
    found: Tensor = transformer.forward_with_attn_bias(torch.tensor(ids), None, cache)
    return found


def network() -> Any:
    module = importlib.import_module("chameleon.inference.transformer")
    args = module.ModelArgs(
        dim=CASE["WIDTH"],
        n_layers=CASE["LAYERS"],
        n_heads=CASE["HEADS"],
        vocab_size=len(CASE["vocabulary"]()),
        multiple_of=8,
        qk_normalization=True,
    )
    made = module.Transformer(args).float()
    made.load_state_dict({key: torch.from_numpy(value) for key, value in CASE["transformer"]().items()})
    return made.eval()


def tokens_of(folder: Path) -> Any:
    """The authors' manager of tokens around the case's tokenizer and VQ."""
    chameleon = importlib.import_module("chameleon.inference.chameleon")
    vqgan = importlib.import_module("chameleon.inference.vqgan")
    path = folder / "text_tokenizer.json"
    path.write_text(CASE["tokenizer"]())
    made = chameleon.TokenManager.__new__(chameleon.TokenManager)
    made.tokenizer = chameleon.Tokenizer.from_file(str(path))
    made.vocab = chameleon.VocabInfo(json.loads(path.read_text())["model"]["vocab"])
    made.translation = chameleon.VocabTranslation(made.vocab)
    rest = {"double_z": False, "resolution": 8, "in_channels": 3, "out_ch": 3, "num_res_blocks": 2}
    sizes = {**CASE["VQ"], **rest, "attn_resolutions": []}
    vq = vqgan.VQModel(sizes, CASE["CODES"], CASE["VQ"]["z_channels"])
    vq.load_state_dict({key: torch.from_numpy(value) for key, value in CASE["vq"]().items()})
    kind = importlib.import_module("chameleon.inference.image_tokenizer").ImageTokenizer
    made.image_tokenizer = kind.__new__(kind)
    made.image_tokenizer._vq_model = vq.eval()
    return made


@torch.no_grad()
def record(checkout: Path, out: Path) -> None:
    sys.path.insert(0, str(checkout))
    stand_in()
    processors = importlib.import_module("chameleon.inference.logits_processor")
    with tempfile.TemporaryDirectory() as folder:
        manager = tokens_of(Path(folder))
    transformer = network()
    kind = importlib.import_module("chameleon.inference.chameleon").ImageDecoder
    decoder = kind.__new__(kind)
    decoder.vocab, decoder.batch_size = manager.vocab, 1
    guide = processors.InBatchInstructCFGLogitsProcessor(CASE["GUIDANCE"], 1.2)
    allow = processors.AllowOnlyTokensLogitsProcessor(manager.vocab.image_tokens)
    prefixes, found = [], []
    for prompt, codes in zip(CASE["PROMPTS"], CASE["TOKENS"].tolist(), strict=True):
        turn = [{"type": "text", "value": prompt}, {"type": "sentinel", "value": "<END-OF-TURN>"}]
        ids = [*manager.tokens_from_ui(turn), manager.vocab.begin_image]
        written = manager.translation.convert_img2bp2(torch.tensor(codes)).tolist()
        rows = decoder._split_inputs_for_cfg([ids])
        branches = [logits(transformer, [*row, *written])[len(row) - 1 : -1] for row in rows]
        mixed = allow(torch.zeros(1, 1), guide(None, torch.cat(branches)))[: len(codes)] / CASE["TEMPERATURE"]
        found.append(mixed.log_softmax(1).gather(1, torch.tensor(written)[:, None])[:, 0].tolist())
        prefixes.append(ids)
    tokens, vq = torch.tensor(CASE["TOKENS"]), manager.image_tokenizer._vq_model
    side, latent = CASE["SIDE"], CASE["VQ"]["z_channels"]
    pixels = vq.decode(vq.quantize.get_codebook_entry(tokens, (len(tokens), side, side, latent)))
    levels = [list(manager.image_tokenizer._pil_from_chw_tensor(picture).tobytes()) for picture in pixels]
    grey = vq.encode(torch.zeros(1, 3, 2 * side, 2 * side))[2][2]
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers")}
    versions["anole"] = commit(checkout)
    recorded = {"package": "anole", "versions": versions, "ids": prefixes, "logprobs": found}
    out.write_text(json.dumps(recorded | {"levels": levels, "grey": grey.flatten().tolist()}) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, checkout="GAIR-NLP/anole")

"""Record what LlamaGen's own code does with the weights, prompts and texts of tests/llamagen_case.py.

git clone https://github.com/FoundationVision/LlamaGen
pip install torch "transformers>=5" ftfy beautifulsoup4 numpy pillow
python benchmarks/parity_llamagen.py LlamaGen tests/parity/llamagen.json
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

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "llamagen_case.py"))
GPT, VQ = CASE["GPT"], CASE["VQ"]


def tensors(arrays: dict[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def layout(network: torch.nn.Module) -> str:
    """A digest of a network's keys and shapes."""
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in network.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def layouts(gpt: Any, vq: Any) -> dict[str, str]:
    """Of every published network at full size."""
    found = {}
    on_cpu = functools.partial(torch.linspace, device="cpu")  # numbers that the constructor asks for
    with torch.device("meta"), patch.object(torch, "linspace", on_cpu):
        for name, (kind, grid) in CASE["PUBLISHED"].items():
            condition = {"model_type": kind, "cls_token_num": 1 if kind == "c2i" else 120}
            found[name] = layout(gpt.GPT_models[name.split()[0]](block_size=grid * grid, **condition))
    found["VQ-16"] = layout(vq.VQ_models["VQ-16"]())
    return found


def text_encoder(t5: Any) -> Any:
    """The authors' embedder around a small T5."""
    import transformers

    tokenizer = transformers.T5Tokenizer(vocab=CASE["pieces"](), extra_ids=0)
    config = transformers.T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", **CASE["T5"])
    encoder = transformers.T5EncoderModel(config).eval()
    shapes = {key: tuple(value.shape) for key, value in encoder.state_dict().items() if "embed_tokens" not in key}
    drawn = {key: value.bfloat16().float() for key, value in tensors(CASE["weights"](shapes, "t5")).items()}
    encoder.load_state_dict(drawn | {"encoder.embed_tokens.weight": drawn["shared.weight"]})
    embedder = t5.T5Embedder.__new__(t5.T5Embedder)
    embedder.device, embedder.model_max_length, embedder.use_text_preprocessing = "cpu", GPT["caption_tokens"], True
    embedder.tokenizer, embedder.model = tokenizer, encoder
    return embedder


def padded_left(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features and mask as sample_t2i.py turns them."""
    rows = []
    for row, count in zip(embeds, mask.sum(1).tolist(), strict=True):
        rows.append(torch.cat([row[count:], row[:count]]))
    mask = mask.flip(1)
    return torch.stack(rows) * mask[:, :, None], mask


def draws(sampler: Any, network: Any, condition: Tensor, mask: Tensor | None, recipe: dict[str, Any]) -> dict[str, Any]:
    """Tokens that the authors' `generate` drew, and the logarithms of the probabilities that it drew them with."""
    intact, seen = sampler.sample, []

    def recording(logits: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        index, probabilities = intact(logits, **options)
        seen.append(probabilities.gather(1, index)[:, 0].log())
        return index, probabilities

    torch.manual_seed(0)
    sampler.sample = recording
    options = {key: recipe[key] for key in ("temperature", "top_k", "top_p")}
    length = GPT["grid"] ** 2
    tokens = sampler.generate(network, condition, length, emb_masks=mask, cfg_scale=recipe["guidance"], **options)
    sampler.sample = intact
    return {"tokens": tokens.tolist(), "logprobs": torch.stack(seen, 1).tolist()}


def teacher_forced(network: Any, condition: Tensor, mask: Tensor | None, tokens: Tensor) -> list[Any]:
    """[B, L, 4] every twelfth logit before each token, without a cache, masked as in the authors' training."""
    before, width = condition.shape[1] if condition.ndim == 3 else 1, tokens.shape[1]
    whole = before + width - 1
    seen = torch.ones(len(tokens), whole, whole).tril()
    if mask is not None:
        seen[:, :, :before] *= mask[:, None]
    seen = torch.maximum(seen, torch.eye(whole)).bool()[:, None]
    for layer in network.layers:
        layer.attention.kv_cache = None
    logits = network(tokens[:, :-1], condition, torch.arange(whole), mask=seen)[0]
    return logits[:, before - 1 :, ::12].tolist()


def of_a_gpt(gpt: Any, sampler: Any, kind: str, condition: Tensor, null: Any, mask: Tensor | None) -> dict[str, Any]:
    """What is recorded of one transformer."""
    network = gpt.Transformer(
        gpt.ModelArgs(
            dim=GPT["width"],
            n_layer=GPT["layers"],
            n_head=GPT["heads"],
            vocab_size=GPT["codes"],
            block_size=GPT["grid"] ** 2,
            caption_dim=CASE["CAPTION_WIDTH"],
            cls_token_num=1 if kind == "c2i" else GPT["caption_tokens"],
            model_type=kind,
        )
    )
    network.load_state_dict(tensors(CASE["gpt"](kind)))
    network.eval()
    drawn = [draws(sampler, network, condition, mask, recipe) for recipe in CASE["RECIPES"]]
    tokens = torch.tensor(drawn[0]["tokens"])
    return {
        "draws": drawn,
        "cond": teacher_forced(network, condition, mask, tokens),
        "uncond": teacher_forced(network, null(network), mask, tokens),
    }


def of_the_vq(vq: Any, tokens: list[list[int]]) -> dict[str, Any]:
    """Codes of pictures, and every fifth value of the pictures of codes."""
    multiples = list(VQ["multiples"])
    network = vq.VQModel(vq.ModelArgs(VQ["codes"], VQ["code_width"], z_channels=VQ["latent"]))
    sizes = {"ch": VQ["width"], "ch_mult": multiples, "z_channels": VQ["latent"]}
    network.encoder, network.decoder = vq.Encoder(**sizes), vq.Decoder(**sizes)
    kept = {key: tuple(value.shape) for key, value in network.state_dict().items() if key != "quantize.codebook_used"}
    network.load_state_dict(tensors(CASE["weights"](kept, "vq")) | {"quantize.codebook_used": torch.zeros(65536)})
    network.eval()
    grid = GPT["grid"]
    pixels = network.decode_code(torch.tensor(tokens), [len(tokens), VQ["code_width"], grid, grid])
    return {
        "codes": network.encode(torch.from_numpy(CASE["pixels"]()))[2][2].view(2, -1).tolist(),
        "pixels": pixels.flatten(1)[:, ::5].tolist(),
    }


def record(checkout: Path, out: Path) -> None:
    sys.path.insert(0, str(checkout))
    gpt = importlib.import_module("autoregressive.models.gpt")
    sampler = importlib.import_module("autoregressive.models.generate")
    vq = importlib.import_module("tokenizer.tokenizer_image.vq_model")
    t5 = importlib.import_module("language.t5")
    torch.set_grad_enabled(False)
    labels, embedder = torch.tensor(CASE["LABELS"]), text_encoder(t5)
    features, mask = padded_left(*embedder.get_text_embeddings(list(CASE["PROMPTS"])))
    classes = of_a_gpt(gpt, sampler, "c2i", labels, lambda _: torch.full_like(labels, CASE["CLASSES"]), None)
    texts = of_a_gpt(
        gpt, sampler, "t2i", features, lambda net: torch.zeros_like(features) + net.cls_embedding.uncond_embedding, mask
    )
    names = ("torch", "transformers", "ftfy", "bs4")
    versions = {name: importlib.import_module(name).__version__ for name in names}
    versions["LlamaGen"] = commit(checkout)
    recorded = {
        "package": "LlamaGen",
        "versions": versions,
        "layouts": layouts(gpt, vq),
        "cleaned": [embedder.text_preprocessing(text) for text in CASE["TEXTS"]],
        "c2i": classes,
        "t2i": texts,
        "vq": of_the_vq(vq, classes["draws"][0]["tokens"]),
    }
    rounded = json.loads(json.dumps(recorded), parse_float=lambda number: round(float(number), 6))
    out.write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, checkout="FoundationVision/LlamaGen")

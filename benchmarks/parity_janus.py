"""Record what the authors' code of Janus says of the weights, prompts and tokens of tests/janus_case.py.

git clone https://github.com/deepseek-ai/Janus
pip install torch "transformers==4.48.3" timm einops attrdict
python benchmarks/parity_janus.py Janus tests/parity/janus.json
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

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "janus_case.py"))
ROLES = {"janus.pro_1b": ("<|User|>", "<|Assistant|>"), "janus.v1_3b": ("User", "Assistant")}
"""As the two model cards name them."""


def filled(module: Any, prefix: str) -> Any:
    """The module with the weights of the case; `prefix` is its name in the authors' model."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.tensor(CASE["weight"](prefix + name, *value.shape)))
    return module.eval()


def model() -> dict[str, Any]:
    """The parts of the authors' model that draw, by their names in it."""
    from attrdict import AttrDict  # type: ignore[import-not-found]
    from transformers import LlamaConfig, LlamaForCausalLM

    parts = importlib.import_module("janus.models.modeling_vlm")
    vq = importlib.import_module("janus.models.vq_model")
    width, codes = CASE["WIDTH"], CASE["CODES"]
    llama = LlamaConfig(
        vocab_size=CASE["WORDS"],
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=CASE["LAYERS"],
        num_attention_heads=CASE["HEADS"],
    )
    aligner = AttrDict(projector_type="mlp_gelu", input_dim=8, n_embed=width, depth=2)
    head = AttrDict(n_embed=width, image_token_embed=width, image_token_size=codes)
    sizes = {"codebook_size": codes, "encoder_ch_mult": [1, 1], "decoder_ch_mult": [1, 1], "z_channels": CASE["LATENT"]}
    made = {
        "language_model": LlamaForCausalLM(llama),
        "gen_embed": torch.nn.Embedding(codes, 8),
        "gen_aligner": parts.MlpProjector(aligner),
        "gen_head": parts.vision_head(head),
        "gen_vision_model": vq.VQModel(vq.ModelArgs(**sizes)),
    }
    return {name: filled(module, f"{name}.") for name, module in made.items()}


@torch.no_grad()
def logprobs(parts: dict[str, Any], ids: list[int], tokens: torch.Tensor) -> list[float]:
    """Of each token, by the steps of the authors' `generate` with that token in place of a drawn one."""
    rows = torch.tensor([ids, ids])
    rows[1, 1:-1] = CASE["tokenizer"]().token_to_id(CASE["PAD"])
    embeds, cache, found = parts["language_model"].get_input_embeddings()(rows), None, []
    for token in tokens:
        output = parts["language_model"].model(inputs_embeds=embeds, use_cache=True, past_key_values=cache)
        cache = output.past_key_values
        cond, uncond = parts["gen_head"](output.last_hidden_state[:, -1])
        found.append(torch.log_softmax(uncond + CASE["GUIDANCE"] * (cond - uncond), -1)[token].item())
        embeds = parts["gen_aligner"](parts["gen_embed"](token.repeat(2)))[:, None]
    return found


def record(checkout: Path, out: Path) -> None:
    sys.path.insert(0, str(checkout))
    talk = importlib.import_module("janus.models.processing_vlm").VLChatProcessor

    def text(prompt: str, roles: tuple[str, str]) -> str:
        turns = [{"role": role, "content": content} for role, content in zip(roles, (prompt, ""), strict=True)]
        chat: str = talk.apply_sft_template_for_multi_turn_prompts(None, turns, "deepseek", "")
        return chat + CASE["BOI"]

    parts, tokens = model(), torch.tensor(CASE["TOKENS"])
    texts = {name: [text(prompt, roles) for prompt in CASE["PROMPTS"]] for name, roles in ROLES.items()}
    encode = CASE["tokenizer"]().encode
    with torch.no_grad():
        pixels = parts["gen_vision_model"].decode_code(tokens, shape=[len(tokens), 8, CASE["SIDE"], CASE["SIDE"]])
        grey = parts["gen_vision_model"].encode(torch.zeros(1, 3, *[2 * CASE["SIDE"]] * 2))[2][2]
    levels = ((pixels.numpy().transpose(0, 2, 3, 1) + 1) / 2 * 255).clip(0, 255).astype("uint8")
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers")}
    versions["Janus"] = commit(checkout)
    recorded = {
        "package": "janus of deepseek-ai/Janus",
        "versions": versions,
        "texts": texts,
        "logprobs": {
            name: [logprobs(parts, encode(line).ids, row) for line, row in zip(lines, tokens, strict=True)]
            for name, lines in texts.items()
        },
        "levels": levels.reshape(len(levels), -1).tolist(),
        "grey": grey.flatten().tolist(),
    }
    out.write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, checkout="deepseek-ai/Janus")

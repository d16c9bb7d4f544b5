"""Record what the authors' code of Emu3 does with the weights, prompts and tokens of tests/emu3_case.py.

git clone https://github.com/baaivision/Emu3
pip install torch "transformers==4.48.3"
python benchmarks/parity_emu3.py Emu3 tests/parity/emu3.json
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from recording import commit, one_step

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "emu3_case.py"))


class Words:
    """What the authors' processor asks of its tokenizer."""

    bos_token, pad_token, _, boi_token, img_token, eol_token = CASE["CONTROL"]
    eof_token, eoi_token, eos_token = CASE["CLOSING"]

    def __call__(self, prompts: list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": [CASE["ids"](prompt) for prompt in prompts]}

    def encode(self, tokens: list[str]) -> list[int]:
        return [CASE["ids"](token)[0] for token in tokens]


def filled(network: Any) -> Any:
    state = network.state_dict()
    floats = {key: tuple(value.shape) for key, value in state.items() if value.is_floating_point()}
    drawn = {key: torch.from_numpy(value) for key, value in CASE["WEIGHTS"](floats, "emu3").items()}
    positive = {key: value.abs() + 0.5 for key, value in drawn.items() if key.endswith("running_var")}
    network.load_state_dict(state | drawn | positive)
    return network.eval()


def processor() -> Any:
    """The authors' processor around the case's tokenizer, of codes of 2 by 2 pixels."""
    kind = importlib.import_module("emu3.mllm.processing_emu3").Emu3Processor
    made = kind.__new__(kind)
    made.tokenizer, made.prefix_template = Words(), "{H}*{W}"
    made.visual_template = ("<|visual token {token_id:0>6d}|>", "")
    made.vision_tokenizer = SimpleNamespace(spatial_scale_factor=2, config=SimpleNamespace(**CASE["VQ"]))
    made.const_helper = made.build_const_helper()
    return made


def logprobs(model: Any, talk: Any, prompt: str, codes: torch.Tensor) -> tuple[list[int], list[float]]:
    """Ids of the prompt, and the log-probability of every token of the image, ends of lines among them."""
    from transformers.generation import PrefixConstrainedLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor

    side = CASE["SIDE"]
    size: dict[str, Any] = {"mode": "G", "ratio": "1:1", "image_area": (2 * side) ** 2}
    asked, null = (talk(text=[text], **size) for text in (prompt + CASE["QUALITY"], CASE["FAULTS"]))
    height, width = (torch.tensor([edge]) for edge in asked["image_size"][0])
    guide = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        CASE["GUIDANCE"], model, unconditional_ids=torch.tensor(null["input_ids"])
    )
    allow = PrefixConstrainedLogitsProcessor(talk.build_prefix_constrained_fn(height, width), num_beams=1)
    ends = torch.full([side, 1], CASE["ids"](Words.eol_token)[0])
    first = CASE["ids"]("<|visual token 000000|>")[0]
    ids, found = torch.tensor(asked["input_ids"]), []
    for token in torch.cat([codes.view(side, side) + first, ends], 1).flatten():
        scores = allow(ids, guide(ids, model(ids).logits[:, -1]))
        found.append(scores.log_softmax(1)[0, token].item())
        ids = torch.cat([ids, token.view(1, 1)], 1)
    return asked["input_ids"][0], found


@torch.no_grad()
def record(checkout: Path, out: Path) -> None:
    sys.path.insert(0, str(checkout))
    config = importlib.import_module("emu3.mllm.configuration_emu3").Emu3Config
    causal = importlib.import_module("emu3.mllm.modeling_emu3").Emu3ForCausalLM
    special = {"pad_token_id": 257, "bos_token_id": 256, "eos_token_id": 264}
    model = filled(causal(config(vocab_size=CASE["WORDS"], **CASE["TEXT"], **special)))
    vq_config = importlib.import_module("emu3.tokenizer.configuration_emu3visionvq").Emu3VisionVQConfig
    kind = importlib.import_module("emu3.tokenizer.modeling_emu3visionvq").Emu3VisionVQModel
    vq = filled(kind(vq_config(ch=CASE["CHANNELS"], ch_mult=list(CASE["MULTIPLES"]), **CASE["VQ"])))
    tokens, side = torch.tensor(CASE["TOKENS"]), CASE["SIDE"]
    rows = [logprobs(model, processor(), prompt, row) for prompt, row in zip(CASE["PROMPTS"], tokens, strict=True)]
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers")}
    versions["Emu3"] = commit(checkout)
    recorded = {
        "package": "Emu3",
        "versions": versions,
        "ids": [ids for ids, _ in rows],
        "logprobs": [found for _, found in rows],
        "keys": {key: list(value.shape) for key, value in vq.state_dict().items()},
        "pixels": vq.decode(tokens.view(-1, side, side)).flatten(1).tolist(),
        "grey": vq.encode(torch.zeros(1, 3, 2 * side, 2 * side)).flatten().tolist(),
    }
    rounded = json.loads(json.dumps(recorded), parse_float=lambda number: round(float(number), 6))
    out.write_text(json.dumps(rounded) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, checkout="baaivision/Emu3")

"""Record what UnifiedReward's own scripts ask, write and read of the case of tests/test_unified_reward.py.

    python benchmarks/parity_unified_reward.py case FOLDER
    git clone https://github.com/CodeGoat24/UnifiedReward
    uv venv old --python 3.11
    uv pip install --python old/bin/python torch torchvision transformers==4.57.6 accelerate qwen-vl-utils requests tqdm
    old/bin/python benchmarks/parity_unified_reward.py record FOLDER UnifiedReward tests/parity/unified_reward.json

The first line writes what the test reads, with this project's packages. The scripts run as they are, but for the prompt
and the picture that they have a user fill in; they find the case's small network under the name of the published one,
and it computes on the CPU. Of version 2.0, whose script asks a server, the request is kept and answered. What is read
out of an answer is read by the scorer that they have for training, of which a server's answers are made up here.
"""

from __future__ import annotations

import ast
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
from unittest.mock import patch

from recording import commit, two_steps

QWEN = "inference_qwen/image_generation/qwen_point_score_image_generation.py"
SERVED = "inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py"
SERVED_PAIRS = "inference_qwen/UnifiedReward-2.0-inference/pair_score_image_generation.py"
PAIRS = {
    "rank": "inference_qwen/image_generation/qwen_pair_rank_image_generation.py",
    "think": "UnifiedReward-Think/inference_qwen/image_generation/qwen_infer_cot_image_generation.py",
}
LINES = 32
"""Of what is written, which would be 512."""
NOTE = (
    "`texts` and the first 32 lines `written` of qwen_point_score_image_generation.py, `written_plain` with its "
    "generation_config.json's repetition penalty left out; `axes` are the texts that "
    "point_score_ACS_image_generation.py sends behind the picture, `pairs` what three scripts say of two, and `parsed` "
    "5 times what sglang_inference.py reads out of `answers`"
)


def write(folder: Path) -> None:
    """The case's network, pictures and prompts as files."""
    case = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "test_unified_reward.py"))
    case["write"](folder / "CodeGoat24" / "UnifiedReward-qwen-7b")
    for i, image in enumerate(case["QWEN"]["pictures"]()):
        image.save(folder / f"{i}.png")
    (folder / "case.json").write_text(json.dumps({"prompts": case["ASKED"], "answers": case["ANSWERS"]}))


def run(script: Path, filled: dict[str, str]) -> dict[str, Any]:
    """The names that a script has defined at its end, those filled in that it leaves to a user."""
    tree, filled = ast.parse(script.read_text()), dict(filled)
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in filled:
                node.value = ast.Constant(filled.pop(name))
    assert not filled
    held: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(ast.fix_missing_locations(tree), str(script), "exec"), held)
    return held


def pointwise(folder: Path, checkout: Path, prompts: list[str]) -> dict[str, list[str]]:
    """What the model is given and what it writes, with and without the penalty of its checkpoint."""
    import torch
    import transformers

    kind = transformers.Qwen2_5_VLForConditionalGeneration
    load, found = kind.from_pretrained, {"texts": [], "written": [], "written_plain": []}
    for key in ("written", "written_plain"):

        def on_cpu(path: str, torch_dtype: str, device_map: Any, key: str = key) -> Any:
            network = load(path, torch_dtype=torch_dtype)
            assert network.dtype == torch.float32
            if key == "written_plain":
                network.generation_config.repetition_penalty = 1.0
            return network

        kind.from_pretrained = on_cpu
        for i, prompt in enumerate(prompts):
            held = run(checkout / QWEN, {"prompt": prompt, "image_path": str(folder / f"{i}.png")})
            found[key].append("".join(held["output_text"].splitlines(keepends=True)[:LINES]))
            if key == "written":
                found["texts"].append(held["text"])
    return found


def pairs(folder: Path, checkout: Path, prompt: str) -> dict[str, str]:
    """What the model is given about two pictures; to be called after `pointwise`, for its network."""
    shown = {f"image_path_{i + 1}": str(folder / f"{i}.png") for i in range(2)}
    return {name: run(checkout / script, {"prompt": prompt, **shown})["text"] for name, script in PAIRS.items()}


def sent(checkout: Path, script: str, filled: dict[str, str]) -> str:
    """The text that a server gets behind the pictures, in one turn of the user."""
    import requests

    found: list[str] = []

    def post(session: Any, url: str, json: Any, timeout: float) -> Any:
        (turn,) = json["messages"]
        *pictures, text = turn["content"]
        kinds = [part["type"] for part in turn["content"]]
        assert (turn["role"], kinds) == ("user", ["image_url"] * len(pictures) + ["text"])
        assert len(pictures) == len(filled) - 1
        found.append(text["text"])
        answer = {"choices": [{"message": {"content": "Alignment Score (1-5): 3"}}]}
        return SimpleNamespace(status_code=200, raise_for_status=lambda: None, json=lambda: answer)

    sys.path.insert(0, str(checkout))
    with patch.object(requests.Session, "post", post):
        run(checkout / script, filled)
    (text,) = found
    return text


def parsed(checkout: Path, answers: list[str]) -> list[float]:
    """What is read out of answers, of which the code makes fifths."""
    import torch

    left = iter(answers)

    async def create(model: str, messages: Any, temperature: float) -> Any:
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=next(left)))])

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    openai = types.ModuleType("openai")
    vars(openai)["AsyncOpenAI"] = lambda base_url, api_key: client
    sys.modules["openai"] = openai
    sys.path.insert(0, str(checkout / "sglang_llava"))
    score = importlib.import_module("sglang_inference").unifiedreward_score_sglang("cpu")
    values = score(torch.zeros(len(answers), 3, 8, 8), ["a cat"] * len(answers), {})
    return [5 * value for value in values]


def record(folder: Path, checkout: Path, out: Path) -> None:
    facts = json.loads((folder / "case.json").read_text())
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch), contextlib.redirect_stdout(sys.stderr):
        Path("CodeGoat24").mkdir()  # where the scripts look for their networks
        for name in ("UnifiedReward-qwen-7b", "UnifiedReward-Think-qwen-7b"):
            Path("CodeGoat24", name).symlink_to(folder / "CodeGoat24" / "UnifiedReward-qwen-7b")
        found: dict[str, Any] = pointwise(folder, checkout, facts["prompts"])
        pictures = [str(folder / f"{i}.png") for i in range(len(facts["prompts"]))]
        found["axes"] = [
            sent(checkout, SERVED, {"prompt": prompt, "image_path": picture})
            for prompt, picture in zip(facts["prompts"], pictures, strict=True)
        ]
        asked, (first, second) = facts["prompts"][1], pictures[:2]
        found["pairs"] = pairs(folder, checkout, asked)
        shown = {"prompt": asked, "image_path1": first, "image_path2": second}
        found["pairs"]["axes"] = sent(checkout, SERVED_PAIRS, shown)
        found |= {"answers": facts["answers"], "parsed": parsed(checkout, facts["answers"])}
    names = ("transformers", "tokenizers", "torch", "pillow", "qwen-vl-utils")
    versions = {name: version(name) for name in names}
    versions["UnifiedReward"] = commit(checkout)
    recorded = {"package": "UnifiedReward", "versions": versions, "note": NOTE, **found}
    out.write_text(json.dumps(recorded, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    two_steps(__doc__, write, record, checkout="CodeGoat24/UnifiedReward")

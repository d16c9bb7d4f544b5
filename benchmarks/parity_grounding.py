"""Record what T2I-R1's detector reward says of the boxes, prompts and pictures of tests/grounding_case.py.

    git clone https://github.com/CaraJ7/T2I-R1
    pip install torch torchvision transformers numpy pillow requests
    python benchmarks/parity_grounding.py T2I-R1 tests/parity/grounding_dino.json

The reward and its transform run as they are. In the place of its network stands one that answers with the logits and
boxes of the case, and reads a vocabulary in which every word is one token.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from recording import commit, one_step

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "grounding_case.py"))
HOW = (
    "GDino of T2I-R1 with the logits and boxes of tests/grounding_case.py in the place of its network's, and its "
    "transform on the pictures there"
)


class Given(torch.nn.Module):
    """A network that answers with what it is told to; its one weight says where it is."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.tokenizer, self.case = tokenizer, None

    def forward(self, image: torch.Tensor, captions: list[str]) -> dict[str, torch.Tensor]:
        return {
            "pred_logits": torch.tensor(self.case.logits)[None],
            "pred_boxes": torch.tensor(self.case.boxes)[None],
        }


def official(checkout: Path, folder: Path) -> Any:
    """T2I-R1's reward around such a network."""
    import transformers

    utils = checkout / "src" / "t2i-r1" / "src" / "utils"
    sys.path[:0] = [str(utils), str(utils / "GroundingDINO")]
    words = [word.lower() for noun in CASE["NOUNS"] for word in noun.split()]
    pieces = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words])
    (folder / "vocab.txt").write_text("\n".join(pieces))
    network = Given(transformers.BertTokenizerFast(str(folder / "vocab.txt")))
    models: Any = types.ModuleType("groundingdino.models")  # with an extension in CUDA
    models.build_model = lambda options: network
    config: Any = types.ModuleType("groundingdino.util.slconfig")  # with packages of its own
    config.SLConfig = SimpleNamespace(fromfile=lambda path: SimpleNamespace())
    sys.modules |= {"groundingdino.models": models, "groundingdino.util.slconfig": config}
    torch.save({"model": {}}, folder / "weights.pth")
    paths = SimpleNamespace(gdino_ckpt_path=folder / "weights.pth", gdino_config_path=None)
    reward = importlib.import_module("reward_gdino").GDino(paths)
    reward.load_to_device("cpu")
    return reward


def score(reward: Any, case: Any) -> float:
    """Of any picture, as where boxes lie is told in shares of it."""
    reward.model.case = case
    text, spans = reward.make_prompt(case.record["nouns"])
    facts = {key: [case.record.get(key)] for key in ("nouns", "task_type", "numeracy_info", "spatial_info")}
    asked = {"det_prompt": [{"text_prompt": text, "token_spans": spans}], **facts}
    (found,) = reward([case.record["prompt"]], [CASE["pictures"]()[2]], **asked)
    return round(float(found), 6)


def record(checkout: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reward = official(checkout, Path(folder))
    seen = [reward.transform(image, None)[0] for image in CASE["pictures"]()]
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "torchvision", "PIL")}
    versions["T2I-R1"] = commit(checkout)
    recorded = {
        "package": "reward_gdino of T2I-R1",
        "versions": versions,
        "how": HOW,
        "scores": [score(reward, case) for case in CASE["cases"]()],
        "sizes": [[pixels.shape[2], pixels.shape[1]] for pixels in seen],
        "samples": [
            [round(value, 6) for value in pixels.flatten()[:: pixels.numel() // 7][:7].tolist()] for pixels in seen
        ],
    }
    out.write_text(json.dumps(recorded))


if __name__ == "__main__":
    one_step(__doc__, record, checkout="CaraJ7/T2I-R1")

"""Record what Q-Align's scorers make of the logits of tests/qalign_case.py, and what they ask.

    git clone https://github.com/Q-Future/Q-Align
    pip install torch pillow numpy transformers
    python benchmarks/parity_qalign.py Q-Align tests/parity/qalign.json

q_align/evaluate/scorer.py runs as it is. In the place of mPLUG-Owl2, which transformers does not hold, stands one that
gives the case's logits at its last position, and in that of LLaMA's tokenizer one that knows the words of the question.
The weights of the levels, exact in half precision, are made float32 for the logits to stay so.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import types
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from recording import commit, one_step
from torch import Tensor

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "qalign_case.py"))
SCORERS = {"quality": "QAlignScorer", "aesthetics": "QAlignAestheticScorer"}
NOTE = "forward of both scorers, 0 to 1, on the CPU in float32; the network's logits are those of tests/qalign_case.py"


def tokenizer() -> Any:
    """Words as ids, `<s>` before them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*CASE["LEVELS"], *CASE["OTHERS"]]
    ids = {word: i for i, word in enumerate(["<unk>", "<s>", *words])}
    made = Tokenizer(models.WordLevel(ids, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")


class Network:
    """What gives the case's logits of as many rows as it is asked for; other positions have noise."""

    device = torch.device("cpu")

    def __init__(self, words: Any) -> None:
        self.columns = words.convert_tokens_to_ids([*CASE["LEVELS"], *CASE["OTHERS"]])
        self.words = len(words)

    def __call__(self, ids: Tensor, images: Tensor) -> dict[str, Tensor]:
        assert len(ids) == len(images)
        logits = torch.randn(*ids.shape, self.words, generator=torch.Generator().manual_seed(0))
        logits[:, -1] = -30.0
        logits[:, -1, self.columns] = torch.from_numpy(CASE["logits"]())
        return {"logits": logits}


def scorers(checkout: Path) -> tuple[Any, list[str]]:
    """The checkout's module of scorers, and a list that will hold what each of them asks."""
    for name in ("q_align", "q_align.model", "q_align.evaluate"):  # their own __init__ import mPLUG-Owl2
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    sys.modules["icecream"] = types.ModuleType("icecream")
    vars(sys.modules["icecream"])["ic"] = print
    words = tokenizer()
    squares = SimpleNamespace(
        image_mean=[0.5] * 3,
        preprocess=lambda images, return_tensors: {"pixel_values": torch.zeros(len(images), 3, 2, 2)},
    )
    builder = types.ModuleType("q_align.model.builder")
    vars(builder)["load_pretrained_model"] = lambda *given, **named: (words, Network(words), squares, 2048)
    sys.modules["q_align.model.builder"] = builder
    module = importlib.import_module("q_align.evaluate.scorer")
    asked: list[str] = []
    cut: Any = vars(module)["tokenizer_image_token"]

    def heard(prompt: str, *given: Any, **named: Any) -> Any:
        asked.append(prompt)
        return cut(prompt, *given, **named)

    vars(module)["tokenizer_image_token"] = heard
    return module, asked


def record(checkout: Path, out: Path) -> None:
    module, asked = scorers(checkout)
    images = [Image.new("RGB", (4, 3))] * len(CASE["logits"]())
    scores = {}
    for name, kind in SCORERS.items():
        scorer = getattr(module, kind)(device="cpu")
        scorer.weight_tensor = scorer.weight_tensor.float()
        scores[name] = scorer(images).tolist()
    recorded = {
        "package": "Q-Align",
        "versions": {"Q-Align": commit(checkout), "torch": version("torch")},
        "note": NOTE,
        "asked": dict(zip(SCORERS, asked, strict=True)),
        "scores": scores,
    }
    out.write_text(json.dumps(recorded, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    one_step(__doc__, record, checkout="Q-Future/Q-Align")

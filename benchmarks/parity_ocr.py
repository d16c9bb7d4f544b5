"""Record the OCR rewards that Flow-GRPO and UniRL give for what was read in tests/ocr_case.py.

    git clone https://github.com/yifan123/flow_grpo
    git clone https://github.com/Tencent-Hunyuan/UniRL
    pip install torch numpy pillow python-Levenshtein
    python benchmarks/parity_ocr.py flow_grpo UniRL tests/parity/ocr.json

Their code runs as it is. In place of PaddleOCR stands one that has read what the case says.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from recording import commit, one_step

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "ocr_case.py"))


def flow_grpo(checkout: Path) -> list[float]:
    paddle: Any = types.ModuleType("paddleocr")
    paddle.PaddleOCR = lambda **options: types.SimpleNamespace(ocr=None)
    sys.modules["paddleocr"] = paddle
    scorer = runpy.run_path(str(checkout / "flow_grpo" / "ocr.py"))["OcrScorer"]()
    image, found = Image.new("RGB", (8, 8)), []
    for read, prompt in CASE["CASES"]:
        lines = [[None, (read, 1.0)]] if read else None
        scorer.ocr.ocr = lambda pixels, cls, lines=lines: [lines]
        found += [float(score) for score in scorer([image], [prompt])]
    return found


def unirl(checkout: Path) -> list[float]:
    sys.path.insert(0, str(checkout / "unirl-reward-service"))
    common = importlib.import_module("reward_service.scorers.ocr_common")
    asked = [*CASE["CASES"], *CASE["SINGLE"]]
    return [common.compute_ocr_reward(read, common.extract_target_text(prompt)) for read, prompt in asked]


def record(first: Path, second: Path, out: Path) -> None:
    recorded = {
        "package": "ocr of Flow-GRPO and UniRL",
        "versions": {
            "Flow-GRPO": commit(first),
            "UniRL": commit(second),
            "Levenshtein": version("Levenshtein"),
        },
        "flow_grpo": flow_grpo(first),
        "unirl": unirl(second),
    }
    out.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, flow_grpo="yifan123/flow_grpo", unirl="Tencent-Hunyuan/UniRL")

"""Record the OCR rewards that Flow-GRPO and UniRL give for what was read in tests/ocr_case.py.

    git clone https://github.com/yifan123/flow_grpo
    git clone https://github.com/Tencent-Hunyuan/UniRL
    pip install torch numpy pillow python-Levenshtein
    python benchmarks/parity_ocr.py flow_grpo UniRL tests/parity/ocr.json

Their code runs as it is. In place of PaddleOCR stands one that has read what the case says.
"""

from __future__ import annotations

import argparse
import importlib
import json
import runpy
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from recording import commit

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flow_grpo", type=Path, help="a clone of yifan123/flow_grpo")
    parser.add_argument("unirl", type=Path, help="a clone of Tencent-Hunyuan/UniRL")
    parser.add_argument("out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    recorded = {
        "package": "ocr of Flow-GRPO and UniRL",
        "versions": {
            "Flow-GRPO": commit(given.flow_grpo),
            "UniRL": commit(given.unirl),
            "Levenshtein": version("Levenshtein"),
        },
        "flow_grpo": flow_grpo(given.flow_grpo),
        "unirl": unirl(given.unirl),
    }
    given.out.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Record the scores that DPG-Bench's own code gives for every pattern of answers to tests/parity/dpg_bench.csv.

    git clone https://github.com/TencentQQGYLab/ELLA
    pip install torch numpy pandas pillow accelerate tqdm
    python benchmarks/parity_dpg.py ELLA tests/parity/dpg.json

The code runs as it is. In the place of mPLUG stands one that answers as the pattern says. The first row of a file is
passed over by the code, so that one is put before the rows that count.
"""

from __future__ import annotations

import itertools
import json
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from PIL import Image
from recording import commit, one_step

FILE = Path(__file__).parents[1] / "tests" / "parity" / "dpg_bench.csv"
HOW = (
    "compute_dpg_one_sample on tests/parity/dpg_bench.csv behind a row that it passes over, for every pattern of "
    "answers, those to the last question changing fastest"
)


def scores(program: dict[str, Any], folder: Path, item: str) -> list[float]:
    """Of one prompt, for all patterns of no and yes to its questions."""
    head, first, *rows = FILE.read_text().splitlines()
    (folder / "mine.csv").write_text("\n".join([head, first, first, *rows]))
    with patch.object(sys, "argv", ["dpg", "--csv", str(folder / "mine.csv"), "--res-path", str(folder / "out.txt")]):
        args = program["parse_args"]()
    questions = program["prepare_dpg_data"](args)
    asked = list(questions[item]["qid2question"].values())
    image = folder / f"{item}.png"
    Image.new("RGB", (8, 8)).save(image)
    found = []
    for pattern in itertools.product(("no", "yes"), repeat=len(asked)):
        answers = dict(zip(asked, pattern, strict=True))
        judge = SimpleNamespace(vqa=lambda image, question, answers=answers: answers[question])
        score, *_ = program["compute_dpg_one_sample"](args, questions, str(image), judge, 8)
        found.append(round(score, 6))
    return found


def record(checkout: Path, out: Path) -> None:
    program = runpy.run_path(str(checkout / "dpg_bench" / "compute_dpg_bench.py"))
    recorded: dict[str, Any] = {
        "package": "compute_dpg_bench of ELLA",
        "versions": {"ELLA": commit(checkout)},
        "how": HOW,
    }
    with tempfile.TemporaryDirectory() as folder:
        recorded |= {item: scores(program, Path(folder), item) for item in ("first", "second")}
    out.write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, checkout="TencentQQGYLab/ELLA")

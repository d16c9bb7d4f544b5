"""Record what T2I-CompBench++'s own code says of the prompts and things of tests/compbench_case.py.

    git clone https://github.com/Karine-Huang/T2I-CompBench
    pip install torch numpy pillow matplotlib tqdm
    python benchmarks/parity_compbench.py T2I-CompBench tests/parity/compbench.json

The programs for places and numbers run as they are, from their command line on. In the place of UniDet and its names
stands one that has found what the case says, and in that of spaCy one that knows the case's names for nouns. Of depth
only the rule is asked, for the surest two things: where a thing is there twice the program may take the other one. It
looks columns up among the rows of a map, which is therefore given to it with rows for columns. The program for complex
prompts runs on answers that the case makes up.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from recording import commit, one_step

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "compbench_case.py"))
HOW = (
    "main() of each on the things of tests/compbench_case.py in the place of UniDet's, the words of their names being "
    "spaCy's nouns; of depth, determine_position of 3D_spatial_eval between the surest two, the map with rows for "
    "columns; of complex prompts main() of 3_in_1 on the parts that tests/compbench_case.py makes up"
)


def module(name: str, **held: Any) -> None:
    """What `import name` finds from now on."""
    made = types.ModuleType(name)
    vars(made).update(held)
    sys.modules[name] = made


def words(text: str) -> list[SimpleNamespace]:
    """What spaCy makes of a prompt of the case."""
    return [SimpleNamespace(text=word, pos_="NOUN" if word in CASE["THINGS"] else "X") for word in text.split()]


def unidet(cases: list[Any]) -> Any:
    """A detector that has found the things of these cases; it tells a picture by the number in its file's name."""

    def detect(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [instances(cases[int(Path(one["image_path"]).stem.rpartition("_")[2])].things) for one in batch]

    return detect


def instances(things: list[Any]) -> dict[str, Any]:
    """Things as detectron2 tells them."""
    held = {
        "pred_boxes": SimpleNamespace(tensor=torch.tensor([thing.box for thing in things]).reshape(-1, 4)),
        "pred_classes": torch.tensor([CASE["THINGS"].index(thing.name) for thing in things], dtype=torch.long),
        "scores": torch.tensor([thing.score for thing in things], dtype=torch.float64),
    }
    return {"instances": SimpleNamespace(get_fields=lambda: held)}


class Accelerator:
    """Hands the detector the pictures one by one, read in this process."""

    def __init__(self, mixed_precision: str) -> None:
        pass

    def prepare(self, model: Any, loader: Any) -> tuple[Any, list[Any]]:
        return model, [loader.collate_fn([loader.dataset[i]]) for i in range(len(loader.dataset))]


def program(name: str, **how: str) -> dict[str, Any]:
    """A program of the working folder, run with the case's names for the detector's."""
    with patch("torch.load", lambda path: {"labels": CASE["THINGS"]}):
        return runpy.run_path(f"{name}.py", **how)


def answers(name: str, cases: list[Any], folder: Path, out: str) -> list[float]:
    """What a program says of each case."""
    (folder / "samples").mkdir(parents=True)
    for i, case in enumerate(cases):
        Image.new("RGB", (8, 8)).save(folder / "samples" / f"{case.prompt}_{i:06}.png")
    module("experts.model_bank", load_expert_model=lambda task, ckpt: (unidet(cases), lambda image: image))
    with patch.object(sys, "argv", [name, "--outpath", str(folder)]), contextlib.redirect_stdout(sys.stderr):
        program(name, run_name="__main__")
    rows = {row["question_id"]: row["answer"] for row in json.loads((folder / out / "vqa_result.json").read_text())}
    return [round(rows[i], 6) for i in range(len(cases))]


def depth() -> list[float]:
    """What the surest two things of each scene are worth by the rule for depth."""
    for name in ("experts.model_bank_3d", "experts.depth.generate_dataset"):
        module(name, load_expert_model=None, Dataset=None)
    place = program("3D_spatial_eval")["determine_position"]
    found = []
    for (prompt, things), rows in CASE["depth"]():
        across = torch.tensor(rows).T
        nearness = across.repeat_interleave(CASE["COARSE"], 0).repeat_interleave(CASE["COARSE"], 1)
        nouns = [word.text for word in words(prompt) if word.pos_ == "NOUN"]
        surest = [next((thing for thing in things if thing.name == noun), None) for noun in nouns]
        score = sum(0.25 * thing.score for thing in surest if thing)
        if all(surest):
            boxes = [dict(zip(("x_min", "y_min", "x_max", "y_max"), thing.box, strict=True)) for thing in surest]
            locality = next(word for word in ("in front of", "behind", "hidden") if word in prompt)
            score += place(locality, *boxes, depth_map=nearness) / 2
        found.append(round(score, 6))
    return found


def three_in_one(checkout: Path, folder: Path) -> list[float]:
    """What the images of complex prompts are worth by their parts."""
    data = folder / "dataset"
    data.mkdir(parents=True)
    for stem, lines in CASE["COMPLEX"].items():
        (data / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    places = ("annotation_blip", "labels/annotation_obj_detection_2d", "annotation_clip")
    for place, part in zip(places, CASE["PARTS"], strict=True):
        (folder / place).mkdir(parents=True)
        rows = [{"question_id": i, "answer": str(score)} for i, score in enumerate(CASE["parts"]()[part])]
        (folder / place / "vqa_result.json").write_text(json.dumps(rows))
    words = ["3_in_1", "--outpath", str(folder), "--data_path", str(data)]
    with patch.object(sys, "argv", words), contextlib.redirect_stdout(sys.stderr):
        runpy.run_path(str(checkout / "3_in_1_eval" / "3_in_1.py"), run_name="__main__")
    return [row["answer"] for row in json.loads((folder / "annotation_3_in_1" / "vqa_result.json").read_text())]


def record(checkout: Path, out: Path) -> None:
    versions = {"torch": torch.__version__}
    versions["T2I-CompBench"] = commit(checkout)
    numbers = {word: i + 1 for i, word in enumerate(CASE["NUMBERS"])}
    module("spacy", load=lambda name: words)
    module("word2number", w2n=SimpleNamespace(word_to_num=numbers.__getitem__))
    module("ruamel_yaml", load=lambda file, Loader: None, Loader=None)  # noqa: N803
    module("accelerate", Accelerator=Accelerator)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(checkout / "UniDet_eval"):
        sys.path.insert(0, "")
        recorded = {
            "package": "2D_spatial_eval, 3D_spatial_eval and numeracy_eval of T2I-CompBench",
            "versions": versions,
            "how": HOW,
            "spatial": answers(
                "2D_spatial_eval", CASE["spatial"](), Path(folder, "2d"), "labels/annotation_obj_detection_2d"
            ),
            "numeracy": answers("numeracy_eval", CASE["numeracy"](), Path(folder, "numbers"), "annotation_num"),
            "depth": depth(),
            "complex": three_in_one(checkout, Path(folder, "complex")),
        }
    out.write_text(json.dumps(recorded))


if __name__ == "__main__":
    one_step(__doc__, record, checkout="Karine-Huang/T2I-CompBench")

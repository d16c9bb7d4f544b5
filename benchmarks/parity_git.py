"""Record what T2I-R1's GIT reward says of the weights, pictures and phrases of tests/git_case.py.

git clone https://github.com/CaraJ7/T2I-R1
pip install torch "transformers==4.49" pillow requests numpy
python benchmarks/parity_git.py T2I-R1 tests/parity/git_vqa.json
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from recording import commit, one_step

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "git_case.py"))


def published(folder: Path) -> None:
    """The folder as it lies on the hub: weights, configuration, and what the processor is made from."""
    import transformers

    torch.save({key: torch.tensor(value) for key, value in CASE["published"]().items()}, folder / "pytorch_model.bin")
    transformers.GitConfig(vision_config=CASE["VISION"], **CASE["TEXT"]).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(CASE["BLIP"]["full_vocabulary"]()))
    side = {"height": CASE["SIZE"], "width": CASE["SIZE"]}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": CASE["SIZE"]}, crop_size=side)
    words = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    transformers.GitProcessor(images, words).save_pretrained(folder)


def record(checkout: Path, out: Path) -> None:
    sys.path.insert(0, str(checkout / "src" / "t2i-r1" / "src" / "utils"))
    official = importlib.import_module("reward_git")
    with tempfile.TemporaryDirectory() as folder:
        published(Path(folder))
        reward = official.GIT(SimpleNamespace(git_ckpt_path=folder))
    reward.load_to_device("cpu")
    pictures = [image.convert("RGB") for image in CASE["pictures"]()]

    def scores(phrases: list[str]) -> list[float]:
        """Of each picture, for a prompt with these phrases."""
        count = len(pictures)
        facts = {"task_type": ["color"] * count, "attr_nouns": [phrases] * count, "nouns": [phrases] * count}
        with torch.no_grad():
            return [float(score) for score in reward([""] * count, pictures, **facts)]

    names = ("torch", "transformers", "PIL", "numpy")
    versions = {name: importlib.import_module(name).__version__ for name in names}
    versions["T2I-R1"] = commit(checkout)
    phrases = list(CASE["PHRASES"])
    recorded = {
        "package": "reward_git of T2I-R1",
        "versions": versions,
        "scores": [scores([phrase]) for phrase in phrases],
        "together": scores(phrases),
    }
    out.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    one_step(__doc__, record, checkout="CaraJ7/T2I-R1")

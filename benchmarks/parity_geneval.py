"""Record what GenEval, flow_grpo's server and mmdetection say of the things found in tests/geneval_case.py.

    git clone https://github.com/djghosh13/geneval
    git clone https://github.com/yifan123/reward-server
    git clone https://github.com/open-mmlab/mmdetection && git -C mmdetection checkout 0c51592
    pip install torch numpy pandas pillow
    python benchmarks/parity_geneval.py geneval reward-server mmdetection tests/parity/geneval.json

Their code runs as it is, from GenEval's command line on. In the place of the detector stands one that has found what
the case says, and in that of CLIP's classifier one that knows the colour of each thing; the check for a GPU is told
that there is one. Of mmdetection runs what makes things of a network's answer, without the packages around it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import runpy
import sys
import tempfile
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from recording import commit, one_step
from torch.nn.functional import interpolate

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "geneval_case.py"))
CASES = CASE["cases"]()
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
"""In the order of both programs, whose classifier answers with a number."""
HOW = (
    "evaluate_image and evaluate_reward on the things of tests/geneval_case.py in the place of a detector's, each with "
    "the colour that it says; detections: mmdetection's postprocessing of instances on the answer there, each with "
    "class, score, box and pixels"
)


def module(name: str, **held: Any) -> None:
    """What `import name` finds from now on."""
    made = types.ModuleType(name)
    vars(made).update(held)
    sys.modules[name] = made
    if parent := name.rpartition(".")[0]:
        setattr(sys.modules[parent], name.rpartition(".")[2], made)


def stand_ins(names: list[str]) -> None:
    """Puts a detector of those classes and a classifier of colours where both programs import theirs."""
    colours = {(each.thing, each.box): each.colour for case in CASES for each in case.things}

    def detect(detector: None, given: str | list[np.ndarray]) -> Any:
        if isinstance(given, str):
            return boxes(CASES[int(Path(given).parts[-3])].things, names)
        return [boxes(case.things, names) for case in CASES]

    def classify(clip: None, thing: str, loader: Any, device: str) -> tuple[torch.Tensor, None]:
        held = [colours[thing, tuple(box[:4].astype(int).tolist())] for box, _ in loader.dataset._objects]
        return torch.eye(len(COLOURS))[[COLOURS.index(colour) for colour in held]], None

    def thing_of(clip: None, tokenizer: None, classes: list[str], templates: list[str], device: str) -> str:
        assert classes == COLOURS
        return templates[0].partition("{c} ")[2]

    module("mmdet", __file__="")
    module("mmdet.apis", init_detector=lambda *given, **also: None, inference_detector=detect)
    module("open_clip", create_model_and_transforms=lambda *given, **also: (None,) * 3, get_tokenizer=lambda name: None)
    module("clip_benchmark")
    module("clip_benchmark.metrics")
    held = {"zero_shot_classifier": thing_of, "run_classification": classify}
    module("clip_benchmark.metrics.zeroshot_classification", **held)


def boxes(things: list[Any], names: list[str]) -> list[np.ndarray]:
    """[N, 5] of left, top, right, bottom and score for each class, as mmdetection answers."""
    return [np.array([[*t.box, t.score] for t in things if t.thing == name]).reshape(-1, 5) for name in names]


def geneval(checkout: Path, folder: Path) -> dict[str, Any]:
    """Of GenEval: whether each picture is right, how many reasons it gives against it, and how pairs stand."""
    for i, case in enumerate(CASES):
        (folder / str(i) / "samples").mkdir(parents=True)
        (folder / str(i) / "metadata.jsonl").write_text(json.dumps(case.record))
        Image.new("RGB", (8, 8)).save(folder / str(i) / "samples" / "0.png")
    out = folder / "results.jsonl"
    asked = ["evaluate_images.py", str(folder), "--outfile", str(out), "--model-config", "none"]
    with patch.object(sys, "argv", asked), patch("torch.cuda.is_available", lambda: True):
        program = runpy.run_path(str(checkout / "evaluation" / "evaluate_images.py"), run_name="__main__")
    rows = {int(Path(row["filename"]).parts[-3]): row for row in map(json.loads, out.read_text().splitlines())}
    pairs = [([np.array(first.box)], [np.array(second.box)]) for first, second in CASE["pairs"]()]
    return {
        "strict": [int(rows[i]["correct"]) for i in range(len(CASES))],
        "reasons": [len(rows[i]["reason"].splitlines()) for i in range(len(CASES))],
        "relations": [" and ".join(sorted(program["relative_position"](*pair))) for pair in pairs],
    }


def flow(checkout: Path) -> list[float]:
    """The scores of flow_grpo's server."""
    with contextlib.chdir(checkout):
        program = runpy.run_path(str(checkout / "reward_server" / "gen_eval.py"))["load_geneval"]()
    scores, *_ = program([Image.new("RGB", (8, 8))] * len(CASES), [case.record for case in CASES])
    return [round(score, 6) for score in scores]


def detections(checkout: Path) -> list[list[float]]:
    """Class, score, box and pixels of what mmdetection's head makes of the case's answer, above GenEval's threshold."""
    heads = "mmdet.models.seg_heads.panoptic_fusion_heads"
    for name in ("mmdet", "mmdet.models", "mmdet.models.seg_heads", heads, "mmdet.data_elements"):
        module(name, __path__=[str(checkout / name.replace(".", "/"))], SampleList=None)
    module("mmengine")
    module("mmengine.utils", slice_list=None)
    module("mmengine.data", InstanceData=SimpleNamespace, PixelData=None)
    module("pycocotools")
    module("pycocotools.mask")
    module("mmdet.data_elements.mask", __path__=[str(checkout / "mmdet/data_elements/mask")])
    masks = importlib.import_module("mmdet.data_elements.mask.utils")
    vars(sys.modules["mmdet.data_elements.mask"])["mask2bbox"] = masks.mask2bbox
    module("mmdet.evaluation")
    module("mmdet.evaluation.functional", INSTANCE_OFFSET=1000)
    module("mmdet.registry", MODELS=SimpleNamespace(register_module=lambda: lambda kind: kind))
    module("mmdet.utils", OptConfigType=None, OptMultiConfig=None)
    module(f"{heads}.base_panoptic_fusion_head", BasePanopticFusionHead=object)
    kind = importlib.import_module(f"{heads}.maskformer_fusion_head").MaskFormerFusionHead
    head = kind.__new__(kind)
    head.num_classes = head.num_things_classes = 80
    head.test_cfg = {"panoptic_on": False, "instance_on": True, "max_per_image": 100}
    classes, answer = map(torch.tensor, CASE["answer"]())
    filled = interpolate(answer[None], CASE["FILLED"][::-1], mode="bilinear", align_corners=False)
    meta = {"img_shape": CASE["FITTED"][::-1], "ori_shape": CASE["PICTURE"][::-1]}
    (result,) = head.predict(classes[None], filled, [SimpleNamespace(metainfo=meta)], rescale=True)
    found = result["ins_results"]
    kept = zip(found.labels, found.scores, found.bboxes, found.masks, strict=True)
    return sorted(
        [int(label), round(score.item(), 6), *map(int, box), int(mask.sum())]
        for label, score, box, mask in kept
        if score > 0.3
    )


def record(checkout: Path, server: Path, mmdetection: Path, out: Path) -> None:
    checkouts = {"GenEval": checkout, "reward-server": server, "mmdetection": mmdetection}
    versions = {"numpy": np.__version__, **{name: commit(path) for name, path in checkouts.items()}}
    versions["torch"] = torch.__version__
    stand_ins((checkout / "evaluation" / "object_names.txt").read_text().splitlines())
    with tempfile.TemporaryDirectory() as folder:
        found = geneval(checkout, Path(folder))
    recorded = {
        "package": "evaluate_images of GenEval and gen_eval of flow_grpo's reward-server",
        "versions": versions,
        "how": HOW,
        "strict": found["strict"],
        "reasons": found["reasons"],
        "flow": flow(server),
        "relations": found["relations"],
        "detections": detections(mmdetection),
    }
    out.write_text(json.dumps(recorded))


if __name__ == "__main__":
    one_step(
        __doc__,
        record,
        geneval="djghosh13/geneval",
        server="yifan123/reward-server",
        mmdetection="open-mmlab/mmdetection",
    )

"""Record what the official code of PickScore, HPSv2, CLIPScore and LAION's predictors says of the tests' weights.

    python benchmarks/parity_clip.py hpsv2 > tests/parity/hpsv2.json
    python benchmarks/parity_clip.py pickscore CHECKOUT > tests/parity/pickscore.json

CHECKOUT is a checkout of the model's own repository; hpsv2 is a package. They need the packages of their time:
hpsv2 1.2.0 (with `bpe_simple_vocab_16e6.txt.gz`, which its wheel lacks) and clint; transformers 4.36.2 for PickScore;
openai-clip 1.0.1 and setuptools below 81 for the others. Their code runs as it is; replaced are only the size of the
network, downloads, imports of what only trains, and the GPU where it asks for one.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import json
import os
import re
import runpy
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "clip_case.py"))
Table = list[list[float]]


def tensors(found: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in found.items()}


def stand_in(name: str, **attributes: Any) -> None:
    """Makes `import name` succeed where the module is for training alone."""
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module


def openai_clip(embed: int = CASE["EMBED"]) -> None:
    """Makes `clip.load` build the network of the tests, whatever it is asked for."""
    clip = importlib.import_module("clip.clip")
    build = importlib.import_module("clip.model").build_model

    def load(name: str, device: str = "cpu", **ignored: Any) -> tuple[Any, Any]:
        network = build(tensors(CASE["towers"](embed))).float().eval()
        return network, clip._transform(network.visual.input_resolution)

    sys.modules["clip"].load = load


def hpsv2(checkout: Path | None) -> dict[str, Table]:
    stand_in("turtle", forward=None)
    factory = importlib.import_module("hpsv2.src.open_clip.factory")
    module = importlib.import_module("hpsv2.img_score")
    vision = {"image_size": CASE["SIZE"], "layers": CASE["DEPTH"], "width": CASE["VISION"], "patch_size": CASE["PATCH"]}
    text = {"context_length": CASE["CONTEXT"], "vocab_size": CASE["WORDS"], "width": CASE["TEXT"], "heads": 1}
    factory._MODEL_CONFIGS["ViT-H-14"] = {
        "embed_dim": CASE["EMBED"],
        "vision_cfg": vision | {"head_width": CASE["HEAD"]},
        "text_cfg": text | {"layers": CASE["DEPTH"]},
    }
    create = module.create_model_and_transforms
    module.create_model_and_transforms = lambda name, tag, **options: create(name, None, **options)
    torch.save({"epoch": 1, "state_dict": tensors(CASE["towers"]())}, "HPS.pt")
    pictures = CASE["pictures"]()

    def table() -> Table:
        return [[float(x) for x in module.score(pictures, prompt, cp="HPS.pt")] for prompt in CASE["PROMPTS"]]

    found = {"antialias": table()}
    resize = module.model_dict["preprocess_val"].transforms[2]
    functional = importlib.import_module("torchvision.transforms.functional")
    plain = functional.resize
    functional.resize = lambda image, size, mode: plain(image, size, mode, antialias=False)  # torchvision below 0.17
    assert type(resize).__name__ == "ResizeMaxSize"
    return found | {"legacy": table()}


def pickscore(checkout: Path) -> dict[str, Table]:
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPProcessor, CLIPTokenizerFast

    shapes = {}
    for name, width in (("vision_config", CASE["VISION"]), ("text_config", CASE["TEXT"])):
        heads = {"num_attention_heads": width // CASE["HEAD"], "num_hidden_layers": CASE["DEPTH"]}
        shapes[name] = {"hidden_size": width, "intermediate_size": 4 * width, "hidden_act": "gelu"} | heads
    shapes["vision_config"] |= {"image_size": CASE["SIZE"], "patch_size": CASE["PATCH"]}
    config = CLIPConfig(projection_dim=CASE["EMBED"], architectures=["CLIPModel"], **shapes)
    for folder in ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "yuvalkirstain/PickScore_v1"):
        Path(folder).mkdir(parents=True)
    config.save_pretrained("yuvalkirstain/PickScore_v1")
    save_file(tensors(CASE["hugging_towers"]()), "yuvalkirstain/PickScore_v1/model.safetensors", {"format": "pt"})
    byte_pairs("vocab.json", "merges.txt")
    tokenizer = CLIPTokenizerFast("vocab.json", "merges.txt", model_max_length=77)
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    (code,) = re.findall(
        r"```python\n(.*?)^pil_images", (checkout / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )[:1]
    space: dict[str, Any] = {}
    exec(code.replace('"cuda"', '"cpu"'), space)
    torch.softmax = lambda scores, dim: scores  # the snippet gives probabilities of the pictures alone
    return {"scores": [space["calc_probs"](prompt, CASE["pictures"]()) for prompt in CASE["PROMPTS"]]}


def byte_pairs(vocabulary: str, merges: str) -> None:
    """Writes OpenAI's byte pairs, from open_clip's copy, as transformers reads them."""
    import open_clip

    lines = gzip.open(Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8")
    pairs = lines.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair.split()) for pair in pairs]
    words += ["<|startoftext|>", "<|endoftext|>"]
    Path(vocabulary).write_text(json.dumps({word: index for index, word in enumerate(words)}))
    Path(merges).write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")


def clipscore(checkout: Path) -> dict[str, Table]:
    openai_clip()
    stand_in("generation_eval_utils")
    sys.path.insert(0, str(checkout))
    module = importlib.import_module("clipscore")
    loader = torch.utils.data.DataLoader
    torch.utils.data.DataLoader = lambda data, **options: loader(data, **{**options, "num_workers": 0})
    paths = []
    for i, picture in enumerate(CASE["pictures"]()):
        picture.save(f"{i}.png")
        paths.append(f"{i}.png")
    network, _ = sys.modules["clip"].load("ViT-B/32")
    found: dict[str, Table] = {}
    for variant, prefix in (("prefix", "A photo depicts"), ("noprefix", " ")):
        module.CLIPCapDataset.__init__.__defaults__ = (prefix,)
        with torch.no_grad():
            found[variant] = [
                module.get_clip_score(network, paths, [prompt] * len(paths), "cpu")[1].tolist()
                for prompt in CASE["PROMPTS"]
            ]
    return found


def aesthetic1(checkout: Path) -> dict[str, Table]:
    import open_clip

    cells = json.loads((checkout / "asthetics_predictor.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    load, score = (cell for cell in code if not cell.strip().startswith("!"))
    (photo,) = re.findall(r'Image.open\("(.*?)"', score)
    os.environ["HOME"] = os.getcwd()
    Path(".cache/emb_reader").mkdir(parents=True)
    file = ".cache/emb_reader/sa_0_4_vit_l_14_linear.pth"
    torch.save(
        tensors({key.removeprefix("v1."): x for key, x in CASE["linear"]("v1", 1, 768, gain=30.0).items()}), file
    )
    vision = {"image_size": CASE["SIZE"], "layers": CASE["DEPTH"], "width": CASE["VISION"], "patch_size": CASE["PATCH"]}
    text = {"width": CASE["TEXT"], "heads": 1, "layers": CASE["DEPTH"]}
    network = open_clip.CLIP(768, vision | {"head_width": CASE["HEAD"]}, text, quick_gelu=True)
    network.load_state_dict(tensors(CASE["towers"](768)))
    transform = open_clip.image_transform(CASE["SIZE"], is_train=False)
    open_clip.create_model_and_transforms = lambda name, pretrained: (network.eval(), None, transform)
    space: dict[str, Any] = {}
    exec(load, space)
    found = []
    for picture in CASE["pictures"]():
        picture.save(photo, "PNG")
        exec(score, space)
        found.append(space["prediction"].item())
    return {"scores": [found]}


def aesthetic2(checkout: Path) -> dict[str, Table]:
    openai_clip(768)
    stand_in("webdataset")
    stand_in("pytorch_lightning", LightningModule=torch.nn.Module)
    stand_in("datasets", load_dataset=None)
    torch.save(tensors(CASE["head"](CASE["LAION_WIDTHS"], CASE["LAION_NAMES"])), "sac+logos+ava1-l14-linearMSE.pth")
    torch.nn.Module.to = lambda module, device: module
    torch.cuda.FloatTensor = torch.FloatTensor
    found = []
    for picture in CASE["pictures"]():
        picture.save("test.jpg", "PNG")
        found.append(runpy.run_path(str(checkout / "simple_inference.py"))["prediction"].item())
    return {"scores": [found]}


RECORDERS = {
    "aesthetic1": aesthetic1,
    "aesthetic2": aesthetic2,
    "clipscore": clipscore,
    "hpsv2": hpsv2,
    "pickscore": pickscore,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(RECORDERS))
    parser.add_argument("checkout", type=Path, nargs="?")
    chosen = parser.parse_args()
    checkout = chosen.checkout and chosen.checkout.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
        scores = RECORDERS[chosen.family](checkout)
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "torchvision", "numpy")}
    for name in ("transformers", "open_clip"):
        versions |= {name: sys.modules[name].__version__} if name in sys.modules else {}
    json.dump({"package": chosen.family, "versions": versions, **scores}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

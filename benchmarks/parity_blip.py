"""Record what the official code of ImageReward, CycleReward, MPS and BLIP-VQA says of the weights that the tests make.

    python benchmarks/parity_blip.py imagereward CHECKOUT > tests/parity/imagereward.json

CHECKOUT is a checkout of the model's own repository. It needs the packages of its time: transformers 4.36.2,
timm 0.6.13, fairscale, einops, and numpy below 2. Its code runs as it is; replaced are only the sizes that it
hard-codes, downloads, and the GPU and half precision where it asks for them.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import json
import os
import runpy
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

CASE = runpy.run_path(str(Path(__file__).parents[1] / "tests" / "blip_case.py"))
MED = {
    "hidden_size": CASE["HIDDEN"],
    "intermediate_size": 4 * CASE["HIDDEN"],
    "num_hidden_layers": CASE["DEPTH"],
    "num_attention_heads": CASE["HEADS"],
    "vocab_size": len(CASE["VOCABULARY"]) + 2,
    "layer_norm_eps": 1e-12,
    "encoder_width": CASE["WIDTH"],
    "add_cross_attention": True,
}


def small_bert() -> str:
    """Makes the working folder hold the vocabulary under the name of the hub, and a configuration; gives its path."""
    Path("bert-base-uncased").mkdir()
    Path("bert-base-uncased/vocab.txt").write_text("\n".join(CASE["VOCABULARY"]))
    Path("med_config.json").write_text(json.dumps(MED))
    return "med_config.json"


def small_vision(module: Any) -> Any:
    """What stands for `create_vit` of official code: its own transformer, of the width and depth of the tests."""

    def create(vit: str, size: int, *ignored: Any, **also: Any) -> tuple[Any, int]:
        made = module.VisionTransformer(
            img_size=size, patch_size=16, embed_dim=CASE["WIDTH"], depth=CASE["DEPTH"], num_heads=CASE["HEADS"]
        )
        return made, CASE["WIDTH"]

    return create


def filled(network: Any, tensors: dict[str, Any]) -> Any:
    network.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()}, strict=True)
    return network.eval()


def imagereward(checkout: Path) -> list[list[float]]:
    for name in ("ImageReward", "ImageReward.models"):  # their own __init__ import a trainer, diffusers and clip
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    blip = importlib.import_module("ImageReward.models.BLIP.blip")
    module = importlib.import_module("ImageReward.ImageReward")
    importlib.import_module("ImageReward.models.BLIP.blip_pretrain").create_vit = small_vision(blip)
    head = module.MLP
    module.MLP = lambda width: head(CASE["HIDDEN"])
    network = filled(module.ImageReward(med_config=small_bert()), CASE["scorer"]((0, 2, 4, 6, 7)))
    with torch.no_grad():
        return [[network.score(prompt, image) for image in CASE["pictures"]()] for prompt in CASE["PROMPTS"]]


def cyclereward(checkout: Path) -> list[list[float]]:
    sys.path.insert(0, str(checkout))
    blip = importlib.import_module("cyclereward.blip.blip")
    module = importlib.import_module("cyclereward.model")
    importlib.import_module("cyclereward.blip.blip_pretrain").create_vit = small_vision(blip)
    module.cyclereward_args["blip_path"] = ""
    head = module.MLP
    module.MLP = lambda width: head(CASE["HIDDEN"])
    network = filled(module.CycleReward(med_config=small_bert()), CASE["scorer"]((0, 2, 4, 6, 8)))
    pixels = [network.preprocess(image)[None] for image in CASE["pictures"]()]
    return [[network.score(image, prompt).item() for image in pixels] for prompt in CASE["PROMPTS"]]


def clip_tokenizer() -> Any:
    """transformers' fast CLIP tokenizer from the table that open_clip ships."""
    import open_clip
    from transformers import CLIPTokenizerFast

    table = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    Path("merges.txt").write_text("\n".join(gzip.decompress(table.read_bytes()).decode().split("\n")[:48895]))
    words = [*list(open_clip.SimpleTokenizer().encoder)[:-2], "<|startoftext|>", "<|endoftext|>"]
    Path("vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    return CLIPTokenizerFast("vocab.json", "merges.txt", model_max_length=77)


def mps(checkout: Path) -> dict[str, list[list[float]]]:
    from transformers import CLIPConfig, CLIPImageProcessor

    sys.path.insert(0, str(checkout))
    for name in ("cv2", "fire"):  # imported by the script, not used by what is called here
        sys.modules[name] = types.SimpleNamespace(Fire=None)  # type: ignore[assignment]
    module = importlib.import_module("trainer.models.clip_model")
    width, depth, heads = CASE["WIDTH"], CASE["DEPTH"], CASE["HEADS"]
    tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth}
    tower |= {"num_attention_heads": heads, "hidden_act": "gelu", "projection_dim": CASE["HIDDEN"]}
    config = CLIPConfig(text_config=tower, vision_config=tower | {"patch_size": 14}, projection_dim=CASE["HIDDEN"])
    module.XCLIPModel.from_pretrained = lambda name: module.XCLIPModel(config)
    cross = module.Cross_model
    module.Cross_model = lambda **sizes: cross(dim=CASE["HIDDEN"], layer_num=depth, heads=heads)
    network = filled(module.CLIPModel(""), CASE["mps"]())
    torch.Tensor.half = lambda self: self  # type: ignore[method-assign]
    source = (checkout / "eval_overall_mps_on_imagereward.py").read_text()
    scores, tokenizer = {}, clip_tokenizer()
    for variant, threshold in (("overall", "0.3"), ("overall_t001", "0.01")):
        script: dict[str, Any] = {"__name__": "script"}
        exec(source.replace("sim_text_condition > 0.3", f"sim_text_condition > {threshold}"), script)  # noqa: S102
        given = network, CLIPImageProcessor(), tokenizer, "cpu"
        scores[variant] = [
            [script["infer_one_sample"](image, prompt, *given).item() for image in CASE["pictures"]()]
            for prompt in CASE["PROMPTS"]
        ]
    return scores


def blip_vqa(checkout: Path) -> list[list[float]]:
    sys.path.insert(0, str(checkout / "BLIPvqa_eval"))
    import transformers  # noqa: F401  looks for cv2 itself

    sys.modules["cv2"] = types.ModuleType("cv2")  # imported for the augmentations of training
    blip = importlib.import_module("models.blip")
    module = importlib.import_module("models.blip_vqa")
    module.create_vit = small_vision(blip)
    Path("med_config.json").write_text(json.dumps(MED | {"vocab_size": 30524, "encoder_width": CASE["HIDDEN"]}))
    Path("bert-base-uncased").mkdir()
    Path("bert-base-uncased/vocab.txt").write_text("\n".join(CASE["full_vocabulary"]()))
    network = filled(module.BLIP_VQA("med_config.json"), CASE["vqa"]())
    rounded, found = network.vqa_prob, []
    network.vqa_prob = lambda *given: found.append(rounded(*given)) or found[-1]  # before it is rounded
    for phrase in CASE["PHRASES"]:
        asked = []
        for i, image in enumerate(CASE["pictures_to_squash"]()):
            image.save(f"{i}.png")
            asked.append({"image": f"{i}.png", "question_id": i, "question": f"{phrase}?", "dataset": "color"})
        Path("vqa_test.json").write_text(json.dumps(asked))
        config = {"ann_root": ".", "vqa_root": "", "vg_root": "", "image_size": 480}
        dataset, _ = importlib.import_module("data").create_dataset("vqa", config)
        pixels, questions, _ = zip(*(dataset[i] for i in range(len(asked))), strict=True)
        with torch.no_grad():
            network(torch.stack(pixels), list(questions), train=False, inference="vqa_prob")
    return [answers.tolist() for answers in found]


RECORDERS = {"imagereward": imagereward, "cyclereward": cyclereward, "mps": mps, "blip_vqa": blip_vqa}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(RECORDERS))
    parser.add_argument("checkout", type=Path)
    chosen = parser.parse_args()
    checkout = chosen.checkout.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
        scores = RECORDERS[chosen.family](checkout)
        os.chdir("/")
    names = ("torch", "torchvision", "transformers", "PIL")
    versions = {name: importlib.import_module(name).__version__ for name in names}
    json.dump({"package": chosen.family, "versions": versions, "scores": scores}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

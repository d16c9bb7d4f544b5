"""Any CLIP of open_clip or transformers by its name: scores of these packages, what names mean, what is missing."""

from __future__ import annotations

import json
import re
import runpy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from rwk.adapters import pickscore
from rwk.adapters.clip_towers import OpenClipReward, open_clip_network
from rwk.adapters.clipscore import ClipScore
from rwk.adapters.open_clip_models import FILES, OpenClipCosine
from rwk.adapters.preprocess import CLIP_MEAN, CLIP_STD, HALF, Preprocess
from rwk.adapters.transformers_clip import preprocessing
from rwk.rewards.contract import check_reward
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import REWARDS, load, load_all

CASE = runpy.run_path(str(Path(__file__).with_name("clip_case.py")))
RECORDED = json.loads(Path(__file__).with_name("parity").joinpath("clipscore.json").read_text())
TOLERANCE = 5e-6
CONFIG: dict[str, Any] = {
    "embed_dim": CASE["EMBED"],
    "vision_cfg": {
        "image_size": CASE["SIZE"],
        "layers": CASE["DEPTH"],
        "width": CASE["VISION"],
        "patch_size": CASE["PATCH"],
        "head_width": CASE["HEAD"],
    },
    "text_cfg": {"width": CASE["TEXT"], "heads": 1, "layers": CASE["DEPTH"], "context_length": 77, "vocab_size": 49408},
}
"""An architecture for the weights of `clip_case`."""
TAGS: dict[str, dict[str, Any]] = {
    "quick": {"mean": CLIP_MEAN, "std": CLIP_STD, "resize_mode": "shortest", "quick_gelu": True},
    "half": {"mean": HALF, "std": HALF, "resize_mode": "squash", "interpolation": "bilinear"},
    "bin": {"mean": CLIP_MEAN, "std": CLIP_STD, "resize_mode": "shortest"},
}
WORDS = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"hf_tokenizer_name": "someone/words"}}
ARCHITECTURES = {
    "small": CONFIG,
    "small-quickgelu": CONFIG | {"quick_gelu": True},
    "apart": CONFIG | {"custom_text": True},
}
FIRST = FILES[0]
Rwk = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Offline, with an empty cache of the hub, and open_clip that knows small architectures with published weights."""
    import open_clip.factory
    import open_clip.pretrained

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    published = {
        tag: {"url": "", "hf_hub": f"someone/{tag}/", "interpolation": "bicubic", **found}
        for tag, found in TAGS.items()
    }
    for name, config in ARCHITECTURES.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, published)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "words", WORDS)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "lone", CONFIG)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "lone", {"half": published["half"]})
    return tmp_path / "cache"


def snapshot(cache: Path, hub: str) -> Path:
    """The folder in the hub's cache that holds the files of a repository."""
    repository = cache / f"models--{hub.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    return repository / "snapshots" / "abc"


def open_clip_file(path: Path) -> Path:
    """Weights in open_clip's layout."""
    tensors = {key: torch.tensor(value) for key, value in CASE["towers"]().items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def transformers_folder(path: Path, gelu: str = "quick_gelu", **prepared: Any) -> Path:
    """A folder in the layout of transformers, which holds the same weights."""
    path.mkdir(exist_ok=True)
    save_file({key: torch.tensor(value) for key, value in CASE["hugging_towers"]().items()}, path / "model.safetensors")
    towers = {}
    for name, width in (("vision_config", CASE["VISION"]), ("text_config", CASE["TEXT"])):
        heads = {"num_attention_heads": width // CASE["HEAD"], "num_hidden_layers": CASE["DEPTH"], "hidden_act": gelu}
        towers[name] = {"hidden_size": width, "intermediate_size": 4 * width, **heads}
    towers["vision_config"] |= {"image_size": CASE["SIZE"], "patch_size": CASE["PATCH"]}
    towers["text_config"] |= {"eos_token_id": 2}
    config = {"model_type": "clip", "projection_dim": CASE["EMBED"], **towers}
    (path / "config.json").write_text(json.dumps(config))
    (path / "preprocessor_config.json").write_text(json.dumps({"size": 224, "crop_size": 224, **prepared}))
    return path


def scores(reward: Any) -> Tensor:
    images = CASE["pictures"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one prompt is too long
        return torch.stack([reward.score(images, [prompt] * len(images)).values for prompt in CASE["PROMPTS"]])


def cosines(image: Tensor, text: Tensor) -> Tensor:
    unit = [torch.nn.functional.normalize(each, dim=1) for each in (text, image)]
    return unit[0] @ unit[1].T  # [prompts, pictures]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("small/quick", "open_clip_model.safetensors"),
        ("small/half", "open_clip_model.safetensors"),
        ("apart/half", "open_clip_model.safetensors"),
        ("small/bin", "open_clip_pytorch_model.bin"),
    ],
)
def test_scores_are_those_of_open_clip(cache: Path, caplog: pytest.LogCaptureFixture, name: str, file: str) -> None:
    """Model, preprocessing and tokenizer of `create_model_and_transforms` give the cosines of `open_clip:ARCH/TAG`.

    The tags differ in mean, filter, crop and GELU, which open_clip has to be told; one lies in a torch file. With the
    preprocessing of another tag, or the other GELU, the scores are off by 100 times the tolerance.
    """
    import open_clip

    plain, _, tag = name.partition("/")
    open_clip_file(snapshot(cache, f"someone/{tag}") / file)
    quick = TAGS[tag].get("quick_gelu", False)
    model, _, prepare = open_clip.create_model_and_transforms(plain + "-quickgelu" * quick, tag)
    with torch.no_grad():
        pixels = torch.stack([prepare(image) for image in CASE["pictures"]()])
        words = open_clip.get_tokenizer(plain)(list(CASE["PROMPTS"]))
        expected = cosines(model.eval().encode_image(pixels), model.encode_text(words))
    assert expected.std(1).min() > 0.002  # pictures tell
    caplog.clear()
    reward: Any = load(f"open_clip:{name}")
    assert not caplog.records  # open_clip calls a network random that is about to be filled
    torch.testing.assert_close(scores(reward), expected, rtol=0, atol=TOLERANCE)
    reward.preprocess = Preprocess(224, rounding="floor")
    assert (scores(reward) - expected).abs().max() > 100 * TOLERANCE
    if plain == "small" and tag != "bin":
        other: Any = load(
            f"open_clip:small{'' if quick else '-quickgelu'}@{cache}/models--someone--{tag}/snapshots/abc"
        )
        other.preprocess = load(f"open_clip:{name}").preprocess  # type: ignore[attr-defined]
        assert (scores(other) - expected).abs().max() > 100 * TOLERANCE


def test_a_tokenizer_of_the_hub_may_lie_beside_the_weights(tmp_path: Path) -> None:
    """A model with a tokenizer of its own reads prompts as open_clip does with it, and says where it is to be put."""
    from open_clip.tokenizer import HFTokenizer

    file = open_clip_file(tmp_path / "open_clip_model.safetensors")
    image, prompts = CASE["pictures"]()[:1], ["a photo of a red cat", "Two CAFÉs & “the” blue cat’s table"]
    reward: Any = load(f"open_clip:words@{file}")
    with pytest.raises(RunFailed, match=r"needs the tokenizer someone/words, .* as open_clip:words@PATH"):
        reward.score(image, prompts[:1])
    pickscore.tokenizer().save_pretrained(tmp_path)
    reward = load(f"open_clip:words@{tmp_path}")
    words = HFTokenizer(str(tmp_path), 77)(prompts)
    with torch.no_grad():
        expected = cosines(reward.image_features(reward.preprocess.exact(image)), reward.network.encode_text(words))
    torch.testing.assert_close(reward.score(image * 2, prompts).values, expected[:, 0], rtol=0, atol=TOLERANCE)
    with pytest.warns(UserWarning, match="open_clip:words reads 77 tokens of a prompt, got 242 in 'the red cat"):
        reward.score(image, [CASE["PROMPTS"][3]])


@pytest.mark.parametrize("layout", ["open_clip", "transformers"])
def test_clipscore_of_a_model_is_the_authors(tmp_path: Path, layout: str) -> None:
    """`open_clip.clipscore:` and `.noprefix:` give the recorded scores of the authors' code, from both layouts."""
    file = open_clip_file(tmp_path / "own.pt") if layout == "open_clip" else transformers_folder(tmp_path / "folder")
    for variant, recorded in (("clipscore", "prefix"), ("noprefix", "noprefix")):
        found = scores(load(f"open_clip.{variant}:small-quickgelu@{file}"))
        torch.testing.assert_close(found, torch.tensor(RECORDED[recorded]), rtol=0, atol=TOLERANCE)


def test_clipscore_takes_the_layout_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`clipscore.b32@PATH` gives the authors' scores from a file or a folder of transformers, old or new.

    One whose config names the exact GELU is refused, since with the wrong one every score would be off.
    """
    monkeypatch.setattr(ClipScore, "build", staticmethod(lambda: open_clip_network({**CONFIG, "quick_gelu": True})))
    folder = transformers_folder(tmp_path / "folder")
    expected = torch.tensor(RECORDED["prefix"])
    for path in (folder, folder / "model.safetensors"):
        torch.testing.assert_close(scores(load(f"clipscore.b32@{path}")), expected, rtol=0, atol=TOLERANCE)
    network: Any = load(f"transformers:{folder}").network  # type: ignore[attr-defined]
    network.save_pretrained(tmp_path / "new")
    torch.testing.assert_close(scores(load(f"clipscore.b32@{tmp_path / 'new'}")), expected, rtol=0, atol=TOLERANCE)
    exact = transformers_folder(tmp_path / "exact", gelu="gelu")
    with pytest.raises(ValueError, match=r"clipscore\.b32 runs its network with quick_gelu, got .* name it as transf"):
        load(f"clipscore.b32@{exact}")


@pytest.mark.parametrize(("gelu", "filter_"), [("gelu", 3), ("quick_gelu", 2)])
def test_scores_are_those_of_transformers(tmp_path: Path, gelu: str, filter_: int) -> None:
    """`CLIPModel.from_pretrained`, Pillow's image processor and CLIP's tokenizer give the cosines of `transformers:`.

    GELU, filter and mean are those of the folder; with the crop of open_clip the scores are off.
    """
    from transformers import CLIPImageProcessorPil, CLIPModel

    folder = transformers_folder(tmp_path / "folder", gelu, resample=filter_, image_mean=list(HALF))
    words = pickscore.tokenizer()
    words.save_pretrained(folder)
    model = CLIPModel.from_pretrained(folder).eval()
    prepared = CLIPImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        pixels = torch.cat([prepared(image, return_tensors="pt")["pixel_values"] for image in CASE["pictures"]()])
        image = model.get_image_features(pixel_values=pixels).pooler_output
        read = words(list(CASE["PROMPTS"]), padding=True, truncation=True, max_length=77, return_tensors="pt")
        text = model.get_text_features(input_ids=read["input_ids"]).pooler_output
    expected = cosines(image, text)
    reward: Any = load(f"transformers:{folder}")
    torch.testing.assert_close(scores(reward), expected, rtol=0, atol=TOLERANCE)
    found = scores(load(f"transformers.noprefix:someone/else@{folder}"))
    torch.testing.assert_close(found, 2.5 * expected.clamp(min=0), rtol=0, atol=3 * TOLERANCE)
    reward.preprocess = replace(reward.preprocess, rounding="round")
    assert (scores(reward) - expected).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("scheme", sorted(REWARDS.schemes))
def test_every_scheme_keeps_the_contract(scheme: str) -> None:
    """The contract's checks pass on `tiny()` of what each scheme makes, which goes by the name that it was asked by."""
    name = f"{scheme}:{'ViT-B-32/openai' if scheme.startswith('open') else 'openai/clip-vit-base-patch32'}"
    kind = REWARDS.target(name)
    assert kind.spec.name == name
    assert kind is not type(kind.tiny()) or kind.tiny().spec.name == name
    check_reward(kind.tiny())


def test_one_file_is_one_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIPScore and the models of open_clip hold one network of one file between them, whatever they are called."""
    for kind in (OpenClipReward, OpenClipCosine):
        monkeypatch.setattr(kind, "build", classmethod(lambda cls: open_clip_network({**CONFIG, "quick_gelu": True})))
    file = open_clip_file(tmp_path / "own.pt")
    names = ["clipscore.b32", "open_clip:ViT-B-32/openai", "open_clip.noprefix:ViT-B-32-quickgelu"]
    rewards: Any = load_all([f"{name}@{file}" for name in names])
    assert len({reward.network for reward in rewards.values()}) == 1
    assert len({reward.tower for reward in rewards.values()}) == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("open_clip:small", r"open_clip:small has 3 published weights \(quick, half, bin\); name one as ARCH/TAG, or"),
        ("open_clip:small/other", r"open_clip has no weights 'other' of small; there are quick, half, bin\."),
        ("open_clip:none", r"open_clip:none must name a model of open_clip, got 'none'; take one such as ViT-B-32\."),
        ("open_clip:", r"must name a model of open_clip, got ''"),
    ],
)
def test_names_that_say_too_little(rwk: Rwk, name: str, told: str) -> None:
    """An architecture of several weights, an unknown tag and an unknown architecture are one sentence each."""
    Image.new("RGB", (8, 6)).save("picture.png")
    for command in (["score", "picture.png", "--prompt", "a dog", "--reward", name], ["info", name]):
        ended = rwk(*command)
        assert ended.code != 0
        assert re.search(told, " ".join(ended.err.split())), ended.err


def test_missing_weights_of_a_model(rwk: Rwk) -> None:
    """`rwk score` names file, repository and both ways out for tags and for repositories of transformers."""
    Image.new("RGB", (8, 6)).save("picture.png")
    for name, file in (
        (
            "open_clip:ViT-B-32/laion2b_s34b_b79k",
            f"{FIRST} of laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        ),
        ("open_clip:lone", f"{FIRST} of someone/half"),
        ("transformers:openai/clip-vit-base-patch16", "config.json of openai/clip-vit-base-patch16"),
    ):
        ended = rwk("score", "picture.png", "--prompt", "a dog", "--reward", name)
        assert ended.code == 1
        assert f"{name} needs {file}, which is not in the cache" in ended.err
        assert f"here and name it as {name}@PATH." in ended.err


def test_info_tells_of_models(rwk: Rwk, tmp_path: Path) -> None:
    """`rwk info` tells unit, range, source of the weights and whether they are here, without a network."""
    folder = transformers_folder(tmp_path / "folder")
    found = {}
    for name in ("open_clip:ViT-B-32/openai", "open_clip.clipscore:small@own.pt", f"transformers:{folder}"):
        ended = rwk("info", name, "--json")
        assert ended.code == 0, ended.err
        found[name] = json.loads(ended.out)
    tag, own, mine = found.values()
    assert (tag["unit"], tag["low"], tag["high"]) == ("cosine", -1, 1)
    assert tag["weights"][0]["source"] == "timm/vit_base_patch32_clip_224.openai"
    assert tag["weights"][0]["advice"].endswith("name open_clip:ViT-B-32/openai@PATH")
    assert (own["high"], own["weights"][0]["source"]) == (2.5, "own.pt")
    assert mine["weights"][0]["path"] == str(folder)


def test_what_a_preprocessor_may_say() -> None:
    """Sizes as numbers or by side, crop or squash; another crop than the resize, or no normalisation, is refused."""
    square = {"height": 64, "width": 64}
    assert preprocessing("x", {}) == Preprocess(224, rounding="floor")
    given = {"size": {"shortest_edge": 64}, "crop_size": square, "resample": 2}
    assert preprocessing("x", given) == Preprocess(64, rounding="floor", interpolation="bilinear")
    squashed = {"size": square, "do_center_crop": False}
    assert preprocessing("x", squashed) == Preprocess(64, "squash", rounding="floor")
    for other in ({"size": 256}, {"do_normalize": False}, {"resample": 0}, {"size": square, "crop_size": 64}):
        with pytest.raises(ValueError, match="needs a preprocessor_config.json that"):
            preprocessing("x", other)

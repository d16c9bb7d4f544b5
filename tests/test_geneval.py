"""GenEval as a reward: what the detector finds and where, colours, facts of prompts, and the published files."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from rwk.adapters import geneval, mask2former
from rwk.adapters.clip_towers import SMALL, tokenizer
from rwk.adapters.geneval import Geneval, GenevalFlowGrpo, GenevalSoft, cut_out
from rwk.adapters.geneval_prompts import records
from rwk.adapters.geneval_rules import COLOURS, THINGS, Found
from rwk.adapters.mask2former import Mask2Former
from rwk.rewards.registry import load
from rwk.rewards.weights import weights_of

CASE = runpy.run_path(str(Path(__file__).with_name("geneval_case.py")))
PICTURE = runpy.run_path(str(Path(__file__).with_name("blip_case.py")))["picture"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "geneval.json").read_text())
SQUARE = Image.new("RGB", (64, 64))


class Answer(nn.Module):
    """A network that answers with the same logits whatever it sees, or with masks where the picture is bright."""

    config = SimpleNamespace(num_labels=80)
    device = torch.device("cpu")

    def __init__(self, classes: Tensor, masks: Tensor | None = None) -> None:
        super().__init__()
        self.classes, self.masks, self.seen = classes, masks, torch.empty(0)

    def forward(self, pixel_values: Tensor) -> Any:
        self.seen = pixel_values
        bright = avg_pool2d(pixel_values.mean(1, keepdim=True), 4)
        masks = bright if self.masks is None else self.masks[None]
        return SimpleNamespace(class_queries_logits=self.classes[None], masks_queries_logits=masks)


def test_things_found_are_those_of_mmdetection() -> None:
    """With one network's answer, classes, scores, boxes and masks are those of the detector that GenEval runs."""
    classes, masks = map(torch.tensor, CASE["answer"]())
    network = Answer(classes, masks)
    detector = Mask2Former(network, short=64, longest=96)
    found = detector(Image.new("RGB", CASE["PICTURE"]), THINGS)
    assert (network.seen.shape[3], network.seen.shape[2]) == CASE["FILLED"]
    assert detector.fitted(*CASE["PICTURE"]) == CASE["FITTED"]
    rows = sorted(
        [THINGS.index(thing), round(each.score, 6), *each.box, int(each.mask.sum())]
        for thing, group in found.items()
        for each in group
        if each.mask is not None
    )
    assert len(rows) > 10
    np.testing.assert_allclose(rows, RECORDED["detections"], atol=2e-6)
    some = detector(Image.new("RGB", CASE["PICTURE"]), list(found)[:2])
    assert {thing: len(group) for thing, group in some.items()} == {t: len(found[t]) for t in list(found)[:2]}


def test_scores_and_masks_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the one size for which transformers has a post-processing, things found are its things."""
    from transformers import Mask2FormerImageProcessor

    monkeypatch.setattr(mask2former, "MOST", 16)  # theirs looks at as many as there are queries
    detector = Mask2Former(Geneval.tiny().detector.network, short=384, longest=384)
    image = PICTURE("square", 384, 384)
    with torch.no_grad():
        found = detector(image, THINGS)
        made = detector.network(pixel_values=detector.pixels(image))
    (told,) = Mask2FormerImageProcessor().post_process_instance_segmentation(
        made, threshold=0.3, return_binary_maps=True, target_sizes=[(384, 384)]
    )
    expected = {
        (THINGS[each["label_id"]], each["score"]): told["segmentation"][each["id"]] for each in told["segments_info"]
    }
    ours = {(thing, round(each.score, 6)): each.mask for thing, group in found.items() for each in group}
    assert len(ours) == len(expected) > 5
    for (thing, score), mask in expected.items():
        near = [held for (name, value), held in ours.items() if name == thing and abs(value - score) < 2e-6]
        assert any(np.array_equal(held, mask.numpy().astype(bool)) for held in near)


@pytest.mark.parametrize("size", [(120, 90), (64, 200), (37, 53), (256, 256)])
def test_boxes_lie_where_the_things_are(size: tuple[int, int]) -> None:
    """Of pictures of any shape the box found is that of what is bright, and what is filled up is none of it."""
    width, height = size
    box = (width // 4, height // 2, width, height)  # to the corner beside which the picture is filled up
    image = Image.new("RGB", size)
    image.paste("white", box)
    classes = torch.full([1, 81], -20.0)
    classes[0, THINGS.index("dog")] = 20
    (found,) = Mask2Former(Answer(classes), short=200, longest=330)(image, ["dog"])["dog"]
    np.testing.assert_allclose(found.box, box, atol=0.04 * max(size))
    assert found.mask is not None
    assert found.mask.shape == (height, width)
    dark = Mask2Former(Answer(classes), short=64, longest=96)(Image.new("RGB", size), ["dog"])
    assert dark == {}  # a mask without a pixel is no thing


def test_sizes_of_what_the_detector_sees() -> None:
    """The shorter side becomes 800 pixels, or the longer 1333, rounded as in mmdetection and detectron2."""
    detector = Mask2Former(Answer(torch.zeros(1, 81)))
    sizes = {(512, 512): (800, 800), (1024, 768): (1067, 800), (1000, 401): (1333, 535), (1, 10000): (1, 1333)}
    assert {size: detector.fitted(*size) for size in sizes} == sizes


def test_a_detector_of_other_classes_is_refused() -> None:
    """A panoptic checkpoint of 133 classes is a ValueError, as its numbers would name other things."""
    network = Answer(torch.zeros(1, 134))
    network.config = SimpleNamespace(num_labels=133)
    with pytest.raises(ValueError, match="80 things is needed, got one of 133 classes"):
        Mask2Former(network)


def test_colours_are_those_of_open_clips_own_classifier() -> None:
    """Directions are what open_clip's zero-shot classifier makes of the same templates."""
    from open_clip import build_zero_shot_classifier

    reward = Geneval.tiny()
    own = ["a photo of a {} wine glass", "a photo of a {}-colored wine glass", "a photo of a {} object"]
    expected = build_zero_shot_classifier(reward.clip, tokenizer(), COLOURS, own)
    with torch.no_grad():
        torch.testing.assert_close(reward._directions("wine glass"), expected.T)


class ByMean(nn.Module):
    """A CLIP that sees the mean colour of a picture, and reads the first colour of a text."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))

    def encode_text(self, ids: Tensor) -> Tensor:
        texts = [tokenizer().decode(row[row > 0].tolist()) for row in ids]
        colours = [next(colour for colour in COLOURS if f" {colour}" in text) for text in texts]
        plain = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in colours]
        pixels = torch.tensor(plain).float()[:, :, None, None].expand(-1, -1, 224, 224) / 255
        return Geneval.preprocess.differentiable(pixels).mean((2, 3))


def test_a_colour_is_that_of_the_thing_alone() -> None:
    """Colours beside the box and beside the mask have no say, and each thing has its own."""
    reward = Geneval.of(Mask2Former(Answer(torch.zeros(1, 81))), ByMean(), preprocess=Geneval.preprocess)
    image = Image.new("RGB", (120, 80), "green")
    group = []
    for left, colour in ((10, "red"), (70, "blue")):
        image.paste(colour, (left, 20, left + 30, 60))
        image.paste("yellow", (left, 20, left + 10, 60))
        mask = np.zeros((80, 120), dtype=bool)
        mask[20:60, left + 10 : left + 30] = True
        group.append(Found(0.9, (left, 20, left + 30, 60), mask))
    assert reward.colours(image, "wine glass", group) == ["red", "blue"]


def test_what_is_cut_out() -> None:
    """The picture in the box, grey beyond the mask; of a very long box the middle."""
    image = PICTURE("long", 300, 20)
    mask = np.zeros((20, 300), dtype=bool)
    mask[5:10, 30:40] = True
    cut = cut_out(image, Found(0.9, (25, 5, 45, 12), mask))
    assert cut.size == (20, 7)
    expected = np.full((7, 20, 3), 153, dtype=np.uint8)
    expected[:5, 5:15] = np.asarray(image)[5:10, 30:40]
    assert np.array_equal(np.asarray(cut), expected)
    assert cut_out(image, Found(0.9, (0, 4, 300, 6))).size == (128, 2)
    np.testing.assert_array_equal(
        np.asarray(cut_out(image, Found(0.9, (0, 4, 300, 6)))), np.asarray(image)[4:6, 86:214]
    )
    assert cut_out(image.transpose(Image.Transpose.ROTATE_90), Found(0.9, (4, 0, 6, 300))).size == (2, 128)


def rigged(kind: type[Geneval], found: dict[str, Sequence[Found]], colour: str = "red") -> Geneval:
    """The reward with a detector that finds these things, all of one colour."""
    reward = kind.of(Mask2Former(Answer(torch.zeros(1, 81))), nn.Identity(), preprocess=kind.preprocess)
    reward.detector = lambda image, things: {t: group for t, group in found.items() if t in things}  # type: ignore[assignment, misc]
    reward.colours = lambda image, thing, group: [colour] * len(group)  # type: ignore[method-assign]
    return reward


@pytest.mark.parametrize(
    ("prompt", "strict", "soft", "flow"),
    [
        ("a photo of a dog", 1, 0, 0),  # two are there
        ("a photo of two dogs", 0, 0.5, 0.5),  # one is sure enough to be counted
        ("a photo of a cat", 1, 1, 1),
        ("a photo of a bird and a cat", 0, 0.5, 0.5),
        ("a photo of a red cat", 1, 1, 1),
        ("a photo of a blue cat", 0, 0.5, 0.5),
        ("a photo of a cat left of a bus", 1, 1, 1),
        ("a photo of a cat right of a bus", 0, 2 / 3, 0.75),
        ("a photo of a red cat and a blue bus", 0, 0.75, 0.75),
    ],
)
def test_scores_of_known_things(prompt: str, strict: float, soft: float, flow: float) -> None:
    """Each category's prompt is judged by what was found, with the reason as the strict reward's note."""
    dogs = [Found(0.95, (0, 0, 9, 9)), Found(0.5, (50, 0, 59, 9))]
    found = {"dog": dogs, "cat": [Found(0.8, (0, 0, 9, 9))], "bus": [Found(0.8, (50, 0, 59, 9))]}
    values, (note,) = rigged(Geneval, found).score([SQUARE], [prompt])
    assert values.tolist() == [strict]
    assert (note == "") == bool(strict)
    for kind, expected in ((GenevalSoft, soft), (GenevalFlowGrpo, flow)):
        assert rigged(kind, found).score([SQUARE], [prompt]).values.tolist() == [pytest.approx(expected)]


def test_an_unknown_prompt_is_no_score() -> None:
    """A prompt of which nothing is known gets NaN and a note, its neighbours their score."""
    values, notes = Geneval.tiny().score([SQUARE] * 3, ["a dog", "a photo of a dog", ""])
    assert [math.isnan(value) for value in values] == [True, False, True]
    assert notes[0] == notes[2] == geneval.UNKNOWN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the published layouts: transformers' of the tiny detector, and open_clip's of the tiny CLIP."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("geneval")
    reward = Geneval.tiny()
    reward.detector.network.save_pretrained(path)
    save_file(reward.clip.state_dict(), path / "open_clip_model.safetensors")
    return path


@pytest.fixture
def small_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geneval, "architecture", lambda name: {**SMALL, "quick_gelu": "quickgelu" in name})


@pytest.mark.usefixtures("small_clip")
def test_a_published_folder_is_loaded_whole(folder: Path, tmp_path: Path) -> None:
    """From the published layouts come the networks that were saved, also from a file like the published one.

    That is torch's own, holds Swin's constants, and lacks the normalisation that later releases put behind its states.
    """
    from safetensors.torch import load_file

    image = PICTURE("a", 60, 50)
    tensors = load_file(folder / "model.safetensors")
    assert any("attention.self.query.weight" in key for key in tensors)  # as in transformers of its time
    for name in ("config.json", "open_clip_model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    old = {key: value for key, value in tensors.items() if "swin.layernorm" not in key}
    assert len(old) == len(tensors) - 2
    index = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    torch.save(old | {index: torch.zeros(16, 16, dtype=torch.int64)}, tmp_path / "pytorch_model.bin")
    tiny = Geneval.tiny()
    for path in (folder, tmp_path):
        loaded = load(f"geneval.strict@{path}")
        assert isinstance(loaded, Geneval)
        assert loaded.detector.fitted(512, 512) == (800, 800)
        loaded.detector.short, loaded.detector.longest, loaded.preprocess = 48, 96, tiny.preprocess  # type: ignore[misc]
        with torch.no_grad():
            (first, expected) = (each.detector(image, ["wine glass"])["wine glass"] for each in (loaded, tiny))
            assert [each.score for each in first] == pytest.approx([each.score for each in expected], rel=1e-5)
            assert loaded.colours(image, "dog", first) == tiny.colours(image, "dog", expected)


@pytest.mark.usefixtures("small_clip")
def test_a_key_too_few_is_refused(folder: Path, tmp_path: Path) -> None:
    """Of the detector as of CLIP, a missing key is counted and named."""
    from safetensors.torch import load_file, save_file

    for file, match in (
        ("model.safetensors", r"geneval.soft needs a checkpoint that fills its network, got 1 keys"),
        ("open_clip_model.safetensors", r"CLIP of geneval.soft cannot take this checkpoint: of its keys, 1 missing"),
    ):
        for each in folder.iterdir():
            (tmp_path / each.name).write_bytes(each.read_bytes())
        tensors = load_file(folder / file)
        del tensors[max(tensors)]
        save_file(tensors, tmp_path / file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=match):
            load(f"geneval.soft@{tmp_path}")


@pytest.mark.usefixtures("small_clip")
def test_facts_come_from_the_file_first(folder: Path, tmp_path: Path) -> None:
    """A prompt of the metadata has the facts of its record, whatever it says; another those of its template."""
    record = records(1)[0]
    file = tmp_path / "metadata.jsonl"
    lines = [record | {"prompt": "my words"}, record | {"prompt": "a photo of a toaster"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    reward = load(f"geneval.strict@{folder}", metadata=file)
    assert isinstance(reward, Geneval)
    facts = reward.facts("my words")
    assert facts is not None
    assert facts.include[0].thing == record["include"][0]["class"] != "toaster"
    assert reward.facts("a photo of a toaster") == facts
    assert reward.facts("a photo of two dogs") is not None
    assert reward.facts("my other words") is None


def test_the_published_sizes_and_licences() -> None:
    """The detector of transformers' default configuration for 80 classes weighs what the file does; both are told."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    options: dict[str, Any] = {"num_labels": 80}
    with torch.device("meta"):
        network: Any = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**options))
    numbers = sum(parameter.numel() for parameter in network.parameters())
    detector, clip = weights_of(Geneval)
    assert detector.megabytes == pytest.approx(4 * numbers / 1e6, rel=0.003)
    assert (detector.source, detector.licence) == ("facebook/mask2former-swin-small-coco-instance", "CC-BY-NC-4.0")
    assert (clip.source, clip.licence) == ("timm/vit_large_patch14_clip_224.openai", "MIT")
    assert Geneval.spec.licence == "CC-BY-NC-4.0 (detector), MIT (CLIP)"

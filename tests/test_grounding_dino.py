"""T2I-R1's detector reward: the scores of its own code, what is mended in it, and the network's boxes."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_convert

from rwk.adapters.blip_towers import small_tokenizer
from rwk.adapters.grounding_dino import GroundingDino, GroundingDinoPublished, bare_nouns
from rwk.adapters.grounding_rules import ABOVE, Boxes, Wanted, placed, read_wanted, score
from rwk.adapters.noun_phrases import noun_phrases
from rwk.rewards.registry import load

CASE = runpy.run_path(str(Path(__file__).with_name("grounding_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "grounding_dino.json").read_text())
CASES = CASE["cases"]()
SQUARE = Image.new("RGB", (64, 64))


class Given(nn.Module):
    """Answers with the logits and boxes that it is told, whatever it is shown."""

    config = SimpleNamespace(max_text_len=256)
    logits: Tensor
    boxes: Tensor

    def forward(self, pixel_values: Tensor, input_ids: Tensor, **ignored: Tensor) -> Any:
        logits = self.logits.clone()
        logits[:, input_ids.shape[1] :] = -torch.inf
        return SimpleNamespace(logits=logits[None], pred_boxes=self.boxes[None])


def scored(kind: type[GroundingDino], cases: list[Any] = CASES) -> list[float]:
    """The scores of recorded cases, as the reward computes them for a square picture."""
    network = Given()
    reward = kind.of(network, small_tokenizer((*CASE["NOUNS"], ".")), short=8, longest=8)
    reward.metadata = {case.record["prompt"]: read_wanted(case.record) for case in cases}
    values = []
    for case in cases:
        network.logits, network.boxes = torch.tensor(case.logits), torch.tensor(case.boxes)
        values += reward.score([SQUARE], [case.record["prompt"]]).values.tolist()
    return values


def test_scores_are_those_of_the_authors_code(record_property: Any) -> None:
    """With one network's answers, T2I-R1's code and the published variant give one score, for each of the three tasks.

    The nouns have one to three words, and capitals; the boxes overlap; there are all of T2I-R1's words for a place.
    """
    official = torch.tensor(RECORDED["scores"])
    assert [len(set(part.tolist())) >= 4 for part in official.split(CASE["EACH"])] == [True] * 3
    found = torch.tensor(scored(GroundingDinoPublished))
    AGREE(record_property, GroundingDinoPublished.spec.name, RECORDED, found, official, atol=2e-6)


def test_each_mended_rule_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward is the published variant with four rules changed, and each of the four alone changes some score."""
    official = RECORDED["scores"]
    for change in ({"above": ABOVE}, {"side": 480.0}, {"corners": True}, {"long": True}):
        monkeypatch.setattr(GroundingDino, "rules", replace(GroundingDinoPublished.rules, **change))  # type: ignore[arg-type]
        different = [
            c.record for c, a, b in zip(CASES, scored(GroundingDino), official, strict=True) if abs(a - b) > 1e-3
        ]
        assert different, change
        if "above" in change:
            assert {words_of_place(record) for record in different} <= {"above", "on top of"}
        if "side" in change:
            assert {words_of_place(record) for record in different} <= {"near", "next to", "on side of"}
        if "corners" in change:
            assert {record["task_type"] for record in different} == {"numeracy"}
        if "long" in change:
            assert all("toy train set" in record["nouns"] for record in different)


def words_of_place(record: Mapping[str, Any]) -> str | None:
    return record["spatial_info"]["locality"] if record["task_type"] == "spatial" else None


def at(x: float, y: float, size: float = 0.1) -> Boxes:
    return Boxes(torch.tensor([[x, y, size, size]]), torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("place", "first", "expected"),
    [
        ("left of", (0.2, 0.5), 0.9),
        ("on the left of", (0.8, 0.5), 0.4),
        ("right of", (0.8, 0.5), 0.9),
        ("above", (0.5, 0.1), 0.9),
        ("on top of", (0.5, 0.1), 0.9),
        ("on the top of", (0.5, 0.9), 0.4),
        ("below", (0.5, 0.9), 0.9),
        ("on the bottom of", (0.5, 0.1), 0.4),
        ("left of", (0.2, 0.9), 0.4),  # farther down than to the left
        ("next to", (0.75, 0.5), 0.9),
        ("near", (0.05, 0.95), 0.4 + 0.5 * 150 / (0.45 * 480)),
        ("near", (0.5, 0.99), 0.9),  # along one axis is enough, as in T2I-CompBench
    ],
)
def test_places(place: str, first: tuple[float, float], expected: float) -> None:
    """Half a point for the place beside two fifths for the things, by the words for it."""
    found = {"dog": at(*first), "cat": at(0.5, 0.5)}
    wanted = Wanted(("dog", "cat"), place=("dog", "cat", place))
    assert score(found, wanted, size=(64, 64)) == pytest.approx(expected)


def test_places_are_measured_in_the_picture() -> None:
    """In a wide picture a share of the width is farther than the same share of the height."""
    found, wanted = {"dog": at(0.2, 0.85), "cat": at(0.5, 0.5)}, Wanted(("dog", "cat"), place=("dog", "cat", "left of"))
    assert score(found, wanted, size=(64, 64)) == pytest.approx(0.4)
    assert score(found, wanted, size=(128, 64)) == pytest.approx(0.9)


def test_overlap_takes_from_a_direction() -> None:
    """From a tenth of overlap on a direction counts a tenth by the overlap."""
    assert placed((0, 0, 10, 10), (9, 0, 19, 10), "left of") == 1.0  # 10 of 190
    assert placed((0, 0, 10, 10), (5, 0, 15, 10), "left of") == pytest.approx(0.1 / (50 / 150))
    assert placed((0, 0, 0, 0), (5, 0, 5, 0), "left of") == 1.0


def test_numbers() -> None:
    """A thing counts once however many boxes it has; the right number is 1, another 0.2, none 0."""
    one, two = torch.tensor([[0.2, 0.2, 0.1, 0.1]]), torch.tensor([[0.8, 0.8, 0.1, 0.1]])
    found = Boxes(torch.cat([one, two, one + 0.01]), torch.tensor([0.9, 0.8, 0.7]))
    for count, expected in ((2, 1.0), (3, 0.2), (1, 0.2)):
        assert score({"dog": found}, Wanted(("dog",), (("dog", count),)), size=(9, 9)) == expected
    for shift, count in ((0.031, 1), (0.036, 2)):  # 0.53 and 0.47 of overlap
        pair = Boxes(torch.cat([one, one + torch.tensor([shift, 0, 0, 0])]), torch.tensor([0.9, 0.8]))
        assert score({"dog": pair}, Wanted(("dog",), (("dog", count),)), size=(9, 9)) == 1.0
    both = Wanted(("dog", "cat"), (("dog", 2), ("cat", 1)))
    assert score({"dog": found}, both, size=(9, 9)) == 0.5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"nouns": None}, "needs nouns"),
        ({"nouns": [1]}, "needs nouns"),
        ({"task_type": "numeracy"}, "numeracy_info or spatial_info"),
        ({"task_type": "numeracy", "numeracy_info": [{"obj_name": "dog"}]}, "numeracy_info or spatial_info"),
        ({"task_type": "spatial"}, "numeracy_info or spatial_info"),
        ({"task_type": "spatial", "spatial_info": {"obj1": "a", "obj2": "b", "locality": "in"}}, "in T2I-R1's words"),
        ({"task_type": "spatial", "spatial_info": {"obj1": "a", "obj2": "a", "locality": "near"}}, "of two things"),
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, Any], match: str) -> None:
    """A record without what its task needs, or with a place that no rule knows, is a ValueError."""
    record: Mapping[str, Any] = {"prompt": "a dog", "nouns": ["dog", "dog"], "task_type": "object"}
    assert read_wanted(record) == Wanted(("dog",))
    with pytest.raises(ValueError, match=match):
        read_wanted({**record, **change})


def test_pictures_are_resized_as_the_authors_do() -> None:
    """Sizes and pixels are those of T2I-R1's own transform, and of transformers' processor for this network."""
    from transformers import GroundingDinoImageProcessor

    reward = GroundingDino.of(nn.Identity(), None, short=800, longest=1333)
    processor = GroundingDinoImageProcessor()
    for image, size, sample in zip(CASE["pictures"](), RECORDED["sizes"], RECORDED["samples"], strict=True):
        pixels = reward.pixels(image)
        assert [pixels.shape[3], pixels.shape[2]] == size
        torch.testing.assert_close(
            pixels.flatten()[:: pixels.numel() // 7][:7], torch.tensor(sample), rtol=0, atol=1e-5
        )
        theirs = processor(image, return_tensors="pt")["pixel_values"]
        if theirs.shape != pixels.shape:  # of 300x700, where theirs is a row longer
            assert image.size == (300, 700)
            continue
        assert (theirs - pixels).abs().max() < 2.5 / 255 / 0.224  # their resize rounds unlike Pillow's
    assert reward.fitted(10000, 1) == (1333, 1)


def test_boxes_are_those_of_transformers() -> None:
    """For one picture and text, boxes and scores are those that transformers' own processor makes of the network."""
    from transformers import GroundingDinoImageProcessor, GroundingDinoProcessor

    reward = GroundingDino.tiny()
    image = CASE["pictures"]()[1]
    size = {"shortest_edge": 64, "longest_edge": 112}
    processor: Any = GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), reward.tokenizer)
    read = processor(images=image, text="dog. green ball.", return_tensors="pt")
    assert read["input_ids"].tolist() == [reward.tokenizer("dog . green ball.")["input_ids"]]
    read["pixel_values"] = reward.pixels(image)
    with torch.no_grad():
        (told,) = processor.post_process_grounded_object_detection(
            reward.network(**read), threshold=-1.0, target_sizes=[(image.height, image.width)]
        )
        likely = reward.network(**read).logits[0].sigmoid()
        found = reward.found(image, ["dog", "green ball"])
    for noun, tokens in (("dog", [1]), ("green ball", [3, 4])):
        scores = likely[:, tokens].mean(1)
        kept = scores > 0.3
        assert kept.any()
        corners = box_convert(found[noun].boxes, "cxcywh", "xyxy") * torch.tensor([*image.size, *image.size])
        torch.testing.assert_close(corners, told["boxes"][kept], rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(found[noun].scores, scores[kept], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers publishes it, of the tiny network."""
    path = tmp_path_factory.mktemp("grounding-dino")
    reward = GroundingDino.tiny()
    reward.network.save_pretrained(path)
    reward.tokenizer.save_pretrained(path)
    return path


def test_a_published_folder_is_loaded_whole(folder: Path) -> None:
    """From the published layout come the network and tokenizer that were saved, and a key too few is an error."""
    from safetensors.torch import load_file, save_file

    image = CASE["pictures"]()[0]
    tiny, loaded = GroundingDino.tiny(), load(f"grounding_dino.t2i_r1@{folder}")
    assert isinstance(loaded, GroundingDino)
    tiny.short, tiny.longest = loaded.short, loaded.longest = 64, 112
    with torch.no_grad():
        expected, found = tiny.found(image, ["dog"])["dog"], loaded.found(image, ["dog"])["dog"]
    torch.testing.assert_close(found, expected)
    tensors = load_file(folder / "model.safetensors")
    assert tensors.pop("model.backbone.conv_encoder.model.swin.layernorm.weight").numel() == 64  # not in the published
    assert tensors.pop("model.backbone.conv_encoder.model.swin.layernorm.bias").numel() == 64
    key = next(key for key in tensors if "attention.self.query.weight" in key)  # as in transformers of its time
    value = tensors.pop(key)
    (folder / "broken").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / "broken" / name).write_bytes((folder / name).read_bytes())
    save_file(tensors, folder / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"grounding_dino.t2i_r1 needs a checkpoint that fills its network, got 1 keys"
    ):
        load(f"grounding_dino.t2i_r1@{folder / 'broken'}")
    save_file(tensors | {key: value[:1].clone()}, folder / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"got 1 keys that are missing, not wanted or of another shape"):
        load(f"grounding_dino.t2i_r1@{folder / 'broken'}")


def test_a_folder_of_another_model_is_told_by_its_config(folder: Path, tmp_path: Path) -> None:
    """Before a network is built of settings that are not its own; and a config.json that is none."""
    for text, match in (
        ('{"model_type": "clip"}', r"grounding_dino.t2i_r1 needs a checkpoint of grounding-dino, got one of clip in"),
        ("[1]", r"config.json must be a JSON object with a model_type, got .*; copy it anew"),
        ("{", r"config.json must be a JSON object with a model_type, got Expecting property name"),
    ):
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=match):
            load(f"grounding_dino.t2i_r1@{tmp_path}")


def test_facts_come_from_the_file_or_the_prompt(folder: Path, tmp_path: Path) -> None:
    """A prompt with a record has its nouns and task, another its bare noun phrases, or those of the user's function."""
    records = [case.record for case in CASES[:: CASE["EACH"]]]
    file = tmp_path / "prompts.json"
    file.write_text("\n".join(map(json.dumps, records)))
    reward = load(f"grounding_dino.t2i_r1@{folder}", metadata=file)
    assert isinstance(reward, GroundingDino)
    assert [reward.wanted(record["prompt"]) for record in records] == [read_wanted(record) for record in records]
    assert reward.wanted("a red dog and a red dog on top of a bed") == Wanted(("red dog", "bed"))
    reward.nouns = noun_phrases
    assert reward.wanted("a red dog") == Wanted(("a red dog",))


def test_bare_nouns() -> None:
    """Articles, numbers and phrases for a place fall away; what stands alone stays."""
    assert bare_nouns("The red hat, two dogs and cheese on the side of some tea") == [
        "red hat",
        "dogs",
        "cheese",
        "tea",
    ]
    assert bare_nouns("of the and") == []


def test_no_score_has_a_note() -> None:
    """A prompt without a noun, or with more than the network reads, gets NaN and says why; its neighbour a score."""
    reward = GroundingDino.tiny()
    values, notes = reward.score([SQUARE] * 3, ["of the", "a dog", ", ".join(f"a dog{'y' * i}" for i in range(60))])
    assert [math.isnan(value) for value in values] == [True, False, True]
    assert notes[:2] == ["the prompt has no noun, so there is nothing to look for", ""]
    assert notes[2].endswith("tokens, and the detector reads 256")


def test_the_published_size() -> None:
    """The network of the published configuration, which is transformers' default, weighs what the file does."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    with torch.device("meta"):
        network: Any = GroundingDinoForObjectDetection(GroundingDinoConfig())
    numbers = sum(parameter.numel() for parameter in network.parameters())
    assert GroundingDino.origin.megabytes == pytest.approx(4 * numbers / 1e6, rel=0.003)

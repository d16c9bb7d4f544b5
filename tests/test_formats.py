"""Published sets of preferences: each in exactly its own format, told by its columns, with its ties and votes."""

from __future__ import annotations

import itertools
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.rewards import pictures
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.formats import FORMATS, is_data, read
from rwk.rewards.picture_store import PictureStore
from rwk.rewards.pictures import Stored
from rwk.rewards.trainable import Preprocessing

CASE = runpy.run_path(str(Path(__file__).with_name("formats_case.py")))
SHADES, encoded, held, parquet, pick, told, left_out = (
    CASE[name] for name in ("SHADES", "encoded", "held", "parquet", "pick", "told", "left_out")
)


def put(folder: Path, *paths: str) -> None:
    """Writes pictures; the letter that each is called by, or that its folder is, says which."""
    for path in paths:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(place.stem if place.stem in SHADES else place.parent.name))


def written(path: Path, content: Any) -> Path:
    """The JSON file."""
    path.write_text(json.dumps(content))
    return path


def drawn_by(data: PreferenceDataset) -> set[tuple[str, str]]:
    """The generators of the two images of a row."""
    return {(row.generator_first, row.generator_second) for row in data}


def test_pick_a_pic(tmp_path: Path) -> None:
    """Bytes in columns, a tie as a half, weights of one over the prompt's rows, and unlabelled rows counted."""
    rows = [
        pick("a", "b", 1.0, num_example_per_prompt=4),
        pick("c", "a", 0.5),
        pick("d", "e", 0.0, caption="a cat"),
        pick("d", "e", 0.0, has_label=False),
    ]
    data = read(parquet(tmp_path / "validation.parquet", rows))
    assert told(data) == [("a dog", "a", "b", 1, 0.25), ("a dog", "c", "a", 0.5, 1), ("a cat", "d", "e", 0, 1)]
    assert left_out(data) == {"nobody judged the pair": 1}
    assert data[0].first is data[1].second
    path = parquet(tmp_path / "named.parquet", [pick("a", "b", 1.0, model_0="sd1", model_1="sdxl")])
    assert drawn_by(read(path)) == {("sd1", "sdxl")}


def test_pick_a_pic_without_images_looks_for_their_uid(tmp_path: Path) -> None:
    """The pictures of the smaller files lie in a folder, and what does not is counted and named."""
    rows = [pick("a", "b", 1.0), pick("a", "c", 0.0)]
    for row in rows:
        del row["jpg_0"], row["jpg_1"]
    path = parquet(tmp_path / "train.parquet", rows)
    with pytest.raises(
        ValueError, match=r"at least one preference, got none: 2 left out as .* is missing \(first: row 1"
    ):
        read(path)
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"u-{name}.png").write_bytes(encoded(name))
    data = read(path)
    assert told(data) == [("a dog", "a", "b", 1, 1)]
    assert str(data.omissions) == "1 left out as an image of theirs is missing (first: row 2, u-c)"


def test_hpdv2_training(tmp_path: Path) -> None:
    """train.json is one-hot, with its images in `train`, under either name of their column."""
    put(tmp_path / "train", "a.jpg", "b.jpg")
    rows = [
        {"prompt": "a dog", "human_preference": [0, 1], "file_path": ["a.jpg", "b.jpg"]},
        {"prompt": "a cat", "human_preference": [1, 0], "image_path": ["a.jpg", "b.jpg"]},
    ]
    data = read(written(tmp_path / "train.json", rows))
    assert told(data) == [("a dog", "a", "b", 0, 1), ("a cat", "a", "b", 1, 1)]


def test_hpdv2_test(tmp_path: Path) -> None:
    """A smaller rank is better, all pairs of a prompt weigh 1 together, and votes are told on demand."""
    put(tmp_path / "test", "a.jpg", "b.jpg", "c.jpg")
    ranks = [[2, 1, 3], [1, 2, 3], [2, 1, 1]]
    row = {
        "prompt": "a dog",
        "image_path": ["a.jpg", "b.jpg", "c.jpg"],
        "rank": [2, 1, 3],
        "raw_annotations": [{"rank": of, "user_hash": f"{place}"} for place, of in enumerate(ranks)],
    }
    path = written(tmp_path / "test.json", [row])
    third = round(1 / 3, 6)
    ranked = [("a dog", "a", "b", 0, third), ("a dog", "a", "c", 1, third), ("a dog", "b", "c", 1, third)]
    assert told(read(path)) == told(read(f"hpdv2:{path}")) == ranked
    votes = told(read(f"hpdv2.votes:{path}"))
    assert [row[3] for row in votes] == [third, round(2 / 3, 6), round(2.5 / 3, 6)]
    with pytest.raises(ValueError, match="raw_annotations must rank all 3 images"):
        read(f"hpdv2.votes:{written(path, [row | {'raw_annotations': [{'rank': [1, 2]}]}])}")


def test_hpdv3(tmp_path: Path) -> None:
    """The first path is the preferred one, votes make soft labels, and only the aspect drops unsure pairs."""
    put(tmp_path, "images/a.jpg", "images/b.jpg")
    row = {"prompt": "a dog", "path1": "images/a.jpg", "path2": "images/b.jpg", "model1": "flux", "model2": "sd3"}
    rows = [
        row | {"confidence": 0.99, "choice_dist": [9, 1]},
        row | {"confidence": 0.9, "choice_dist": [1, 3]},
        row | {"confidence": None, "choice_dist": None},
    ]
    path = written(tmp_path / "train.json", rows)
    assert [of[1:4] for of in told(read(path))] == [("a", "b", 0.9), ("a", "b", 0.75), ("a", "b", 1)]
    assert drawn_by(read(path)) == {("flux", "sd3")}
    confident = read(f"hpdv3.confident:{path}")
    assert [of[3] for of in told(confident)] == [0.9, 1]
    assert left_out(confident) == {"their confidence is below 0.95": 1}
    lines = tmp_path / "plus.json"
    lines.write_text("".join(json.dumps({key: row[key] for key in ("path1", "path2", "prompt")}) + "\n" for _ in "12"))
    assert len(read(lines)) == 2


def test_imagereward_repository(tmp_path: Path) -> None:
    """The repository's test.json: ranks have gaps, equal ones are ties, and a picture that is missing is counted."""
    put(tmp_path, "images/part/a.webp", "images/part/b.webp", "images/part/c.webp")
    row = {"id": "005658-0040", "prompt": "a dog", "ranking": [1, 5, 5, 3]}
    path = written(
        tmp_path / "test.json", [row | {"generations": [f"part/{name}.webp" for name in ("a", "b", "c", "none")]}]
    )
    data = read(path)
    assert [of[1:4] for of in told(data)] == [("a", "b", 1), ("a", "c", 1), ("b", "c", 0.5)]
    assert left_out(data) == {"an image of theirs is missing": 3}
    with pytest.raises(ValueError, match=r"item 1: needs one rank or rating an image, got 4 images and 2 of them"):
        read(written(path, [row | {"generations": ["a", "b", "c", "d"], "ranking": [1, 2]}]))


def reward_row(name: str, rank: int, prompt_id: str = "0-1", **more: Any) -> dict[str, Any]:
    """A row of ImageRewardDB's per-image JSON."""
    ratings = {"overall_rating": 8 - rank, "image_text_alignment_rating": 4, "fidelity_rating": rank}
    about = {"prompt_id": prompt_id, "prompt": "a dog", "classification": "People", "image_amount_in_total": 3}
    return {"image_path": f"images/train/train_1/{name}.webp", **about, "rank": rank, **ratings} | more


def test_imagereward_images(tmp_path: Path) -> None:
    """Images beside the JSON of their zip make pairs within their prompt, by rank or by a rating."""
    put(tmp_path, "a.webp", "b.webp", "c.webp", "d.webp")
    rows = [reward_row("a", 2), reward_row("d", 1, "0-2"), reward_row("b", 1), reward_row("c", 2)]
    path = written(tmp_path / "train_1.json", rows)
    data = read(path)
    assert [of[1:4] for of in told(data)] == [("a", "b", 0), ("a", "c", 0.5), ("b", "c", 1)]
    assert left_out(data) == {"they are the only rated image of their prompt": 1}
    assert data.places[0] == "item 1 and item 3"
    assert [of[3] for of in told(read(f"imagereward.fidelity:{path}"))] == [1, 0.5, 0]
    assert [of[3] for of in told(read(f"imagereward.alignment:{path}"))] == [0.5, 0.5, 0.5]


def test_imagereward_on_the_hub(tmp_path: Path) -> None:
    """Images, groups and pairs as `datasets` gives them: encoded images in columns, alone or in lists."""
    rows = [
        {key: of for key, of in reward_row(n, r, image=held(n)).items() if key != "image_path"}
        for n, r in (("a", 2), ("b", 1))
    ]
    assert told(read(parquet(tmp_path / "1k.parquet", rows)))[0][1:4] == ("a", "b", 0)
    group = {key: value for key, value in rows[0].items() if "rating" not in key and key != "image_amount_in_total"}
    group |= {"image": [held("c"), held("d"), held("a")], "rank": [1, 2, 2]}
    grouped = read(parquet(tmp_path / "1k_group.parquet", [group]))
    assert [of[1:4] for of in told(grouped)] == [("c", "d", 1), ("c", "a", 1), ("d", "a", 0.5)]
    pair = {"prompt_id": "0-1", "prompt": "a dog", "classification": "People"}
    pairs = read(parquet(tmp_path / "1k_pair.parquet", [pair | {"img_better": held("e"), "img_worse": held("f")}]))
    assert told(pairs) == [("a dog", "e", "f", 1, 1)]


def test_genai_bench(tmp_path: Path) -> None:
    """Three ratings an image make pairs by their mean; equal means are ties; the JSON and the hub's table agree."""
    ratings = {"DALLE_3": [5, 4, 4], "SDXL_Turbo": [4, 5, 4], "SDXL_Base": [1, 2, 2]}
    for name, model in zip("abc", ratings, strict=True):
        (tmp_path / model).mkdir()
        (tmp_path / model / "00007.jpeg").write_bytes(encoded(name))
    expected = [("a dog", "a", "b", 0.5, 1), ("a dog", "a", "c", 1, 1), ("a dog", "b", "c", 1, 1)]
    rows = {"00007": {"id": "00007", "prompt": "a dog", "models": ratings}}
    assert told(read(written(tmp_path / "genai_image.json", rows))) == expected
    assert drawn_by(read(tmp_path / "genai_image.json")) == set(itertools.combinations(ratings, 2))
    images = {model: held(name) for name, model in zip("abc", ratings, strict=True)}
    row = {"Index": "00007", "Prompt": "a dog", "Tags": {"basic_skills": ["scene"]}, "HumanRatings": ratings, **images}
    assert told(read(parquet(tmp_path / "bench.parquet", [row]))) == expected
    assert drawn_by(read(tmp_path / "bench.parquet")) == set(itertools.combinations(ratings, 2))


def test_genai_arena(tmp_path: Path) -> None:
    """Both kinds of "neither is better" are ties, and another vote is a bad row."""
    row = {"prompt": "a dog", "left_model": "x", "left_image": held("a"), "right_model": "y", "right_image": held("b")}
    votes = ("leftvote", "rightvote", "tievote", "bothbad_vote")
    path = tmp_path / "image_generation.parquet"
    assert [of[3] for of in told(read(parquet(path, [row | {"vote_type": vote} for vote in votes])))] == [
        1,
        0,
        0.5,
        0.5,
    ]
    assert drawn_by(read(path)) == {("x", "y")}
    with pytest.raises(ValueError, match="row 1: vote_type must be one of leftvote, .* got 'nobody'"):
        read(parquet(path, [row | {"vote_type": "nobody"}]))


def test_mj_bench(tmp_path: Path) -> None:
    """The label is the number of the preferred image, in the hub's table and in the repository's JSON."""
    row = {"caption": "a dog", "image0": held("a"), "image1": held("b"), "info": ""}
    path = parquet(tmp_path / "alignment.parquet", [row | {"label": 1}, row | {"label": 0}])
    assert [of[1:4] for of in told(read(path))] == [("a", "b", 0), ("a", "b", 1)]
    put(tmp_path, "images/a.jpg", "images/b.jpg")
    item = {"id": "pap_0", "source": "pick_a_pic", "caption": "a dog", "image0": "a.jpg", "image1": "b.jpg"}
    assert told(read(written(tmp_path / "actions_test.json", [item | {"label": 0}])))[0][3] == 1
    with pytest.raises(ValueError, match="item 1: label must be 0 or 1, got 2"):
        read(written(tmp_path / "actions_test.json", [item | {"label": 2}]))


def mmrb(ratings: list[int], chosen: str, **more: Any) -> dict[str, Any]:
    """A pair of MMRB2's t2i.json."""
    sides = {
        f"response_{side}": {"model_name": "imagen4", "response_content": [["image", f"images/{name}.jpg"]]}
        for side, name in (("a", "a"), ("b", "b"))
    }
    about = {"id": "x", "prompt_source": "wise", "prompt_content": [["text", "a dog"]], "prompt_metadata": {"id": "1"}}
    return {**about, **sides, "chosen": chosen, "human_annotations": ratings} | more


def test_mmrb2(tmp_path: Path) -> None:
    """Ratings above the middle are votes for A, other tasks are counted, and a label they deny is a bad row."""
    put(tmp_path, "images/a.jpg", "images/b.jpg")
    path = tmp_path / "t2i.json"
    edited = mmrb([6, 6, 6], "A", prompt_content=[["text", "redder"], ["image", "input_images/c.jpg"]])
    pairs = [mmrb([6, 2, 5], "A"), mmrb([1, 1, 2], "B"), edited]
    data = read(written(path, {"pairs": pairs}))
    assert told(data) == [("a dog", "a", "b", round(2 / 3, 6), 1), ("a dog", "a", "b", 0, 1)]
    assert drawn_by(data) == {("imagen4", "imagen4")}
    assert left_out(data) == {"they are no single image for a text on each side": 1}
    with pytest.raises(ValueError, match="item 1: chosen is A, which human_annotations"):
        read(written(path, {"pairs": [mmrb([1, 2, 5], "A")]}))
    bare = {key: value for key, value in mmrb([6, 2, 5], "A").items() if key != "prompt_content"}
    with pytest.raises(ValueError, match="item 1: needs prompt_content, which a response_only file lacks"):
        read(written(path, {"pairs": [bare]}))
    hub = {"pair_id": "x", "prompt_text": "a dog", "prompt_images": [], "prompt_source": "wise", "chosen": "b"}
    hub |= {"response_a_text": "<image_1>", "response_a_images": [held("a")]}
    hub |= {"response_b_text": "<image_1>", "response_b_images": [held("b")], "human_annotations": "[3, 2, 4]"}
    assert told(read(parquet(tmp_path / "test.parquet", [hub])))[0][1:4] == ("a", "b", round(1 / 3, 6))


def test_evalmuse(tmp_path: Path) -> None:
    """Means over annotators make pairs within a prompt."""
    put(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg")
    rows = [
        {
            "prompt": "a dog",
            "img_path": f"images/{name}.jpg",
            "total_score": scores,
            "element_score": {"dog (animal)": [1]},
        }
        for name, scores in (("a", [1, 2, 3]), ("b", [2, 2, 2]), ("c", [5, 4, 5]))
    ]
    assert [of[1:4] for of in told(read(written(tmp_path / "train_list.json", rows)))] == [
        ("a", "b", 0.5),
        ("a", "c", 0),
        ("b", "c", 0),
    ]


def test_formats_are_told_and_named(tmp_path: Path) -> None:
    """What no format has is one sentence with the columns and all names; so are unknown names and aspects."""
    path = written(tmp_path / "rows.json", [{"image": "a.png", "score": 3}])
    with pytest.raises(ValueError, match="got image, score; give it the columns prompt, first") as caught:
        read(path)
    assert all(name in str(caught.value) for name in FORMATS)
    for source, said in (
        (f"hpdv9:{path}", "unknown format 'hpdv9' in hpdv9:"),
        (f"hpdv2.mean:{path}", "unknown format hpdv2.mean in .*; there is hpdv2.rank, hpdv2.votes"),
        (f"mjbench.x:{path}", "unknown format mjbench.x in .*; there is mjbench"),
        (f"hpdv3:{path}", r"item 1: needs path1, got columns image, score"),
        (written(tmp_path / "anime.json", ["a prompt"]), "item 1: a row must be an object with named columns, got str"),
    ):
        with pytest.raises(ValueError, match=said):
            read(source)
    path.write_text("[1,")
    with pytest.raises(ValueError, match=r"rows\.json must be JSON, got Expecting value"):
        read(path)
    with pytest.raises(FileNotFoundError, match="must be a file of preferences, got none"):
        read("hpdv2:none.json")
    assert [is_data(of) for of in ("hpdv2:x", "x.CSV", "hpsv2.v21", "my_module:Class", "a/folder")] == [True] * 2 + [
        False
    ] * 3


def test_stored_pictures_are_read_by_row_group(tmp_path: Path) -> None:
    """Rows hold no picture; opened in order, each row group is read once; a rewritten file is read anew."""
    names = "abcdefgh"
    rows = [pick(first, second, 1.0) for first, second in zip(names, names[1:], strict=False)]
    path = parquet(tmp_path / "many.parquet", rows, row_group=3)
    data, before = read(path), pictures._column.cache_info().misses
    assert all(isinstance(picture, Stored) for row in data for picture in (row.first, row.second))
    assert [of[1:3] for of in told(data)] == list(zip(names, names[1:], strict=False))
    assert pictures._column.cache_info().misses - before == 1 + 3  # a's, and all others where they came up first
    digest = data.digest()
    assert read(path).digest() == digest
    assert read(parquet(path, rows[::-1])).digest() != digest
    assert told(read(path))[0][1:3] == ("g", "h")


def test_training_reads_stored_pictures(tmp_path: Path) -> None:
    """What a network is shown of a picture inside Parquet is what it is shown of the same picture's file."""
    for name in "ab":
        (tmp_path / f"u-{name}.png").write_bytes(encoded(name))
    inside, outside = pick("a", "b", 1.0), pick("a", "b", 1.0)
    del outside["jpg_0"], outside["jpg_1"]
    shown = []
    for name, row in (("inside", inside), ("outside", outside)):
        data = read(parquet(tmp_path / f"{name}.parquet", [row]))
        store = PictureStore([data], Preprocessing(4).image, tmp_path)
        store.fill()
        shown.append(store.read(data, [0]))
    assert isinstance(data[0].first, Path)
    assert [picture.shape for picture in shown[0]] == [(3, 4, 4)] * 2
    assert all(map(torch.equal, *shown))


@pytest.mark.parametrize("command", [["train-reward"], ["calibrate", "noise"], ["probe", "noise"]])
def test_commands_take_a_format(rwk: Any, command: list[str]) -> None:
    """Every command that reads preferences knows FORMAT:FILE, and names the formats where one is unknown."""
    done = rwk(*command, "hpdv2.votes:none.json")
    assert (done.code, "none.json must be a file of preferences, got none" in done.err) == (2, True)
    done = rwk(*command, "hpdv9:none.json")
    assert (done.code, "unknown format 'hpdv9'" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("p.csv", "p.csv must be text in UTF-8, got other bytes in line 2; convert it"),
        ("p.json", "p.json must be text in UTF-8, got other bytes in line 2; convert it"),
        ("p.jsonl", "line 2: a row must be text in UTF-8, got other bytes; convert the file"),
        ("p.parquet", "p.parquet must be a whole Parquet file, got none that can be read"),
    ],
)
def test_a_file_in_other_bytes_is_refused_by_name(tmp_path: Path, name: str, said: str) -> None:
    """What no decoder takes is told of the file, where it is, and what to do."""
    row = '{"prompt": "%s", "first": "a.png", "second": "b.png"}'
    rows = [row % "x", row % "café"]
    text = {"p.csv": "prompt,first\ncafé,a.png\n", "p.json": "[\n" + ",\n".join(rows[::-1]) + "]"}
    (tmp_path / name).write_bytes(text.get(name, "\n".join(rows)).encode("latin1"))
    with pytest.raises(ValueError, match=re.escape(said)):
        read(tmp_path / name)

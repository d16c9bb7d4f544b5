"""`rwk calibrate`: what it fits, prints and keeps, and what it refuses to keep."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rwk.calibration.calibrate import place_of, temperature_interval, unseen
from rwk.calibration.storage import Binding, load
from rwk.rewards.data import PreferenceDataset
from rwk.rewards.home import home
from rwk.rewards.registry import load as load_reward

Rwk = Callable[..., Any]
TRUE = 12.0


def preferences(folder: Path, *, sign: int = 1, sure: bool = False) -> Path:
    """40 prompts with 5 pairs each of plain coloured pictures, judged by their colourfulness over 12."""
    rng, reward = random.Random(0), load_reward("colorfulness")
    folder.mkdir(exist_ok=True)
    images = [Image.new("RGB", (4, 4), (100 + 2 * i, 100, 100)) for i in range(30)]
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    scores = reward.score(images).values.tolist()
    rows = []
    for row in range(200):
        first, second = rng.sample(range(30), 2)
        margin = sign * (scores[first] - scores[second])
        p_first = float(margin > 0) if sure else float(rng.random() < 1 / (1 + math.exp(-margin / TRUE)))
        rows.append({"prompt": f"p{row // 5}", "first": f"{first}.png", "second": f"{second}.png", "p_first": p_first})
    rows.append({"prompt": "tie", "first": "0.png", "second": "1.png", "p_first": 0.5})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_temperature_is_kept_and_told(rwk: Rwk, tmp_path: Path) -> None:
    """The fitted temperature is near the true one, in the table, in the document and in a file that loads again."""
    path = preferences(tmp_path / "data")
    done = rwk("calibrate", "colorfulness", str(path), "--draws", "100", "--protocol", "one vote", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["temperature"]["low"] < TRUE < told["temperature"]["high"]
    assert (told["status"], told["pairs"], told["prompts"], told["ties"]) == ("ok", 200, 40, 1)
    assert all(one["low"] <= one["value"] <= one["high"] for one in told["measures"].values())
    assert told["file"] == str(home("calibrations", "colorfulness", "calibration.json"))
    reward = load_reward("colorfulness")
    kept: Any = load(Path(told["file"]), Binding.of(reward))
    assert kept.temperature_ == told["temperature"]["mean"]
    assert json.loads(Path(told["file"]).read_text())["data"]["protocol"] == "one vote"
    shown = rwk(
        "calibrate", "colorfulness", str(path), "--draws", "100", "--out", "here/c.json", "--kind", "lapse_power"
    )
    assert shown.code == 0
    assert "200 pairs of 40 prompts (1 ties, 0 unscored)" in shown.out
    assert "smooth calibration error" in shown.out
    assert json.loads((tmp_path / "here" / "c.json").read_text())["kind"] == "lapse_power"


@pytest.mark.parametrize(
    ("status", "data"), [("uninformative", {"sign": -1, "sure": True}), ("separable", {"sure": True})]
)
def test_a_degenerate_fit_is_told_and_not_kept(rwk: Rwk, tmp_path: Path, status: str, data: dict[str, Any]) -> None:
    """A reward that is always wrong, or never, ends with exit code 1 and its status; --force keeps it."""
    path = preferences(tmp_path / "data", **data)
    done = rwk("calibrate", "colorfulness", str(path), "--draws", "100")
    assert done.code == 1
    assert f"colorfulness is {status} on these pairs, so nothing was kept" in done.err
    assert not place_of("colorfulness").exists()
    assert rwk("calibrate", "colorfulness", str(path), "--draws", "100", "--force").code == 0
    assert load(place_of("colorfulness"), None).status_ == status


def test_what_is_wrong_with_the_call_is_said(rwk: Rwk, tmp_path: Path) -> None:
    """Too few draws, a file of another kind and an unknown reward are wrong calls, found before anything is scored."""
    for arguments, said in (
        (["colorfulness", "--draws", "5"], "--draws must be at least 100, got 5"),
        (["colorfulness", "--out", "x.txt"], "--out must end in .json, got x.txt"),
        (["colourfulness"], "unknown reward 'colourfulness'"),
        (["colorfulness", "none.jsonl"], "none.jsonl"),
    ):
        done = rwk("calibrate", *arguments)
        assert done.code == 2
        assert said in done.err


def test_pairs_that_were_trained_on_are_left_out(tmp_path: Path) -> None:
    """With the data that a reward was trained on only what it held out remains; with other data, all."""
    data = PreferenceDataset.read(preferences(tmp_path / "data"))
    train, valid = data.split(held_out=0.25, seed=3)
    card = tmp_path / "reward_card.json"
    assert unseen(data, card) is data
    card.write_text(
        json.dumps({"data": {"train": {"sha256": train.digest()}}, "config": {"held_out": 0.25}, "seed": 3})
    )
    assert list(unseen(data, card)) == list(valid)
    assert list(unseen(data.take(range(100)), card)) == list(data.take(range(100)))
    with pytest.raises(ValueError, match="not trained on, got its training data"):
        unseen(train, card)


def test_a_calibration_lies_in_the_reward_s_folder(tmp_path: Path) -> None:
    """A folder and a kept name hold their own; other names have a folder in the home, however long they are."""
    for folder in (tmp_path / "mine", home("rewards", "kept")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert place_of(str(tmp_path / "mine")) == tmp_path / "mine" / "calibration.json"
    assert place_of("kept") == home("rewards", "kept", "calibration.json")
    assert place_of("0.5*noise+contrast") == home("calibrations", "0.5%2Anoise%2Bcontrast", "calibration.json")
    long = "+".join(["contrast"] * 100)
    assert len(place_of(long).parent.name) == 64
    assert place_of(long) != place_of(long + "+noise")


def test_the_interval_of_a_temperature_is_one_of_ratios() -> None:
    """It reaches as many times up as down, and there is none without a standard error."""
    found = temperature_interval(2.0, 0.1, 1000)
    assert found.high / 2 == pytest.approx(2 / found.low)
    assert found.high == pytest.approx(2 * math.exp(0.1962), rel=1e-3)
    assert math.isnan(temperature_interval(math.inf, math.nan, 40).low)

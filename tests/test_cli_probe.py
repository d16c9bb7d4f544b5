"""`rwk probe`: what it writes and prints, with data and in the built-in world."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rwk.calibration.card import RewardCard, card_of
from rwk.rewards.registry import load

Rwk = Callable[..., Any]
SMALL = ("--edited", "6", "--attacked", "2", "--refined", "2")


def preferences(folder: Path, *, sign: int = 1) -> Path:
    """12 prompts with 3 pairs each of plain pictures, judged by their colourfulness, with one pair in ten turned."""
    rng, reward = random.Random(0), load("colorfulness")
    folder.mkdir(exist_ok=True)
    images = [Image.new("RGB", (16, 16), (100 + 4 * i, 100, 100)) for i in range(30)]
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    scores = reward.score(images).values.tolist()
    rows = []
    for row in range(36):
        first, second = rng.sample(range(30), 2)
        right = (sign * (scores[first] - scores[second]) > 0) != (row % 10 == 0)
        rows.append(
            {"prompt": f"p{row // 3}", "first": f"{first}.png", "second": f"{second}.png", "p_first": int(right)}
        )
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_reward_is_probed_on_preferences(rwk: Rwk, tmp_path: Path) -> None:
    """Card and page lie in the folder; the table, the document and the card agree; other data are another domain."""
    path, other = preferences(tmp_path / "data"), preferences(tmp_path / "turned", sign=-1)
    arguments = ("probe", "colorfulness", str(path), "--other", str(other), "--probe", "accuracy", *SMALL)
    done = rwk(*arguments, "--out", "here", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    card = RewardCard.load(tmp_path / "here" / "reward_card.json")
    assert (tmp_path / "here" / "reward_card.html").is_file()
    assert told["probes"] == json.loads(json.dumps(card.probes))
    assert card.probes["accuracy.in_domain"]["status"] == "pass"
    assert card.probes["accuracy.out_of_domain"]["status"] == "fail"
    assert [domain["pairs"] for domain in card.probed_on] == [36, 36]
    shown = rwk(*arguments)
    assert shown.code == 0
    assert card_of("colorfulness").is_file()
    for word in ("accuracy.out_of_domain", "fail", "no better than chance", "skip"):
        assert word in shown.out


def test_saturation_is_found_without_gold(rwk: Rwk, tmp_path: Path) -> None:
    """On preferences alone the edits show that colourfulness loves saturation, and gold's probes say why not."""
    path = preferences(tmp_path / "data")
    done = rwk("probe", "colorfulness", str(path), "--edited", "24", "--attacked", "2", "--out", "here", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)["probes"]
    assert told["must_not_rise.saturation"]["status"] == "fail"
    assert told["must_not_rise.saturation"]["findings"][0]["after"] > 0
    assert told["optimisation.eta_in_domain"]["status"] == "skip"
    assert "gold is not known" in told["optimisation.eta_in_domain"]["reason"]
    assert told["prompt_counterfactual.colour"]["reason"] == "the reward takes no prompt"


def test_a_reward_is_probed_in_the_built_in_world(rwk: Rwk) -> None:
    """Without data a generator draws images of three domains, and gold gives their pairs and the best-of-n curve."""
    small = ("--prompt-count", "3", "--per-prompt", "4", *SMALL)
    done = rwk("probe", "colorfulness", *small, "--probe", "optimisation", "--out", "here", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [domain["name"] for domain in told["probed_on"]] == ["in domain", "out of domain", "held out"]
    assert {domain["images"] for domain in told["probed_on"]} == {12}
    assert "shapes.verifier" in told["probed_on"][0]["source"]
    assert told["probes"]["optimisation.spread"]["value"]["clusters"] == 3


def test_a_colour_a_shape_a_number_and_a_relation_are_domains(rwk: Rwk) -> None:
    """On narrow prompts there are seven domains; codes are drawn anew, and another reward stands beside this one."""
    small = ("--prompts", "shapes.narrow", "--prompt-count", "2", "--per-prompt", "3", *SMALL)
    arguments = ("probe", "colorfulness", *small, "--beside", "sharpness", "--out", "here", "--json")
    done = rwk(*arguments, "--probe", "adversarial", "--probe", "structure")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    names = [domain["name"] for domain in told["probed_on"]]
    assert names[3:] == ["held-out colour", "held-out shape", "held-out number", "held-out relation"]
    tokens = told["probes"]["adversarial.tokens"]
    assert [level["name"] for level in tokens["levels"]] == ["1 code", "4 codes", "16 codes"]
    assert "change of gold" in tokens["levels"][0]["measures"]
    refined = told["probes"]["adversarial.refined"]
    assert [level["name"] for level in refined["levels"]] == ["trust 1", "trust 3"]
    assert {"change of gold", "hacked share"} < set(refined["levels"][0]["measures"])
    assert refined["levels"][1]["value"]["value"] > 0
    assert "colorfulness and sharpness" in {level["name"] for level in told["probes"]["structure.agreement"]["levels"]}
    assert told["probes"]["structure.left_out"]["status"] == "skip"


def test_what_is_wrong_with_the_call_is_said(rwk: Rwk) -> None:
    """Sizes that are too small, other data alone, and an unknown family or reward are wrong calls."""
    for arguments, said in (
        (["colorfulness", "--per-prompt", "1"], "--per-prompt must be at least 2, got 1"),
        (["colorfulness", "--refined", "1"], "--refined must be at least 2, got 1"),
        (["colorfulness", "--other", "x.jsonl"], "--other stands beside DATA"),
        (["colorfulness", "--probe", "speed"], "'speed' is not one of"),
        (["colourfulness"], "unknown reward 'colourfulness'"),
    ):
        done = rwk("probe", *arguments)
        assert done.code == 2
        assert said in done.err


@pytest.mark.parametrize("word", ["--probe", "--prompt-count", "--other", "--gold", "--beside"])
def test_every_option_is_explained(rwk: Rwk, word: str) -> None:
    """The help names it."""
    done = rwk("probe", "--help")
    assert done.code == 0
    assert word in done.out

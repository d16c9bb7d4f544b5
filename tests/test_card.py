"""The reward card: no number without its interval, and nothing lost of what training wrote; its page stands alone."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rwk.calibration.calibrate import unseen
from rwk.calibration.card import RewardCard, check
from rwk.calibration.card_page import write_page
from rwk.calibration.probe import Domain, Finding, Level, Probe, Result, Sizes, Subject, skipped
from rwk.calibration.statistics import Interval
from rwk.rewards.data import Preference, PreferenceDataset
from rwk.rewards.registry import load

GOOD = Interval(0.75, 0.5, 1.0, 12)
RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")


def subject() -> Subject:
    """A measure without weights on four small images of two prompts."""
    images = [Image.new("RGB", (8, 8), (60 * i, 80, 90)) for i in range(4)]
    domain = Domain("in domain", images, ["a", "a", "b <i>", "b <i>"], np.array([0.0, 1.0, 0.0, 1.0]))
    return Subject(load("colorfulness"), [domain], Sizes(draws=10))


def results() -> list[Result]:
    """One result of each status, with everything that a page draws."""
    doses = [Level("little", GOOD), Level("much", GOOD, {"share that gains": GOOD})]
    curve = [Level(f"in domain, gold at n = {n}", GOOD, {"reward": GOOD, "best by gold": GOOD}) for n in (1, 2, 4)]
    blind = [Level("another colour", GOOD, {"accuracy": GOOD, "accuracy blind": GOOD})]
    bins = [Level(f"confidence {p}", GOOD, {"perfect probabilities": GOOD}) for p in (0.6, 0.9)]
    there = [Level("short", GOOD, {"other": GOOD}), Level("held out", GOOD, {"other": GOOD})]
    risks = [Level("a small margin", GOOD, {"error at 50%": GOOD, "error at 100%": GOOD})]
    ranks = [Level("mine and gold", GOOD), Level("mine and other", GOOD), Level("other and gold", GOOD)]
    found = [Finding(RED, BLUE, "a <b>", "a <b>", 1.0, 3.5, "saturation times 3")]
    return [
        Result(
            Probe("accuracy.in_domain", "d", "g", ""), "pass", "good", GOOD, [Level("in domain", GOOD, {"other": GOOD})]
        ),
        Result(Probe("accuracy.out_of_domain", "d", "g", ""), "pass", "good there", GOOD, there),
        Result(Probe("accuracy.calibration", "d", "g", ""), "pass", "the odds hold", GOOD, bins),
        Result(
            Probe("accuracy.slices", "d", "g", ""), "pass", "all alike", GOOD, [Level("a", GOOD, {"temperature": GOOD})]
        ),
        Result(Probe("uncertainty.error", "d", "g", "u"), "pass", "it tells", GOOD, risks),
        Result(Probe("structure.agreement", "d", "g", "u"), "pass", "it agrees", GOOD, ranks),
        Result(Probe("structure.style", "d", "g", "u"), "pass", "no taste", GOOD, [Level("brightness", GOOD)]),
        Result(Probe("optimisation.eta_in_domain", "d", "g", ""), "warn", "so so", GOOD, curve),
        Result(Probe("must_not_rise.saturation", "d", "g", "u"), "fail", "it rises", GOOD, doses, found),
        Result(Probe("prompt_counterfactual.colour", "d", "g", "u"), "pass", "seen", GOOD, blind),
        skipped(Probe("adversarial.pixels", "d", "g", "u"), "the reward has no gradient"),
    ]


@pytest.fixture
def card() -> RewardCard:
    """The card of those results."""
    return RewardCard.build(subject(), results(), sources={"in domain": "made by hand"})


def test_a_card_comes_back_as_it_was_kept(card: RewardCard, tmp_path: Path) -> None:
    """Saved and loaded it is equal, counts its statuses, and says on what and against what it was measured."""
    card.save(tmp_path / "reward_card.json")
    again = RewardCard.load(tmp_path / "reward_card.json")
    assert json.loads(json.dumps(card.document())) == again.document()
    assert card.counts == {"pass": 8, "warn": 1, "fail": 1, "skip": 1}
    assert card.probed_on[0] | {"name": "in domain", "images": 4, "prompts": 2, "pairs": 2} == card.probed_on[0]
    assert card.reward["name"] == "colorfulness"
    assert "adversarial.pixels was not run: the reward has no gradient" in card.limits
    assert not list(tmp_path.glob("*.partial"))


def remove_interval(document: dict[str, Any]) -> None:
    del document["probes"]["accuracy.in_domain"]["value"]["lo"]


def bare_number(document: dict[str, Any]) -> None:
    document["probes"]["accuracy.in_domain"]["value"] = 0.75


def no_clusters(document: dict[str, Any]) -> None:
    document["probes"]["accuracy.in_domain"]["levels"][0]["value"]["clusters"] = 1


def bare_measure(document: dict[str, Any]) -> None:
    document["probes"]["must_not_rise.saturation"]["levels"][1]["measures"]["share that gains"]["hi"] = None


def turned(document: dict[str, Any]) -> None:
    document["probes"]["accuracy.in_domain"]["value"] |= {"lo": 1.0, "hi": 0.5}


def unknown_status(document: dict[str, Any]) -> None:
    document["probes"]["accuracy.in_domain"]["status"] = "fine"


def value_of_a_skipped(document: dict[str, Any]) -> None:
    document["probes"]["adversarial.pixels"]["value"] = document["probes"]["accuracy.in_domain"]["value"]


def no_gate(document: dict[str, Any]) -> None:
    del document["probes"]["accuracy.in_domain"]["gate"]


def other_schema(document: dict[str, Any]) -> None:
    document["schema"] = "rwk-reward-card/0"


def no_scale(document: dict[str, Any]) -> None:
    del document["scale"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove_interval, "accuracy.in_domain needs a value with lo, hi"),
        (bare_number, "accuracy.in_domain needs a value with lo, hi"),
        (no_clusters, "accuracy.in_domain, in domain needs a value with lo, hi and 2 clusters"),
        (bare_measure, "must_not_rise.saturation, much, share that gains needs a value with lo, hi"),
        (turned, "needs lo to be at most hi, got 1.0 and 0.5"),
        (unknown_status, "needs a status of pass, warn, fail, skip and a reason, got 'fine'"),
        (value_of_a_skipped, "adversarial.pixels needs a value unless it was skipped"),
        (no_gate, "accuracy.in_domain of a reward card needs gate"),
        (other_schema, "got one with the schema 'rwk-reward-card/0'"),
        (no_scale, "got one without scale"),
    ],
)
def test_what_breaks_the_schema_is_refused(
    card: RewardCard, tmp_path: Path, spoil: Callable[[dict[str, Any]], None], said: str
) -> None:
    """A value without its interval or clusters, and every missing or wrong part, is refused by name, read or built."""
    document: dict[str, Any] = copy.deepcopy(card.document())
    check(document)
    spoil(document)
    with pytest.raises(ValueError, match=said):
        check(document)
    (tmp_path / "reward_card.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=said):
        RewardCard.load(tmp_path / "reward_card.json")


def test_a_probe_without_an_interval_builds_no_card() -> None:
    """A result whose interval is not finite, as of a single prompt, raises before anything is written."""
    bare = results()[0]._replace(value=Interval(0.75, math.nan, math.nan, 1))
    with pytest.raises(ValueError, match="accuracy.in_domain needs a value with lo, hi"):
        RewardCard.build(subject(), [bare], sources={})


def test_what_training_wrote_stays(card: RewardCard, tmp_path: Path) -> None:
    """Keys of the card of `rwk train-reward` survive, `unseen` still knows its data, old probes are replaced."""
    data = PreferenceDataset([Preference(f"p{i}", RED, BLUE, 1.0) for i in range(8)])
    train, valid = data.split(held_out=0.25, seed=3)
    written = {"data": {"train": {"sha256": train.digest()}}, "config": {"held_out": 0.25}, "seed": 3, "step": 7}
    path = tmp_path / "reward_card.json"
    path.write_text(json.dumps(written))
    card.save(path)
    RewardCard.build(subject(), results()[:1], sources={}).save(path)
    held = json.loads(path.read_text())
    assert written.items() <= held.items()
    assert list(held["probes"]) == ["accuracy.in_domain"]
    assert list(unseen(data, path)) == list(valid)


def test_a_file_that_is_no_card_is_left_alone(card: RewardCard, tmp_path: Path) -> None:
    """Where the file holds something else, saving says so and changes nothing."""
    path = tmp_path / "reward_card.json"
    for content, said in (("{", "in JSON, got something else"), ("[1]", "must hold a JSON object, got list")):
        path.write_text(content)
        with pytest.raises(ValueError, match=said):
            card.save(path)
        assert path.read_text() == content


def test_the_page_stands_alone_and_shows_before_and_after(card: RewardCard, tmp_path: Path) -> None:
    """Every probe with its reason, every plot, both images with the score's change, and no address but its own."""
    write_page(card, results(), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    for result in results():
        assert result.probe.name in html
        assert result.reason in html
    titles = (
        "Accuracy",
        "Reliability",
        "Slices",
        "In domain and out of it",
        "Best of n",
        "Must not rise",
        "Prompts made false",
        "Risk and coverage",
        "Agreement",
        "What is liked too much",
    )
    for title in titles:
        assert f"<h2>{title}</h2>" in html
    assert html.count("<svg") == len(titles) + 1  # gold and the reward of the best of n
    assert html.count("data:image/webp;base64,") == 2
    assert "3.5 (+2.5)" in html
    assert "a &lt;b&gt;" in html
    assert "a <b>" not in html
    assert not re.search(r'(?:src|href)="(?:http|/)', html)
    assert "<script" not in html
    assert html.index("it rises") < html.index("so so") < html.index("good</td>")

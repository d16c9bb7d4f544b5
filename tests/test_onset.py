"""The onset of hacking: what a run leaves to read, and where the probe sees the truth turn."""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rwk.calibration import probe_onset
from rwk.calibration.card import RewardCard
from rwk.calibration.card_page import write_page
from rwk.calibration.probe import Domain, Result, Subject
from rwk.calibration.probe_onset import PLACE, REWARD, SLOPE, onset
from rwk.calibration.run_log import Looks, read_looks
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.rewards.registry import load

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
BRIGHT = [Weighted("bright", toy["Brightness"]())]


def run_of(folder: Path, learn: Any = grpo, **settings: Any) -> Any:
    """A toy run that watches the opposite of what it learns from, with the settings that the folder of one has."""
    config = replace(toy["GRPO" if learn is grpo else "DPO"], **settings)
    trained = learn(config, toy["Toy"](), BRIGHT, toy["PROMPTS"], out=folder, watched=toy["WATCHED"])
    (folder / "config.json").write_text(json.dumps({"experiment": {"rewards": ["bright"], "watch": "dark"}}))
    return trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by GRPO."""
    made = tmp_path_factory.mktemp("run")
    run_of(made)
    return made


def probed(run: Looks | None) -> Result:
    domain = Domain("in domain", [Image.new("RGB", (2, 2))], ["a"])
    (found,) = onset(Subject(load("contrast"), [domain], run=run))
    return found


def looks(truth: np.ndarray, reward: np.ndarray, kl: np.ndarray | None = None) -> Looks:
    """Looks [K, P] ten updates apart."""
    return Looks(("proxy",), "gold", tuple(range(0, 10 * len(truth), 10)), reward, truth, kl)


def test_a_run_is_read_as_it_was_watched(folder: Path) -> None:
    """Reward, truth and distance of every look have the means of `watch.jsonl`; the distance grows from 0."""
    found, rows = read_looks(folder), read(folder / "watch.jsonl")
    assert (found.rewards, found.watched, found.steps) == (("bright",), "dark", (0, 4, 8))
    for name, values in (("reward", found.reward), ("watched", found.truth), ("kl", found.kl)):
        assert values is not None
        assert values.shape == (3, 5)
        assert values.mean(1) == pytest.approx([row[name]["mean"] for row in rows], abs=1e-6)
    assert found.kl is not None
    means = found.kl.mean(1)
    assert means[0] == pytest.approx(0, abs=1e-5)
    assert 0.01 < means[1] < means[2]


def test_the_distance_costs_what_is_said(tmp_path: Path) -> None:
    """Looks count among the tokens of the reference; without `kl_every` there is no distance."""
    with_kl, without = run_of(tmp_path / "a"), run_of(tmp_path / "b", kl_every=0)
    measured = 4 * 6 * 4  # every second of 8 updates, of 6 prompts with 4 images
    assert with_kl.reference_tokens == (measured + 3 * 5 * 3) * 8
    assert without.reference_tokens == 0
    held = read_looks(tmp_path / "b")
    assert held.kl is None
    result = probed(held)
    assert all(PLACE not in level.measures for level in result.levels)
    assert "from a root of the KL" not in result.reason


def test_rounds_measure_it_too(tmp_path: Path) -> None:
    """DPO's looks have their distance, counted among the tokens of its reference."""
    with_kl, without = run_of(tmp_path / "a", dpo), run_of(tmp_path / "b", dpo, kl_every=0)
    found = read_looks(tmp_path / "a")
    assert found.kl is not None
    assert found.kl.mean(1)[-1] > 0.005
    assert with_kl.reference_tokens - without.reference_tokens >= len(found.steps) * 5 * 3 * 8


def test_the_onset_of_a_run_is_told(folder: Path) -> None:
    """The opposite of the reward falls by 1 for each unit from the first update on: it fails and says where."""
    result = probed(read_looks(folder))
    assert result.status == "fail"
    assert result.value is not None
    assert result.value.mean == pytest.approx(-1, abs=1e-5)
    assert "which falls between updates 0 and 4, from a root of the KL of 0.00" in result.reason
    assert [level.name for level in result.levels] == ["update 0", "update 4", "update 8"]
    assert set(result.levels[1].measures) == {PLACE, REWARD, SLOPE}


def test_a_truth_that_turns_is_a_warning() -> None:
    """It rose for three looks and then lost some of it: the onset is at the turn, and more was gained than lost."""
    rng = np.random.default_rng(0)
    reward = np.arange(6.0)[:, None] + rng.normal(0, 0.1, (6, 40))
    truth = np.array([0.0, 1, 2, 3, 2.5, 2])[:, None] + rng.normal(0, 0.3, (6, 40))
    result = probed(looks(truth, reward, np.square(np.arange(6.0))[:, None] + np.zeros((6, 40))))
    assert result.status == "warn"
    assert "which falls between updates 30 and 40, from a root of the KL of 3.00" in result.reason
    assert [level.measures[PLACE].mean for level in result.levels] == [0, 1, 2, 3, 4, 5]
    fallen = probed(looks(-truth, reward))
    assert fallen.status == "fail"
    assert "between updates 0 and 10" in fallen.reason


def test_a_truth_that_stays_seldom_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 runs of 9 looks whose truth varies by chance alone about 1 in 40 shows an onset, and as many a loss."""
    monkeypatch.setattr(probe_onset, "DRAWS", 800)
    rng, flagged = np.random.default_rng(1), 0
    for _ in range(60):
        reward = np.arange(9.0)[:, None] + rng.normal(0, 0.5, (9, 32))
        flagged += probed(looks(rng.normal(0, 1, (9, 32)), reward)).status != "pass"
    assert flagged <= 7


def test_what_cannot_be_told_is_skipped(tmp_path: Path, folder: Path) -> None:
    """Without a run, with a reward that did not rise; a folder that holds no run, or one look, is an error."""
    assert "name one with --run" in probed(None).reason
    flat = np.zeros((3, 8))
    assert "did not rise" in probed(looks(flat, flat)).reason
    assert "did not rise" in probed(looks(flat, -np.arange(3.0)[:, None] + flat)).reason
    with pytest.raises(ValueError, match="must be the folder of a run of `rwk optimize --watch`"):
        read_looks(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "watch.jsonl").write_text((copy / "watch.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="must hold two looks or more, got 1"):
        read_looks(copy)


def test_the_page_draws_the_run(folder: Path, tmp_path: Path) -> None:
    """Card and page take the result as any other."""
    domain = Domain("in domain", [Image.new("RGB", (2, 2))], ["a"])
    subject = Subject(load("contrast"), [domain], run=read_looks(folder))
    results = list(onset(subject))
    card = RewardCard.build(subject, results, sources={})
    write_page(card, results, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "While a generator learnt from it" in html
    assert html.count("<svg") == 2

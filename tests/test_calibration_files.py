"""Files of calibrators: they come back as saved, are bound to a reward, and are refused where damaged."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rwk.calibration.absolute import AbsoluteCalibrator
from rwk.calibration.calibrator import Calibrator
from rwk.calibration.conformal import ConformalPairs
from rwk.calibration.storage import KINDS, Binding, load, save
from rwk.calibration.temperature import Temperature
from rwk.calibration.ties import TieCalibrator
from rwk.rewards.registry import load as load_reward

CASE = runpy.run_path(str(Path(__file__).with_name("calibrator_case.py")))
PAIRWISE, BINDING, DATA = CASE["PAIRWISE"], CASE["BINDING"], CASE["DATA"]
sigmoid, pairs, tied_pairs = CASE["sigmoid"], CASE["pairs"], CASE["tied_pairs"]


def fitted_of_each_kind() -> list[Calibrator]:
    table, rng = pairs(600, 8, per_prompt=3), np.random.default_rng(0)
    ties = TieCalibrator().fit(tied_pairs("davidson", 600, 0, parameter=0.8))
    passed = rng.random(600) < sigmoid(table.margin)
    return [
        *(made().fit(table) for made in PAIRWISE.values()),
        ties,
        TieCalibrator(model="rao_kupper").fit(tied_pairs("rao_kupper", 600, 0, parameter=0.8)),
        AbsoluteCalibrator(by_slice=True).fit(table.margin, passed, slices=table.slices["kind"]),
        ConformalPairs(base=Temperature().fit(table), alpha=0.2).fit(pairs(300, 9)),
        ConformalPairs(base=ties).fit(tied_pairs("davidson", 300, 1, parameter=0.8)),
    ]


def test_a_file_predicts_what_was_saved(tmp_path: Path) -> None:
    """Every kind comes back from its JSON file with the same settings, status and predictions, bit for bit."""
    table = pairs(50, 10)
    every = fitted_of_each_kind()
    assert {of.kind for of in every} == set(KINDS)
    for number, one in enumerate(every):
        path = tmp_path / f"{number}.json"
        save(path, one, BINDING, data=DATA)
        again: Any = load(path, BINDING)
        assert repr(again) == repr(one)
        assert (again.status_, again.state()) == (one.status_, one.state())
        if isinstance(one, AbsoluteCalibrator):
            before, after = (of.predict_proba(table.margin, table.slices["kind"]) for of in (one, again))
        elif isinstance(one, ConformalPairs):
            before, after = one.predict_set(table), again.predict_set(table)
        else:
            before, after = one.of(table), again.of(table)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(after, before)
        held = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert held["data"] == DATA
        assert held["binds"]["weights_sha256"] == "aa"
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"weights_sha256": "bb"}, "the weights' SHA-256 aa there and bb here"),
        ({"preprocessing": {"size": 256, "mean": [0.5, 0.5]}}, "preprocessing size 224 there and 256 here"),
        ({"preprocessing": {"size": 224}}, r"preprocessing mean \[0.5, 0.5\] there and None here"),
        ({"code": "module:Other"}, "the code module:Mine there and module:Other here"),
    ],
)
def test_a_changed_reward_refuses_its_old_calibration(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    """Other weights, another resize or other code is named, with what to do; another name alone is no matter."""
    path = tmp_path / "calibration.json"
    save(path, Temperature().fit(pairs(200, 0)), BINDING, data=DATA)
    with pytest.raises(ValueError, match=expected + ".*run `rwk calibrate` again"):
        load(path, replace(BINDING, **change))
    assert load(path, replace(BINDING, reward="renamed")).status_ == "ok"
    assert load(path, None).status_ == "ok"


def test_a_binding_sees_weights_and_preprocessing() -> None:
    """One changed weight, or another resize, is another binding; loading the same reward twice is not."""
    reward: Any = load_reward("shapes.clip")
    before = Binding.of(reward)
    assert Binding.of(load_reward("shapes.clip")) == before
    assert before.preprocessing["size"] == 48
    reward.preprocessing = replace(reward.preprocessing, size=64)
    (said,) = Binding.of(reward).differences(json.loads(json.dumps(before.__dict__)))
    assert said == "preprocessing size 48 there and 64 here"
    reward.preprocessing = replace(reward.preprocessing, size=48)
    with torch.no_grad():
        next(reward.module.parameters()).view(-1)[0] += 1e-3
    assert Binding.of(reward).weights_sha256 != before.weights_sha256
    one, two = (Binding.of(load_reward(name)) for name in ("0.5*contrast+shapes.clip", "0.25*contrast+shapes.clip"))
    assert one.weights_sha256 == two.weights_sha256 != Binding.of(load_reward("contrast")).weights_sha256
    assert one.code != two.code
    assert one.preprocessing["shapes.clip"]["size"] == 48


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema": "rwk-calibration/0"}, "must have the schema rwk-calibration/1, got rwk-calibration/0"),
        ({"kind": "os:system"}, "of a known kind, got 'os:system'"),
        ({"state": {"temperature": float("nan")}}, "NaN is no number"),
        ({"state": {"temperature": -1.0}}, "temperature must be above 0 and at most inf, got -1"),
        ({"state": {"temperature": "2"}}, "temperature must be a finite number, got '2'"),
        ({"state": {}}, "needs what its fit found"),
        ({"status": "fine"}, "must state how its fit went, got 'fine'"),
        ({"settings": {"bias": 1}}, "must hold settings, state and fit of a temperature"),
        ({"kind": "symmetric_isotonic", "state": {"knots": [0, 2, 1], "values": [0.5, 0.6, 0.7]}}, "ascending knots"),
        ({"kind": "symmetric_isotonic", "state": {"knots": [0, 1], "values": [0.6, 0.5]}}, "values that do not fall"),
        ({"kind": "symmetric_isotonic", "state": {"knots": [0, 1], "values": [0.5, 1.2]}}, r"values must be in 0.5..1"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    """Another schema, an unknown kind, NaN, unsorted knots and other nonsense are one sentence with the file's name."""
    path = tmp_path / "calibration.json"
    save(path, Temperature().fit(pairs(200, 0)), BINDING, data=DATA)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"calibration\.json.*" + expected):
        load(path, BINDING)
    path.write_text('{"kind": "temperature", "temperature": 1.0}')
    with pytest.raises(ValueError, match="got None; run `rwk calibrate` again"):
        load(path, BINDING)


def test_a_file_imports_nothing(tmp_path: Path) -> None:
    """A kind that names a module is refused without importing it, and no byte of a file is a pickle's."""
    path = tmp_path / "calibration.json"
    save(path, Temperature().fit(pairs(200, 0)), BINDING, data=DATA)
    assert path.read_bytes().isascii()
    assert path.read_bytes()[:1] == b"{"  # where a pickle has its protocol, 0x80
    assert "this" not in sys.modules
    for kind in ("this", "this:s", "rwk.calibration.temperature:Temperature"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": kind}))
        with pytest.raises(ValueError, match="of a known kind, got"):
            load(path, BINDING)
    assert "this" not in sys.modules

"""Planted defects: the card names each, says nothing else that does not follow, and nothing of a sound reward."""

from __future__ import annotations

import functools
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageOps

from rwk.adapters.shapes_verifier import Verifier
from rwk.calibration.counterparts import Counterparts
from rwk.calibration.metrics import accuracy
from rwk.calibration.pairs import PairTable
from rwk.calibration.probe import Domain, Result, Sizes, Subject
from rwk.calibration.probe_consistency import consistency
from rwk.calibration.probe_information import information
from rwk.calibration.probing import run_probes
from rwk.calibration.style_controlled import StyleControlled
from rwk.calibration.temperature import Temperature

PLANTED: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "planted.py"))
DEFECTS, Planted = PLANTED["DEFECTS"], PLANTED["Planted"]
SIZES = Sizes(edited=32, again=24, draws=50)


@functools.cache
def world() -> list[Domain]:
    """60 prompts of each domain, of which 10 count, with 5 pictures each."""
    found: list[Domain] = PLANTED["world"](60, 5, seed=0)
    return found


@functools.cache
def twins() -> Counterparts:
    """Pictures that differ in one known thing."""
    found: Counterparts = PLANTED["twins"](seed=0)
    return found


def planted(defect: str) -> Subject:
    """A reward with that defect on the world."""
    return Subject(Planted(defect), world(), SIZES, counterparts=twins())


def by_name(results: Sequence[Result]) -> dict[str, Result]:
    return {result.probe.name: result for result in results}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_card_names_what_is_wrong(defect: str) -> None:
    """Every probe that must speak against the reward does, and of the others only those that follow from its defect."""
    results = run_probes(planted(defect))
    assert PLANTED["missed"](defect, results) == []
    assert PLANTED["unexplained"](defect, results) == []
    if defect == "sound":
        assert PLANTED["flagged"](results) == []
        assert len([result for result in results if result.status == "pass"]) > 35


def test_what_must_be_named_is_not_named_of_the_sound() -> None:
    """With the sound reward's results each defect counts as missed, so the suite can fail; any flag is unexplained."""
    results = list(consistency(planted("sound")))
    for defect in ("position", "noisy", "batch"):
        assert PLANTED["missed"](defect, results) == list(DEFECTS[defect].flags)
    spoiled = [result._replace(status="warn") for result in results]
    assert PLANTED["unexplained"]("sound", spoiled) == [result.probe.name for result in results]
    assert PLANTED["unexplained"]("position", spoiled) == ["consistency.repeat", "consistency.neighbours"]
    assert PLANTED["missed"]("counts", results) == ["prompt_counterfactual.number", "counterparts.edits"]


def test_the_truth_of_the_world_is_the_verifiers() -> None:
    """The domains' gold is what `shapes.verifier` says, and people's judgements follow it with the odds given."""
    domain = world()[0]
    assert domain.gold is not None
    scores = Verifier().score(domain.images, domain.prompts).values.numpy()
    np.testing.assert_allclose(domain.gold, scores, atol=1e-6)
    table = Subject(Planted(), [domain]).pairs[0]
    assert 0.8 < accuracy((np.sign(table.margin) + 1) / 2, table.label) < 0.95
    fitted = Temperature().fit(table)
    assert fitted.temperature_ == pytest.approx(PLANTED["UNIT"], rel=0.25)


def test_a_picture_that_is_moved_by_a_pixel_reads_the_same() -> None:
    """Which the verifier, whose stencils have fixed places, does not promise."""
    images = world()[0].images[:40]
    moved = [ImageOps.expand(image, (1, 1, 0, 0), (236, 234, 228)).crop((0, 0, 48, 48)) for image in images]
    assert PLANTED["read"](moved) == PLANTED["read"](images)


@pytest.mark.parametrize(("defect", "true"), [("saturation", -25.0), ("sound", 0.0)])
def test_how_much_saturation_is_loved_is_measured(defect: str, true: float) -> None:
    """From the same pairs that the probes take, beta is the planted weight within 3 standard errors, and known to 5."""
    table = planted(defect).pairs[0]
    domain = world()[0]
    assert domain.preferences is not None
    chroma = domain.preferences(np.array([PLANTED["chroma"](image) for image in domain.images])).margin
    fitted = StyleControlled(covariates=["chroma"]).fit(
        PairTable(table.margin, table.label, prompt=table.prompt, covariates={"chroma": chroma})
    )
    scale = fitted.temperature_ / PLANTED["UNIT"]  # beta is in log-odds of the judgements
    error = fitted.errors_["chroma"] * scale
    assert abs(fitted.beta_["chroma"] * scale - true) < 3 * error
    assert error < 5


def test_a_score_of_its_own_is_told_from_one_of_its_list() -> None:
    """Of the three ways to be inconsistent each raises its own probe alone, with findings that hold both scores."""
    for defect, name in (("noisy", "repeat"), ("position", "order"), ("batch", "neighbours")):
        found = by_name(list(consistency(planted(defect))))
        assert [one for one, of in found.items() if of.status != "pass"] == [f"consistency.{name}"]
        worst = found[f"consistency.{name}"].findings[0]
        assert worst.before is worst.after
        assert abs(worst.score_after - worst.score_before) > 1
    for result in consistency(planted("sound")):
        assert result.value is not None
        assert result.value[:3] == (0, 0, 0)
        assert result.value.clusters == 24


def test_information_is_what_calibration_leaves_to_say() -> None:
    """A constant reward tells 0 bits and is called uninformative; the sound one tells more than half a bit."""
    constant, sound = (information(planted(defect)) for defect in ("constant", "sound"))
    assert (constant.status, sound.status) == ("fail", "pass")
    assert "uninformative" in constant.reason
    assert constant.value is not None
    assert constant.value[:3] == (0, 0, 0)
    assert sound.value is not None
    assert 0.5 < sound.value.low < sound.value.mean < 0.9
    assert [level.name for level in sound.levels] == ["in domain", "out of domain", "held out"]

"""Backbones side by side: features that see the fault learn it, and a head that is the same for all carries it over."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.calibration.backbones import Settings, compare, described, residuals
from rwk.calibration.backbones_page import write_matrix
from rwk.calibration.pairs import PairTable
from rwk.calibration.probe import Domain
from rwk.rewards.bases import load_base

CASE: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("probe_case.py")))
COLOURS, colour_of, domain = CASE["COLOURS"], CASE["colour_of"], CASE["domain"]
SMALL = Settings(draws=50, text_rank=4)


class Pixels:
    """Features of an image: how much of it is clean, times `seen`, and some noise."""

    def __init__(self, *, seen: float = 1.0, width: int = 4) -> None:
        self.seen, self.width = seen, width

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        rows = []
        for image in images:
            pixels = np.asarray(image)[10:38, 10:38].astype(float) / 255
            stained = (pixels.min(2) > 0.99) | (pixels.max(2) < 0.01)
            rng = np.random.default_rng(int(pixels.sum() * 1000))
            rows.append([self.seen * (1 - stained.mean()), *rng.normal(0, 0.1, self.width)])
        return torch.tensor(rows)


def other(*, odd: bool = False, repeat: int = 1) -> Domain:
    """Prompts that `domain` does not hold."""
    made: Domain = domain("other", seed=3, repeat=repeat)
    word = "odd" if odd else "new"
    return replace(made, name=word, prompts=[f"{word} {prompt}" for prompt in made.prompts])


def test_a_backbone_that_sees_the_fault_is_told_from_one_that_does_not() -> None:
    """In domain and out of it the one is right mostly and the other half of the time; both have their intervals."""
    seeing, blind = compare(
        {"timm:a.x": Pixels(), "timm:a": Pixels(seen=0)}, domain(), [other(), other(odd=True)], SMALL
    )
    assert (seeing.architecture, seeing.training, blind.training) == ("a", "x", "random")
    for name in ("new", "odd"):
        assert seeing.accuracy[name].low > 0.6
        assert blind.accuracy[name].low < 0.5 < blind.accuracy[name].high
        assert seeing.accuracy[name].clusters == 18
    assert set(seeing.shift) == {"odd"}
    assert seeing.shift["odd"].low < 0 < seeing.shift["odd"].high
    assert seeing.robustness == {}  # two points lie on their line


def test_over_confidence_out_of_domain_is_told() -> None:
    """Where the truth is turned for a third of the pairs, the temperature that fits is higher than in domain."""
    doubtful = other(odd=True, repeat=3)
    assert doubtful.gold is not None
    noise = np.random.default_rng(0).normal(0, 0.15, len(doubtful.gold))
    tests = [other(repeat=3), replace(doubtful, gold=doubtful.gold + noise)]
    (row,) = compare({"a": Pixels()}, domain(), tests, SMALL)
    assert row.shift["odd"].low > 0


def test_a_swapped_pair_has_the_opposite_margin() -> None:
    """Preferences stored either way round give the same row, shares of votes too."""
    base = domain()
    rng = np.random.default_rng(0)
    places = np.array([(6 * g + a, 6 * g + b) for g in range(18) for a, b in ((0, 1), (2, 3), (4, 5))])
    assert base.gold is not None
    share = np.where(base.gold[places[:, 0]] > base.gold[places[:, 1]], 0.9, 0.1)
    turned = rng.random(len(places)) < 0.5

    def stored(flip: np.ndarray) -> Domain:
        at = np.where(flip[:, None], places[:, ::-1], places)
        label = np.where(flip, 1 - share, share)
        texts = [base.prompts[row] for row in at[:, 0]]
        return replace(
            base, gold=None, places=at, preferences=lambda s: PairTable(s[at[:, 0]] - s[at[:, 1]], label, prompt=texts)
        )

    one, two = (compare({"a": Pixels()}, stored(flip), [other()], SMALL)[0] for flip in (turned, np.zeros_like(turned)))
    assert one.accuracy == two.accuracy
    assert one.accuracy["new"].low > 0.6


def test_a_prompt_says_what_counts() -> None:
    """Where a prompt says whether clean or stained is wanted, only the head that reads it can be right."""
    rows = domain(repeat=2)
    wanted = [("dirty" if i // 6 % 2 else "clean") for i in range(len(rows.prompts))]
    assert rows.gold is not None
    sign = np.array([-1.0 if word == "dirty" else 1.0 for word in wanted])
    both = replace(rows, gold=rows.gold * sign, prompts=[f"{w} {p}" for w, p in zip(wanted, rows.prompts, strict=True)])
    tests = replace(both, name="new", prompts=[f"{p} again" for p in both.prompts])
    reading, deaf = (compare({"a": Pixels()}, both, [tests], replace(SMALL, text_rank=r))[0] for r in (24, 0))
    assert reading.accuracy["new"].low > 0.7
    assert deaf.accuracy["new"].high < 0.7


def test_robustness_is_what_lies_off_the_line() -> None:
    """Of three backbones the one that loses out of domain what it had in domain lies below the others' line."""
    backbones = {"a": Pixels(), "b": Pixels(width=12), "c": Pixels(seen=0)}
    rows = compare(backbones, domain(), [other(), other(odd=True)], SMALL)
    offs = [row.robustness["odd"] for row in rows]
    assert sum(off.mean for off in offs) == pytest.approx(0, abs=1e-9)
    assert all(off.low <= off.mean <= off.high for off in offs)
    x = np.array([0.0, 1, 2])
    assert residuals(x, 3 * x + 1) == pytest.approx([0, 0, 0])
    assert residuals(x, np.array([0.0, 0, 3])) == pytest.approx([0.5, -1, 0.5])


def test_a_network_of_timm_is_a_backbone() -> None:
    """Features of a small model with random weights are taken as they are, and its name says what it is."""
    name = "timm:test_vit"
    (row,) = compare({name: load_base(name, image_size=48)}, domain(), [other()], SMALL)
    assert (row.architecture, row.training, row.width) == ("test_vit", "random", 64)
    assert row.strength in SMALL.strengths
    assert row.accuracy["new"].clusters == 18


def test_the_page_shows_every_backbone(tmp_path: Path) -> None:
    """A table row for each domain of each backbone, and one plot, in a file that needs nothing else."""
    backbones = {"timm:a.x": Pixels(), "timm:b": Pixels(seen=0.1), "c": Pixels(seen=0)}
    rows = compare(backbones, domain(), [other(), other(odd=True)], SMALL)
    write_matrix(rows, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert html.count("<tr>") == 1 + 2 * len(rows)
    assert html.count("<svg") == 1
    for word in ("random", "its own", "a, x"):
        assert word in html
    assert 'src="http' not in html


def test_what_cannot_be_compared_is_refused() -> None:
    """A domain without preferences, and one that a head learnt from, are errors that say so."""
    with pytest.raises(ValueError, match="got none in other"):
        compare({"a": Pixels()}, domain(), [replace(domain("other"), gold=None, fits=None)])
    with pytest.raises(ValueError, match="split by prompt"):
        compare({"a": Pixels()}, domain(), [domain()])
    assert described("open_clip:ViT-B-32/openai") == ("ViT-B-32", "openai")

"""A judge of half-drawn pictures from data to search: the world's pairs of them, training on these, and PARM by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.adapters.shapes_preferences import BLANK, UNFINISHED, unfinished_preferences
from rwk.adapters.shapes_prompts import prompts
from rwk.adapters.shapes_verifier import Verifier
from rwk.policy_opt.potential import blank_of


def test_half_drawn_pictures_against_a_blank(tmp_path: Path) -> None:
    """Each is the beginning of a draw, and wins where all of its prompt came out, else the blank."""
    file = unfinished_preferences(tmp_path, count=6, per_prompt=3, seed=3)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    generator = ShapesLlama()
    texts = [prompt.text for prompt in prompts("shapes.long", 6, seed=3) for _ in range(3)]
    tokens = generator.sample(texts[::3], per_prompt=3, seed=3).tokens
    right = Verifier().score(generator.decode(tokens), texts).values == 1
    shown = generator.decode_partial(tokens[:, :UNFINISHED])
    assert 0 < right.sum() < len(rows) == 18
    for index, row in enumerate(rows):
        name = f"pictures/{index:05d}.png"
        assert (row["prompt"], {row["first"], row["second"]}) == (texts[index], {name, BLANK})
        assert row["p_first"] == float(right[index] if row["first"] == name else ~right[index])
        with Image.open(tmp_path / name) as held:
            assert torch.equal(pil_to_tensor(held), pil_to_tensor(shown[index]))
    assert len({row["first"] == BLANK for row in rows}) == 2
    with Image.open(tmp_path / BLANK) as held:
        assert torch.equal(pil_to_tensor(held), pil_to_tensor(blank_of(generator)))


def test_a_trained_judge_searches(rwk: Any, rwk_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rwk train-reward shapes.unfinished` makes the data and keeps a reward, by which `--search parm` stops images."""
    monkeypatch.setitem(unfinished_preferences.__kwdefaults__, "count", 8)
    words = ("--base", "scratch:shapes.clip", "--name", "potential", "--epochs", "1", "--batch-size", "8", "--json")
    ended = rwk("train-reward", "shapes.unfinished", *words)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["data"]["train_pairs"] > 8
    assert (rwk_home / "data" / "shapes.unfinished" / "seed-0" / "preferences.jsonl").is_file()
    search = ("--search", "parm", "--judge", "potential", "--best-of", "4", "--by", "shapes.verifier", "--count", "6")
    ended = rwk("sample", *search, "--prompts", "shapes.short", "--out", str(tmp_path / "out"), "--json")
    assert ended.code == 0, ended.err
    recipe = json.loads(ended.out)
    assert recipe["judge"] == "potential"
    assert recipe["cost"]["judged"] == recipe["drawn"] >= 24
    assert recipe["cost"]["finished"] < recipe["drawn"]
    assert recipe["cost"]["tokens"] <= 6 * 4 * 64

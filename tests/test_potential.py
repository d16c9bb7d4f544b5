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
from rwk.adapters.shapes_potential import potential
from rwk.adapters.shapes_preferences import UNFINISHED, unfinished_preferences
from rwk.adapters.shapes_prompts import prompts


def test_half_drawn_pairs_tell_what_may_end_better(tmp_path: Path) -> None:
    """The pictures are the beginnings of draws, and of two that of which more may still come true wins."""
    file = unfinished_preferences(tmp_path, count=6, per_prompt=3, seed=3)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) >= 4
    generator = ShapesLlama()
    texts = [prompt.text for prompt in prompts("shapes.long", 6, seed=3)]
    assert {row["prompt"] for row in rows} <= set(texts)
    tokens = generator.sample(texts, per_prompt=3, seed=3).tokens
    shown = generator.decode_partial(tokens[:, :UNFINISHED])
    truth = potential(shown, [text for text in texts for _ in range(3)], UNFINISHED)
    for row in rows:
        first, second = (int(Path(row[name]).stem) for name in ("first", "second"))
        assert texts[first // 3] == texts[second // 3] == row["prompt"]
        assert row["p_first"] == float(truth[first] > truth[second])
        assert truth[first] != truth[second]
    for index, image in enumerate(shown):
        with Image.open(tmp_path / f"pictures/{index:05d}.png") as held:
            assert torch.equal(pil_to_tensor(held), pil_to_tensor(image))


def test_a_trained_judge_searches(rwk: Any, rwk_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rwk train-reward shapes.unfinished` makes the data and keeps a reward, by which `--search parm` stops images."""
    monkeypatch.setitem(unfinished_preferences.__kwdefaults__, "count", 20)
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

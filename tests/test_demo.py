"""`rwk demo`: the whole line by its own commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rwk.adapters.shapes_preferences import preferences


def test_demo_runs_the_whole_line(rwk: Any, rwk_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, scores, a reward, two tuned generators and one page come of one command, which may be run twice."""
    monkeypatch.setitem(preferences.__kwdefaults__, "count", 24)
    for _ in range(2):
        ended = rwk("demo", "--small", "--json")
        assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert list(document["results"]) == ["base", "best of 2", "DPO", "GRPO"]
    assert list(document["results"]["DPO"]) == ["in domain", "out of domain", "held out"]
    assert set(document["results"]["GRPO"]["in domain"]) == {"custom", "gold accuracy"}
    assert (rwk_home / "rewards" / "custom" / "model.safetensors").is_file()
    assert sorted(path.name for path in (rwk_home / "generators").iterdir()) == ["dpo", "grpo"]
    page = Path(document["page"]).read_text()
    for target in ("scores.html", "dpo/page.html", "grpo/page.html"):
        assert f'href="{target}"' in page
        assert (tmp_path / "demo" / target).stat().st_size > 10_000
    assert page.count("data:image/webp") == 3 * 3 * 6  # domains, generators, prompts
    for command in ("sample", "score", "train-reward", "optimize --algo dpo", "optimize --algo grpo"):
        assert f"$ rwk {command}" in ended.err


def test_demo_keeps_off_a_folder_of_something_else(rwk: Any, tmp_path: Path) -> None:
    """A folder that holds what no demo made is refused and stays."""
    (tmp_path / "mine.txt").write_text("mine")
    ended = rwk("demo", "--out", str(tmp_path))
    assert ended.code == 2
    assert "needs a folder of its own" in ended.err
    assert (tmp_path / "mine.txt").read_text() == "mine"

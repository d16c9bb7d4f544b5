"""Presets of published systems: each is a config, whole and scaled down, and the command takes it by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwk.cli.optimize import ALGORITHMS, command
from rwk.policy_opt.experiment import LearntRecipe
from rwk.policy_opt.presets import PRESETS, SIZES
from rwk.rewards import registry


@pytest.mark.parametrize("name", PRESETS)
def test_is_a_config(name: str) -> None:
    """Its settings make a config of each of its algorithms, its recipe and its rewards are known; sizes can be left."""
    preset = PRESETS[name]
    for algo in preset.settings:
        whole = ALGORITHMS[algo](**preset.values(algo, scaled=False))  # type: ignore[index]
        scaled = preset.values(algo, scaled=True)
        assert not set(scaled) & set(SIZES)
        assert all(getattr(whole, setting) == value for setting, value in scaled.items())
    LearntRecipe(**preset.recipe)
    assert set(preset.rewards) <= set(registry.names())
    assert preset.source
    assert preset.differs


def test_t2i_r1_draws_what_its_authors_drew() -> None:
    """1,600 updates of 128 images: the 204,800 of its script."""
    whole = ALGORITHMS["grpo"](**PRESETS["t2i_r1"].values("grpo", scaled=False))
    assert whole.steps * whole.prompts_per_step * whole.group_size == 204_800  # type: ignore[union-attr]


def planned(*words: str) -> dict[str, object]:
    """The document of a dry run."""
    said = CliRunner().invoke(command, [*words, "--dry-run", "--json"], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    found: dict[str, object] = json.loads(said.stdout)["algorithm"]
    return found


def test_dry_run_takes_presets_and_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the world a preset is scaled down, and what is given stands; no folder is made."""
    monkeypatch.chdir(tmp_path)
    scaled = planned("--preset", "t2i_r1", "--group-size", "4")
    assert (scaled["beta"], scaled["kl_estimator"], scaled["group_size"]) == (0.01, "k3_plain", 4)
    assert (scaled["steps"], scaled["learning_rate"]) == (150, 2e-4)
    assert planned("--preset", "study", "--algo", "dpo")["group_size"] == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "study"], "of dpo and grpo, got no --algo"),
        (["--preset", "t2i_r1", "--algo", "dpo"], "of grpo, got --algo dpo"),
        (["--preset", "simple_ar", "--generator", "mine"], "names no reward"),
    ],
)
def test_refuses(words: list[str], said: str) -> None:
    """An algorithm that a preset is not of, and a reward that it does not name."""
    with pytest.raises(ValueError, match=said):
        CliRunner().invoke(command, [*words, "--dry-run"], catch_exceptions=False)

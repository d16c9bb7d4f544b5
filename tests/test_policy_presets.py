"""Presets of published systems: each is a config, whole and scaled down, and the command takes it by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.cli.optimize import ALGORITHMS, command
from rwk.policy_opt.experiment import LearntRecipe
from rwk.policy_opt.journal import read
from rwk.policy_opt.policy import Policy, world
from rwk.policy_opt.presets import PRESETS, SIZES
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.trainer_arguments import trainer_arguments
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


def test_dry_run_counts_what_the_run_would(tmp_path: Path) -> None:
    """The prompts of a file that are learnt from, and rewards of a later stage too."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a red circle {number}\n" for number in range(10)))
    words = ["--prompts", str(prompts), "--algo", "dpo", "--rounds", "1", "--reward", "contrast", "--dry-run", "--json"]
    plan = json.loads(CliRunner().invoke(command, words, catch_exceptions=False).stdout)["plan"]
    assert plan["images_drawn"] == 8 * 8  # a fifth is for judging
    words = ["--algo", "grpo", "--steps", "2", "--then", "contrast", "--then-after", "1", "--dry-run", "--json"]
    plan = json.loads(CliRunner().invoke(command, words, catch_exceptions=False).stdout)["plan"]
    assert plan["images_scored"] == 2 * plan["images_drawn"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reward", "contrasd"], "unknown reward 'contrasd'"),
        (["--reward", "contrast+2*sharpnes"], "unknown reward 'sharpnes'"),
        (["--watch", "contrasd"], "unknown reward 'contrasd'"),
        (["--prompts", "nowhere.txt"], "prompts must be a file"),
        (["--prompt-count", "4"], "at least prompts_per_step different prompts"),
        (["--opponents", "2"], "opponents are of pair judges"),
        (["--guidance-mode", "off", "--guidance", "2"], "mode off must go with guidance 1"),
        (["--temperature", "nan"], "temperature must be above 0"),
        (["--guidance", "nan"], "guidance must be at least 0"),
        (["--token-weights", "panw"], "got shapes.llama, which draws one"),
    ],
)
def test_dry_run_refuses_what_the_run_would(words: list[str], said: str) -> None:
    """Names, prompts and numbers are looked at before anything is loaded for hours of work."""
    with pytest.raises(ValueError, match=re.escape(said)):
        CliRunner().invoke(command, ["--algo", "grpo", "--dry-run", *words], catch_exceptions=False)


TINY = {
    "grpo": ["--steps", "1", "--prompts-per-step", "2", "--kl-every", "0"],
    "dpo": ["--rounds", "1", "--prompts-per-round", "2", "--batch-size", "2", "--kl-every", "0"],
}
CALLS = [(name, algo) for name, preset in PRESETS.items() for algo in preset.settings]


@pytest.mark.parametrize(("name", "algo"), CALLS)
def test_runs_in_the_world(name: str, algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, scaled down, one update long; the tuned generator is kept."""
    monkeypatch.chdir(tmp_path)
    sizes = ["--prompt-count", "8", "--eval-prompts", "1", "--eval-images", "1", *TINY[algo]]
    words = ["--preset", name, "--algo", algo, *sizes, "--out", "run", "--name", "mine", "--json"]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    group = PRESETS[name].settings[algo]["group_size"]
    learnt = json.loads(done.stdout)["algorithm"]
    assert (learnt["group_size"], len(read(tmp_path / "run" / "metrics.jsonl"))) == (group, 1)
    assert (tmp_path / "run" / "generator" / "model.safetensors").exists()


@pytest.mark.parametrize(("name", "algo"), CALLS)
def test_dry_runs_on_its_own_model(name: str, algo: str) -> None:
    """Whole, by the names of the generators that it was made for, without their weights."""
    preset = PRESETS[name]
    assert preset.generators
    given = [] if preset.rewards else ["--reward", "clipscore.l14"]
    for generator in preset.generators:
        whole = planned("--preset", name, "--algo", algo, "--generator", generator, *given)
        for setting, value in preset.settings[algo].items():
            found = whole[setting]
            assert (tuple(found) if isinstance(value, tuple) else found) == value, setting  # type: ignore[arg-type]


def test_simple_ar_warms_up_and_ends_above_0() -> None:
    """A tenth of its updates warm up; then the rate falls by a cosine from 1e-6 to a tenth of it."""
    from transformers import TrainingArguments, get_scheduler

    config = ALGORITHMS["grpo"](**PRESETS["simple_ar"].values("grpo", scaled=False))
    assert config.warmup == -(-config.steps // 10)  # type: ignore[union-attr]
    generator = ShapesLlama.tiny()
    policy = Policy(generator.module, generator.statistics, [], Sampling())
    told = trainer_arguments(config, policy, Path("out"), world(torch.device("cpu")), rows=28)
    told = {name: value for name, value in told.items() if name.startswith(("lr_", "warmup"))}
    made = TrainingArguments("out", use_cpu=True, report_to="none", **told)
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule = get_scheduler(
        made.lr_scheduler_type,
        optimiser,
        made.get_warmup_steps(config.steps),  # type: ignore[union-attr]
        config.steps,  # type: ignore[union-attr]
        made.lr_scheduler_kwargs,
    )
    rates = []
    for _ in range(config.steps + 1):  # type: ignore[union-attr]
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert (rates[0], rates[79], rates[158]) == pytest.approx((0, 5e-7, 1e-6))
    assert rates[158 + 707] == pytest.approx(5.5e-7)
    assert rates[-1] == pytest.approx(1e-7)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "study"], "of dpo and grpo, got no --algo"),
        (["--preset", "t2i_r1", "--algo", "dpo"], "of grpo, got --algo dpo"),
        (["--preset", "ar_grpo", "--generator", "mine"], "names no reward"),
    ],
)
def test_refuses(words: list[str], said: str) -> None:
    """An algorithm that a preset is not of, and a reward that it does not name."""
    with pytest.raises(ValueError, match=said):
        CliRunner().invoke(command, [*words, "--dry-run"], catch_exceptions=False)

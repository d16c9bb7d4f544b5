"""`rwk optimize` and `rwk sample`, as they are called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rwk.adapters.pixels import Contrast
from rwk.calibration.calibrate import place_of
from rwk.calibration.pairs import PairTable
from rwk.calibration.storage import Binding, save
from rwk.calibration.temperature import Temperature
from rwk.cli.optimize import Settings, algorithm
from rwk.policy_opt import generator as generators
from rwk.policy_opt.configs import Dpo, Grpo, Rebel
from rwk.rewards import registry
from rwk.rewards.base import Scores
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load
from rwk.rewards.server import Server

SMALL = ["--prompt-count", "16", "--eval-prompts", "3", "--eval-images", "2", "--group-size", "4"]
GRPO = ["optimize", "--algo", "grpo", *SMALL, "--prompts-per-step", "4", "--save-every", "1", "--kl-every", "0"]
DPO = ["optimize", "--algo", "dpo", *SMALL, "--batch-size", "4", "--rounds", "2"]
REBEL = ["optimize", "--algo", "rebel", *SMALL, "--batch-size", "4", "--rounds", "2"]


class Counted(Contrast):
    """Contrast that counts the images that it scored."""

    scored = 0

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor | Scores:
        self.scored += len(images)
        return super()._score(images, prompts)


@pytest.fixture
def call(rwk: Any) -> Iterator[Callable[..., Any]]:
    """Calls a command that is to succeed in this process, with one thread, as those have that are started."""

    def done(*words: str) -> Any:
        ended = rwk(*words)
        assert ended.code == 0, ended.err
        return ended

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield done
    torch.set_num_threads(threads)


ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


WATCH = ["--watch", "shapes.verifier", "--watch-prompts", "4", "--watch-every", "1"]


@pytest.mark.parametrize("words", [[*GRPO, "--steps", "2", *WATCH], DPO, REBEL], ids=["grpo", "dpo", "rebel"])
def test_run_leaves_its_record_a_page_and_a_generator_to_name(words: list[str], tmp_path: Path, call: Any) -> None:
    """One JSON document on stdout; base, best of n and tuned, in three domains, with the truth; the name draws."""
    out = tmp_path / "run"
    document = json.loads(call(*words, "--out", str(out), "--name", "mine", "--json").out)
    assert list(document["results"]) == ["base", "best of 2", "tuned"]
    assert list(document["results"]["tuned"]) == ["in domain", "out of domain", "held out"]
    assert set(document["results"]["tuned"]["held out"]) == {"shapes.verifier", "gold accuracy"}
    for name in (
        "config.json",
        "metrics.jsonl",
        "result.json",
        "page.html",
        "curves.svg",
        "generator/model.safetensors",
    ):
        assert (out / name).stat().st_size > 0
    page = (out / "page.html").read_text()
    assert ("shapes.verifier beside the reward" in page) == ("--watch" in words)
    assert "data:image/webp" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    call("sample", "--generator", "mine", "--count", "2", "--per-prompt", "1", "--out", str(tmp_path / "s"))
    rows = [json.loads(line) for line in (tmp_path / "s" / "manifest.jsonl").read_text().splitlines()]
    assert all((tmp_path / "s" / row["image"]).stat().st_size > 0 for row in rows)
    assert len(rows) == 2


def test_killed_run_goes_on_where_it_was(tmp_path: Path, call: Any, rwk: Any) -> None:
    """After kill -9, `--resume` ends with the same generator as a run that was left alone.

    Other algorithms, and other places to be killed at, are in their own tests, on a smaller generator.
    """
    words = [*GRPO, "--steps", "4", "--save-every", "1"]
    call(*words, "--out", str(tmp_path / "whole"))
    cut = [*words, "--out", str(tmp_path / "cut")]
    command = [sys.executable, "-m", "rwk.cli", *cut]
    with subprocess.Popen(command, env=os.environ | ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not list((tmp_path / "cut" / "checkpoints").glob("checkpoint-*/complete")) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "result.json").exists()
    refused = rwk(*cut, "--resume", "--learning-rate", "1")
    assert refused.code == 2
    assert "has learning_rate" in refused.err
    assert "got 1.0; resume it with the settings that it has" in refused.err
    call(*cut, "--resume")
    steps = [[row["step"] for row in metrics(tmp_path / run)] for run in ("whole", "cut")]
    assert steps[0] == steps[1]
    weights = [(tmp_path / run / "generator" / "model.safetensors").read_bytes() for run in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_two_processes_learn_as_one(tmp_path: Path, call: Any) -> None:
    """Two processes (gloo) share the images of an update, and come to the results of one process up to rounding.

    One reward is behind `rwk serve`, which scores every image once, in learning and in judging, however many ask.
    All algorithms do so in test_trl_bridge.py, on a smaller generator.
    """
    reward = Counted()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "rwk.cli"]
    with Server({"contrast": reward}).running() as server:
        words = [*GRPO, "--steps", "2", "--reward", "shapes.verifier", "--reward", f"{server.url}/contrast"]
        two = [sys.executable, *launch, *words, "--out", str(tmp_path / "two"), "--json"]
        said = subprocess.run(two, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
        # Judged by what was written: gloo now and then aborts at interpreter exit, when all is done.
        document = json.loads(said.stdout)
        assert document["processes"] == 2, said.stderr
        assert reward.scored == 2 * 16 + 2 * 3 * 3 * 2  # of two updates, and of three domains before and after
        one = json.loads(call(*words, "--out", str(tmp_path / "one"), "--json").out)
    assert one["processes"] == 1
    for key in ("images_sampled", "reward_forwards", "tokens_trained", "steps"):
        assert document["cost"][key] == one["cost"][key]
    alone, together = ([row["loss"] for row in metrics(tmp_path / run)] for run in ("one", "two"))
    assert together == pytest.approx(alone, abs=1e-4)
    for domain, scores in one["results"]["base"].items():
        assert document["results"]["base"][domain] == scores


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, rwk: Any, tmp_path: Path) -> None:
    """Under a launcher `--device cuda` is the process's own GPU for the generator, every reward, and the processes."""
    asked: list[str] = []

    def told(load: Any) -> Any:
        def loaded(name: str, *, device: str) -> Any:
            asked.append(device)
            return load(name)

        return loaded

    def connect(device: torch.device) -> Any:
        asked.append(str(device))
        raise RunFailed("here are all processes.")

    monkeypatch.setattr("rwk.rewards.devices.devices", lambda: ["cpu:0", "cuda:0", "cuda:1"])  # none is used
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(generators, "load", told(generators.load))
    monkeypatch.setattr(registry, "load", told(registry.load))
    monkeypatch.setattr("rwk.policy_opt.optimize.world", connect)
    words = [*GRPO, "--reward", "colorfulness", "--watch", "contrast", "--watch-prompts", "4", "--out", str(tmp_path)]
    assert "here are all processes" in rwk(*words, "--device", "cuda").err
    assert asked == ["cuda:1"] * 5  # generator, reward, watched reward, truth, processes
    assert rwk(*words, "--device", "cuda", "--dry-run").code == 0
    assert asked == ["cuda:1"] * 6


def test_folder_that_is_taken_is_refused_before_anything_is_drawn(tmp_path: Path, rwk: Any) -> None:
    """A run in a folder that holds one is refused, and what lies there stays."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "config.json").write_text("{}")
    said = rwk(*DPO, "--out", str(tmp_path))
    assert said.code == 2
    assert "must be free for a new run, got one that holds a run; resume it or name another" in said.err
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--algo", "grpo", "--rounds", "2"], "--rounds is no setting of grpo"),
        (["--algo", "rebel", "--beta", "1"], "--beta is no setting of rebel"),
        (["--algo", "ppo"], "'ppo' is not one of"),
        ([], "name one with --algo or a --preset"),
        (["--algo", "grpo", "--scaled"], "--scaled is of a preset"),
        (["--algo", "dpo", "--reward", "custon"], "unknown reward 'custon'"),
        (["--algo", "dpo", "--generator", "shapes.lama"], "did you mean shapes.llama"),
        (["--algo", "dpo", "--prompts", "nowhere.txt"], "prompts must be a file or one of"),
        (["--algo", "dpo", "--resume"], "there is no run of dpo below runs/ to resume"),
        (["--algo", "grpo", "--gate", "0.25"], "run `rwk calibrate shapes.verifier`"),
        (["--algo", "grpo", "--std-floor", "card"], "run `rwk probe shapes.verifier`"),
        (["--algo", "grpo", "--std-floor", "cart"], "'cart' is neither a number nor card"),
        (["--algo", "grpo", "--stop-on-divergence"], "--stop-on-divergence needs a reward to watch, got none"),
        (["--algo", "dpo", "--top-p", "2"], "top_p must be above 0 and at most 1"),
        (["--algo", "dpo", "--name", "shapes.llama"], "a tuned generator needs a name of its own, got 'shapes.llama'"),
        (["--algo", "dpo", "--pair-k", "3"], "--pair-k does nothing without --pairs top_bottom; name that"),
        (["--algo", "dpo", "--label-smoothing", "0.1"], "--label-smoothing does nothing without --loss-type robust"),
        (["--algo", "grpo", "--kl-estimator", "k2"], "--kl-estimator does nothing without --beta; name that"),
        (["--preset", "t2i_r1", "--beta", "0", "--kl-estimator", "k2"], "--kl-estimator does nothing without --beta"),
        (["--algo", "grpo", "--entropy-targets", "nan"], "entropy_targets must be at least 0, got nan"),
        (["--algo", "grpo", "--max-draws", "8"], "--max-draws does nothing without --resampling dynamic"),
        (["--algo", "grpo", "--then", "contrast", "--then-after", "150"], "then_after must be below steps, 150"),
        (["--algo", "grpo", "--watch-prompts", "4"], "watch_prompts are of a reward to watch, got 4 and none"),
    ],
)
def test_wrong_call_is_one_sentence_and_exit_code_2(words: list[str], error: str, rwk: Any) -> None:
    """Nothing is run, and the message says what to do."""
    result = rwk("optimize", *words)
    assert result.code == 2
    assert error in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--algo", "grpo", "--token-weights", "panw"], "got shapes.llama, which draws one"),
        (["--algo", "grpo", "--prompt-count", "4"], "at least prompts_per_step different prompts, got 4"),
        (["--algo", "dpo", "--prompt-count", "1", "--score-meanwhile"], "score_meanwhile needs two prompts"),
    ],
)
def test_what_cannot_be_learnt_is_told_before_anything_is_judged(
    words: list[str], error: str, rwk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a dry run tells it, and not when the generator has been judged."""
    monkeypatch.setattr("rwk.policy_opt.optimize.judge", lambda *_, **__: pytest.fail("it was judged"))
    said = rwk("optimize", *words, "--out", "run")
    assert said.code == 2
    assert error in said.err
    assert not Path("run").exists()


def test_a_prompt_that_cannot_be_read_is_told_before_anything_is_drawn(tmp_path: Path, rwk: Any) -> None:
    """A run does not end hours later at a word that its generator lacks."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue zebra\n" + "".join(f"{n} red squares\n" for n in ("two", "three", "four")))
    said = rwk("optimize", "--algo", "dpo", "--prompts", str(prompts), "--out", str(tmp_path / "run"))
    assert said.code == 2
    assert "got 'zebra'" in said.err
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_prompts_that_it_has(tmp_path: Path, call: Any, rwk: Any) -> None:
    """A file of prompts that was changed since is another experiment."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{n} red circles\n" for n in ("two", "three", "four")) + "a red ring\na red circle\n")
    words = [*GRPO, "--steps", "1", "--prompts-per-step", "2", "--prompts", str(prompts), "--reward", "contrast"]
    words += ["--out", str(tmp_path / "run")]
    call(*words)
    prompts.write_text(prompts.read_text().replace("four red", "four blue"))
    said = rwk(*words, "--resume")
    assert said.code == 2
    assert "has prompts_sha256" in said.err


def test_calibrations_are_used_and_written_down(rwk: Any, tmp_path: Path) -> None:
    """Two rewards are mixed in log-odds of the temperatures that are kept for them, and a gate is put on it."""
    margin = np.linspace(-1, 1, 40)
    for name in ("shapes.verifier", "colorfulness"):
        fitted = Temperature().fit(PairTable(margin, 1 / (1 + np.exp(-3 * margin))))
        save(place_of(name), fitted, Binding.of(load(name)), data={})
    words = [*GRPO, "--steps", "1", "--reward", "shapes.verifier", "--reward", "colorfulness"]
    done = rwk(*words, "--aggregation", "log_odds", "--gate", "0.25", "--out", "run", "--json")
    assert done.code == 0, done.err
    temperatures = json.loads((tmp_path / "run" / "config.json").read_text())["temperatures"]
    assert temperatures == dict.fromkeys(("shapes.verifier", "colorfulness"), pytest.approx(1 / 3, rel=0.3))
    assert 0 < metrics(tmp_path / "run")[0]["gate"] <= 1


def test_settings_of_an_algorithm_keep_its_defaults() -> None:
    """What is not given is the algorithm's own."""
    given = Settings(learning_rate=0.5)
    assert algorithm("dpo", Settings(soft_labels=True), seed=3) == Dpo(soft_labels=True, seed=3)
    assert algorithm("grpo", given, seed=3) == Grpo(learning_rate=0.5, seed=3)
    assert algorithm("dpo", given, seed=3) == Dpo(learning_rate=0.5, seed=3)
    assert algorithm("rebel", given, seed=3) == Rebel(learning_rate=0.5, seed=3)

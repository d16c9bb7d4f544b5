"""The watch by cases that were worked out by hand, and in runs whose truth falls as their reward rises."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rwk.adapters.shapes_clip import ShapesClip
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.experiment import Experiment
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.journal import read
from rwk.policy_opt.optimize import watched_of
from rwk.policy_opt.outliers import embedding, outlier_share
from rwk.policy_opt.prompts import domains
from rwk.policy_opt.watch import combined, diverges, slope_interval
from rwk.policy_opt.watch_plot import draw_looks
from rwk.rewards.registry import load

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS = toy["Toy"], toy["Brightness"], toy["PROMPTS"]
GRPO, DPO, DARK = toy["GRPO"], toy["DPO"], toy["WATCHED"]
BRIGHT = [Weighted("bright", Brightness())]
STOP = replace(GRPO, stop_on_divergence=True)


def weights(generator: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()])


def tuned(run: Callable[..., Any], config: Any, out: Path, **options: Any) -> torch.Tensor:
    generator = Toy()
    run(config, generator, BRIGHT, PROMPTS, out=out, **options)
    return weights(generator)


def test_slope() -> None:
    """Sum of changes over sum of changes, with percentiles of the bootstrap over prompts; NaN rows are left out."""
    rng = np.random.default_rng(1)
    reward = rng.normal(1, 0.2, 60)
    truth = -0.5 * reward + rng.normal(0, 0.2, 60)
    found = slope_interval([*truth, np.nan, 1.0], [*reward, 1.0, np.nan])
    assert found is not None
    assert found.clusters == 60
    assert found.mean == pytest.approx(truth.sum() / reward.sum())
    drawn = [truth[rows].sum() / reward[rows].sum() for rows in rng.integers(0, 60, (4000, 60))]
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert found.high < 0
    still = slope_interval(truth - truth.mean(), reward)
    assert still is not None
    assert still.low < 0 < still.high
    unmoved = slope_interval(truth, reward - reward.mean() + 1e-3)
    assert unmoved is not None
    assert unmoved.low < 0 < unmoved.high
    assert diverges(found, reward)
    assert not diverges(slope_interval(-truth, -reward), -reward)  # the reward falls, the truth rises
    assert not diverges(still, reward)
    assert not diverges(None, reward)
    assert slope_interval([1.0], [1.0]) is None
    assert slope_interval([1.0, 2.0], [0.0, 0.0]) is None


def test_false_alarms() -> None:
    """Of truths that stay as they are about one in 40 looks like a fall."""
    rng = np.random.default_rng(0)
    found = [slope_interval(rng.normal(0, 1, 40), rng.normal(1, 0.5, 40), draws=400, seed=n) for n in range(400)]
    assert 0.01 < np.mean([one is not None and one.high < 0 for one in found]) < 0.05


def test_the_reward_of_a_look_has_a_lasting_unit() -> None:
    """One reward and a sum are as they are; standardised ones keep the mean and deviation of the beginning."""
    began, now = torch.rand(2, 6, 4, 2, generator=torch.Generator().manual_seed(0))
    two = [Weighted("a", Brightness(), 1.0, 2.0), Weighted("b", Brightness(), -2.0, 0.5)]
    assert torch.allclose(combined(now[..., :1], began[..., :1], two[:1], Grpo()), now[..., 0])
    assert torch.allclose(
        combined(now, began, two, Grpo(aggregation="log_odds")), now[..., 0] / 2 - 2 * now[..., 1] / 0.5
    )
    z = (now - began.mean((0, 1))) / (began - began.mean(1, keepdim=True)).square().mean((0, 1)).sqrt()
    assert torch.allclose(combined(now, began, two, Grpo()), z[..., 0] - 2 * z[..., 1], atol=1e-5)
    members = z * torch.tensor([1.0, -2.0])
    bound = members.mean(2) - 0.5 * (members[..., 0] - members[..., 1]).abs() / 2
    assert torch.allclose(combined(now, began, two, Grpo(aggregation="lower_bound", lower_k=0.5)), bound, atol=1e-5)


def test_divergence_is_told(tmp_path: Path) -> None:
    """Where the truth is what the reward is not, the first look says so, in its line and as an alarm of that update."""
    plain = tuned(grpo, GRPO, tmp_path / "plain")
    assert torch.equal(plain, tuned(grpo, GRPO, tmp_path / "watched", watched=DARK))
    looks = read(tmp_path / "watched" / "watch.jsonl")
    assert [look["step"] for look in looks] == [0, 4, 8]
    assert [look["diverged"] for look in looks] == [False, True, True]
    assert looks[1]["slope"]["mean"] == pytest.approx(-1)
    assert looks[0]["reward"]["mean"] == -looks[0]["watched"]["mean"]
    alarms = {row["step"]: row["alarms"] for row in read(tmp_path / "watched" / "metrics.jsonl") if "alarms" in row}
    assert list(alarms) == [4, 8]
    assert alarms[4] == ["dark falls while the reward rises: by 1 to 1 for each unit of the reward since update 0"]
    assert "slope" in draw_looks(looks, "dark")


def test_no_alarm_where_both_rise(tmp_path: Path) -> None:
    """The reward watched by itself has a slope of 1."""
    tuned(grpo, GRPO, tmp_path, watched=DARK._replace(reward=BRIGHT[0]))
    looks = read(tmp_path / "watch.jsonl")
    assert looks[-1]["slope"]["low"] == pytest.approx(1)
    assert not any(look["diverged"] for look in looks)


def test_a_run_ends_and_keeps_the_best(tmp_path: Path) -> None:
    """At the first divergence; the generator is that of the best look, here the one before the first update."""
    generator = Toy()
    trained = grpo(STOP, generator, BRIGHT, PROMPTS, out=tmp_path, watched=DARK)
    assert torch.equal(weights(generator), weights(Toy()))
    assert torch.equal(weights(Toy.from_folder(trained.generator)), weights(Toy()))
    assert (trained.ended, trained.steps, trained.images_sampled, trained.images_watched) == (True, 4, 96, 30)
    assert [row["step"] for row in read(trained.metrics)] == [1, 2, 3, 4]
    again = grpo(STOP, Toy(), BRIGHT, PROMPTS, out=tmp_path, watched=DARK, resume=True)
    assert again.steps == 4
    assert len(read(trained.metrics)) == 4


def turning(brightest: float) -> Any:
    """A truth that rises with brightness up to a point, and falls beyond it."""

    class Turning(Brightness):  # type: ignore[misc, valid-type]
        def _score(self, images: list[Any], prompts: list[str]) -> torch.Tensor:
            return -(super()._score(images, prompts).values - brightest).abs()

    return DARK._replace(reward=Weighted("turning", Turning()))


@pytest.mark.parametrize("at", [3, 12])
def test_resumes_where_it_was(tmp_path: Path, at: int) -> None:
    """Broken off before and after the best look, a run ends with the looks and the weights of one that was not."""
    config = replace(STOP, steps=24, watch_every=2, save_every=3, learning_rate=1.5e-2)
    whole = tuned(grpo, config, tmp_path / "whole", watched=turning(0.65))
    looks = read(tmp_path / "whole" / "watch.jsonl")
    best = max(looks, key=lambda look: look["watched"]["mean"])["step"]
    assert 0 < best < looks[-1]["step"] < 24
    kept = {path.stem for path in (tmp_path / "whole" / "watch").glob("weights-*")}
    assert f"weights-{best}" in kept
    assert "weights-0" not in kept  # no checkpoint is as old

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(grpo, config, tmp_path / "cut", watched=turning(0.65), progress=interrupt)
    assert torch.equal(whole, tuned(grpo, config, tmp_path / "cut", watched=turning(0.65), resume=True))
    assert read(tmp_path / "cut" / "watch.jsonl") == looks


def test_rounds_are_watched_too(tmp_path: Path) -> None:
    """A look at the end of a round, whose alarm stands in the round's last line; the run ends with the best."""
    found = tuned(dpo, replace(DPO, stop_on_divergence=True), tmp_path, watched=DARK)
    assert torch.equal(found, weights(Toy()))
    rows = read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "alarms" in row] == [6]
    assert [look["step"] for look in read(tmp_path / "watch.jsonl")] == [0, 6]
    assert torch.equal(found, tuned(dpo, replace(DPO, stop_on_divergence=True), tmp_path, watched=DARK, resume=True))
    assert len(read(tmp_path / "metrics.jsonl")) == len(rows) == 6


def test_outliers() -> None:
    """Few of what is like the cloud and many of what is far from it, whatever the tails and the dimensions."""
    rng = np.random.default_rng(0)
    for count, wide in ((400, 4), (160, 64)):
        cloud, own = rng.normal(0, 1, (count, wide)) ** 3, rng.normal(0, 1, (2000, wide)) ** 3
        assert outlier_share(rng.normal(0, 2, (count, wide)), rng.normal(0, 2, (4000, wide))) < 0.02
        assert outlier_share(cloud, own) < 0.06
        assert outlier_share(rng.normal(0, 2, (count, wide)), rng.normal(3, 2, (500, wide))) > 0.3
    assert np.isnan(outlier_share(rng.normal(0, 2, (7, 3)), rng.normal(0, 2, (9, 3))))


def test_features_are_those_of_the_reward() -> None:
    """An image has the features that its network gives, inside a combination too; a measure of pixels has none."""
    clip = ShapesClip.tiny()
    images = clip.example_images() or [image for image in Toy().decode(torch.zeros(3, 8).long())]
    found = embedding([load("colorfulness"), clip], images)
    assert found is not None
    pixels = torch.stack([clip.preprocessing.image(image.convert("RGB")) for image in images]) / 255
    assert torch.allclose(found, clip.image_features(pixels), atol=1e-5)
    assert embedding([load("colorfulness+contrast")], images) is None


def test_what_is_watched_is_neither_learnt_from_nor_judged(tmp_path: Path) -> None:
    """Of a family and of a file; a file of few prompts has none left."""
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt {number}\n" for number in range(40)))
    for source in ("shapes.long", str(path)):
        with_watch = domains(source, train=20, test=6, seed=0, watch=5)
        assert len(with_watch.watch) == 5
        others = [*with_watch.train, *(prompt for test in with_watch.test.values() for prompt in test)]
        assert not {prompt.text for prompt in with_watch.watch} & {prompt.text for prompt in others}
        assert domains(source, train=20, test=6, seed=0).test == with_watch.test
    path.write_text("".join(f"prompt {number}\n" for number in range(6)))
    few = domains(str(path), train=20, test=6, seed=0, watch=5)
    with pytest.raises(ValueError, match="--watch needs 2 prompts or more .* got 1"):
        watched_of(Experiment(prompts=str(path), watch="contrast"), few, {}, "cpu")

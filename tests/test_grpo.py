"""GRPO from end to end on the toy generator: it learns, resumes, repeats itself, and says when it cannot."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Grpo
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.grpo_run import prompt_schedule, reference_tokens
from rwk.policy_opt.journal import read
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.base import Scores
from rwk.rewards.errors import RunFailed

toy = runpy.run_path(str(Path(__file__).with_name("toy_generator.py")))
Toy, Brightness, PROMPTS, GRPO = toy["Toy"], toy["Brightness"], toy["PROMPTS"], toy["GRPO"]
BRIGHT = [Weighted("bright", Brightness())]


def brightness(generator: Any) -> float:
    """Mean brightness of what the generator draws now."""
    rollout = generator.sample(PROMPTS, per_prompt=8, seed=99)
    return float(Brightness().score(generator.decode(rollout.tokens)).values.mean())


def weights(generator: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in generator.module.parameters()])


def tuned(config: Grpo, out: Path, rewards: list[Weighted] = BRIGHT, **options: Any) -> Any:
    """A fresh toy generator after a run."""
    generator = Toy()
    grpo(config, generator, rewards, PROMPTS, out=out, **options)
    return generator


def test_learns(tmp_path: Path) -> None:
    """Brightness rises clearly, the saved generator is the tuned one, and the costs are counted."""
    generator = Toy()
    before = brightness(generator)
    config = replace(GRPO, steps=25, prompts_per_step=8, group_size=8)
    trained = grpo(config, generator, BRIGHT, PROMPTS, out=tmp_path)
    rows = read(trained.metrics)
    assert brightness(generator) > before + 0.25
    assert torch.equal(weights(Toy.from_folder(trained.generator)), weights(generator))
    assert [row["step"] for row in rows] == list(range(1, 26))
    assert rows[0]["kl"] == 0
    assert rows[-1]["kl"] > rows[2]["kl"] > 0
    assert rows[-1]["reward/bright/mean"] > rows[0]["reward/bright/mean"] + 0.2
    assert (trained.images_sampled, trained.reward_forwards, trained.tokens_trained) == (1600, 1600, 12800)


def test_trains_what_was_sampled(tmp_path: Path) -> None:
    """Under guidance and temperature the trained log-probabilities are the sampler's, and dropout is off."""
    sampling = Sampling(guidance=3.0, temperature=0.7)
    tuned(GRPO, tmp_path, sampling=sampling)
    assert max(row["drift"] for row in read(tmp_path / "metrics.jsonl")) < 1e-5


def test_what_is_not_guided_is_biased_and_says_so(tmp_path: Path) -> None:
    """In mode cond_only the gap to what was drawn from is written down beside the drift, for pairs too."""
    sampling = Sampling(guidance=3.0, temperature=0.7, mode="cond_only")
    tuned(replace(GRPO, steps=2), tmp_path / "grpo", sampling=sampling)
    dpo(toy["DPO"], Toy(), BRIGHT, PROMPTS, out=tmp_path / "dpo", sampling=sampling)
    for name in ("grpo", "dpo"):
        row = read(tmp_path / name / "metrics.jsonl")[0]
        assert row["drift"] < 1e-5
        assert row["guidance_gap"] > 0.01


def test_two_runs_are_one(tmp_path: Path) -> None:
    """One seed gives one result, whatever is measured beside; another seed gives another."""
    first = weights(tuned(GRPO, tmp_path / "1"))
    beside = [*BRIGHT, Weighted("dark", Brightness(gaps=True, sign=-1.0), 0.0)]
    assert torch.equal(first, weights(tuned(GRPO, tmp_path / "2", beside)))
    assert not torch.equal(first, weights(tuned(replace(GRPO, seed=4), tmp_path / "3")))
    assert read(tmp_path / "2" / "metrics.jsonl")[0]["reward/dark/mean"] < 0


def test_accumulates(tmp_path: Path) -> None:
    """Four passes of six images make the update that one pass of 24 makes."""
    whole = weights(tuned(GRPO, tmp_path / "1"))
    parts = weights(tuned(replace(GRPO, micro_batch=6), tmp_path / "4"))
    assert (whole - parts).abs().mean() < 1e-6  # Adam enlarges rounding where a gradient is all but 0


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"lora_rank": 4, "beta": 0.1, "ema": 0.7},
        {"num_iterations": 2, "prompts_per_step": 7},
        {"beta": 0.5, "reference_every": 3, "reference_mix": 0.4, "ema": 0.7, "kl_estimator": "k2"},
        {"token_weights": "stage"},
    ],
    ids=lambda change: "-".join(change) or "plain",
)
def test_resumes_where_it_was(tmp_path: Path, change: dict[str, Any]) -> None:
    """A run that breaks off and goes on ends with the weights, to the bit, of one that did not."""
    config = replace(GRPO, **change)
    whole = tuned(config, tmp_path / "whole")

    def interrupt(step: int, total: int, row: dict[str, Any]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(config, tmp_path / "parts", progress=interrupt)
    (tmp_path / "parts" / "checkpoints" / "checkpoint-6").mkdir()  # as if killed while writing it
    again = tuned(config, tmp_path / "parts", resume=True)
    assert torch.equal(weights(whole), weights(again))
    assert torch.equal(weights(whole), weights(tuned(config, tmp_path / "parts", resume=True)))  # nothing is left to do
    assert [row["step"] for row in read(tmp_path / "parts" / "metrics.jsonl")] == list(range(1, 9))


def test_survives_a_kill(tmp_path: Path) -> None:
    """Killed by SIGKILL anywhere, a run goes on to the weights, to the bit, and the metrics of one that was left alone.

    It is killed before there is a checkpoint, right after an update between two of them and at the last, and in the
    middle of the first, the fourth and the seventh draw.
    """

    def metrics(folder: Path) -> list[dict[str, Any]]:
        rows = read(folder / "metrics.jsonl")
        return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]

    whole = weights(tuned(GRPO, tmp_path / "whole"))
    places = {"1": 1, "5": 5, "8": 8, "draw-1": 0, "draw-4": 3, "draw-7": 6}
    for folder, done in zip(toy["killed"](tmp_path, "grpo", *places), places.values(), strict=True):
        assert [row["step"] for row in read(folder / "metrics.jsonl")] == list(range(1, done + 1)), folder.name
        assert not (folder / "generator").exists()
        assert torch.equal(weights(tuned(GRPO, folder, resume=True)), whole), folder.name
        assert metrics(folder) == metrics(tmp_path / "whole"), folder.name


def test_the_average_ends_the_run(tmp_path: Path) -> None:
    """The run ends with d w + (1 - d) w' of the weights after each update, from those at the beginning on."""
    ends = [weights(tuned(replace(GRPO, steps=steps), tmp_path / f"{steps}")) for steps in (1, 2)]
    expected = 0.6 * weights(Toy()) + 0.4 * ends[0]
    expected = 0.6 * expected + 0.4 * ends[1]
    averaged = weights(tuned(replace(GRPO, steps=2, ema=0.6), tmp_path / "ema"))
    assert torch.allclose(averaged, expected, atol=1e-6)


def test_the_reference_follows(tmp_path: Path) -> None:
    """A reference replaced after every update is the policy and costs nothing, a mixture less than a fixed one."""
    paid = []
    for change in ({}, {"reference_every": 1, "reference_mix": 0.5}, {"reference_every": 1}):
        config = replace(GRPO, beta=0.01, **change)
        tuned(config, tmp_path / str(len(paid)))
        paid.append(read(tmp_path / str(len(paid)) / "metrics.jsonl")[-1]["kl_penalty"])
    assert paid[0] > paid[1] > 10 * abs(paid[2])
    with pytest.raises(ValueError, match="reference_every must go with a beta above 0 and no adapters"):
        replace(GRPO, reference_every=2)


def test_lora(tmp_path: Path) -> None:
    """Adapters learn, are merged into plain trainable weights, and their reference is the generator without them."""
    generator = Toy()
    plain = {name: value.shape for name, value in generator.module.named_parameters()}
    start, before = weights(generator), brightness(generator)
    config = replace(GRPO, steps=25, lora_rank=4, learning_rate=3e-2, prompts_per_step=8, group_size=8, kl_every=1)
    grpo(config, generator, BRIGHT, PROMPTS, out=tmp_path)
    kl = [row["kl"] for row in read(tmp_path / "metrics.jsonl")]
    assert brightness(generator) > before + 0.15
    assert {name: value.shape for name, value in generator.module.named_parameters()} == plain
    assert all(value.requires_grad for value in generator.module.parameters())
    assert kl[0] == 0
    assert kl[-1] > 0.1
    moved = (weights(generator) - start).abs() > 0
    assert moved.sum() == generator.module.hidden.weight.numel() + generator.module.head.weight.numel()


def test_beta_holds_back(tmp_path: Path) -> None:
    """The penalty keeps the policy nearer to its reference."""
    kl = []
    for beta in (0.0, 1.0):
        config = replace(GRPO, steps=15, beta=beta, kl_every=14)
        tuned(config, tmp_path / str(beta))
        kl.append(read(tmp_path / str(beta) / "metrics.jsonl")[-1]["kl"])
    assert kl[1] < kl[0] / 2


@pytest.mark.parametrize("loss", ["gspo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo"])
def test_every_loss_learns(tmp_path: Path, loss: str) -> None:
    """Each form of the loss moves the weights towards bright images."""
    generator = Toy()
    before = brightness(generator)
    grpo(replace(GRPO, steps=10, loss_type=loss), generator, BRIGHT, PROMPTS, out=tmp_path)
    assert brightness(generator) > before + 0.03


def test_counts_what_has_no_score(tmp_path: Path) -> None:
    """Images without a score are counted, and take no part."""
    tuned(replace(GRPO, steps=2), tmp_path, [Weighted("gaps", Brightness(gaps=True))])
    assert 0 < read(tmp_path / "metrics.jsonl")[0]["unscored"] < 24


class Constant(Brightness):  # type: ignore[misc, valid-type]
    """The same score for every image, or none."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def _score(self, images: list[Any], prompts: list[str]) -> torch.Tensor:
        return torch.full([len(images)], self.value)


@pytest.mark.parametrize(
    ("value", "why"), [(0.5, "all images got the same reward"), (torch.nan, "no image got a score")]
)
def test_says_that_nothing_is_learnt(tmp_path: Path, value: float, why: str) -> None:
    """A reward that cannot teach stops the run after three updates, in one sentence."""
    with pytest.raises(RunFailed, match=f"first updates, 3 in number, learnt nothing: .*{why}"):
        tuned(GRPO, tmp_path, [Weighted("constant", Constant(value))])


def test_refuses_nonsense(tmp_path: Path) -> None:
    """A wrong call is refused with the numbers that do not fit."""
    with pytest.raises(ValueError, match="got 24 for 25"):
        tuned(replace(GRPO, prompts_per_step=25), tmp_path)
    with pytest.raises(ValueError, match="24 rows .* micro_batch of 7"):
        tuned(replace(GRPO, micro_batch=7), tmp_path / "micro")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds a run"):
        tuned(GRPO, tmp_path)
    for wrong in (
        {"group_size": 1},
        {"learning_rate": 0.0},
        {"loss_type": "ppo"},
        {"save_every": 3, "num_iterations": 2},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
            replace(GRPO, **wrong)


def test_schedule() -> None:
    """Every prompt comes once in a round, in another order each time, and none twice in one draw."""
    schedule = prompt_schedule(Grpo(steps=6, prompts_per_step=3), 7)
    draws = [schedule[start : start + 3] for start in range(0, 18, 3)]
    assert all(len(set(draw)) == 3 for draw in draws)
    assert len({*draws[0], *draws[1]}) == 6
    assert draws[:2] != draws[2:4]


@pytest.mark.parametrize(
    ("change", "reads"),
    [({}, 0), ({"kl_every": 4}, 2), ({"beta": 0.1}, 3), ({"beta": 0.1, "token_weights": "gcpo", "kl_every": 1}, 9)],
)
def test_what_the_reference_reads(change: dict[str, Any], reads: int) -> None:
    """Five updates, two a draw: once a draw for the pull, and for gcpo; to measure, at every fourth update or each."""
    config = Grpo(**{"steps": 5, "num_iterations": 2, "prompts_per_step": 2, "group_size": 3, "kl_every": 0} | change)
    assert reference_tokens(config, 5, 7) == reads * 6 * 7


class Half(Brightness):  # type: ignore[misc, valid-type]
    """1 for an image that is above a brightness, or below it, else 0."""

    def __init__(self, *, above: bool) -> None:
        super().__init__()
        self.above = above

    def _score(self, images: list[Any], prompts: list[str]) -> Scores:
        found = super()._score(images, prompts)
        return Scores(((found.values > 0.4) == self.above).float(), found.notes)


def test_solved_is_the_top_of_every_reward(tmp_path: Path) -> None:
    """Each image reaches the top of one of two rewards here, and none that of both; one without weight is left out."""
    above, below = Weighted("above", Half(above=True), 2.0), Weighted("below", Half(above=False))
    config = replace(GRPO, steps=1, save_every=0, kl_every=0)
    for name, rewards in (("both", [above, below]), ("one", [above, below._replace(weight=0.0)])):
        grpo(config, Toy(), rewards, PROMPTS, out=tmp_path / name)
        (row,) = read(tmp_path / name / "metrics.jsonl")
        share = row["reward/above/mean"]
        assert 0 < share < 1
        assert row["frac_solved"] == pytest.approx(0.0 if name == "both" else share)

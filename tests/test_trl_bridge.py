"""The border to TRL: what rwk leans on is there, TRL trains what we mean, silently, and processes work as one."""

from __future__ import annotations

import inspect
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt import trl_bridge
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.draws import Draws
from rwk.policy_opt.generator import Rollout
from rwk.policy_opt.grpo import Lesson, grpo
from rwk.policy_opt.journal import Journal, read
from rwk.policy_opt.pairs import PreferencePairs, all_pairs
from rwk.policy_opt.policy import Policy, world
from rwk.policy_opt.rebel import rebel
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.registry import load

SCRIPT = Path(__file__).with_name("toy_generator.py")
toy = runpy.run_path(str(SCRIPT))
Toy, Brightness, PROMPTS = (toy[name] for name in ("Toy", "Brightness", "PROMPTS"))
GRPO, DYNAMIC, DPO, REBEL = (toy[name] for name in ("GRPO", "DYNAMIC", "DPO", "REBEL"))
GUIDED = Sampling(guidance=2.0, temperature=0.8)
HINT = "TRL changed what trl_bridge.py or trl_trainers.py lean on; adapt it, this test and the bound in pyproject.toml."


def gradient_norm(loss: Tensor, generator: Any) -> float:
    gradients = torch.autograd.grad(loss, list(generator.module.parameters()))
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def trainer_of(algorithm: str, tmp_path: Path, draw: Any = None, reference: Any = None, **change: Any) -> Any:
    """A trainer of one update on the first prompts."""
    generator = Toy()
    policy = Policy(generator.module, generator.statistics, PROMPTS, GUIDED)
    journal, place = Journal(tmp_path / "metrics.jsonl"), world(torch.device("cpu"))
    if algorithm == "grpo":
        config = replace(GRPO, **{"steps": 1, "max_grad_norm": 100.0, **change})
        return trl_bridge.grpo_trainer(
            config, policy, reference, draw, list(range(6)), 8, journal, tmp_path / "checkpoints", place
        )
    begin: Any = trl_bridge.rebel_trainer if algorithm == "rebel" else trl_bridge.dpo_trainer
    given = {
        "dpo": DPO,
        "soft": replace(DPO, soft_labels=True),
        "margin": replace(DPO, margin_offset=0.7, margin_weight=True),
        "ipo": replace(DPO, loss_type="ipo"),
        "hinge": replace(DPO, loss_type="hinge"),
        "sft": replace(DPO, sft_weight=0.5),
        "rebel": REBEL,
    }[algorithm]
    config = replace(given, batch_size=3, epochs=1, max_grad_norm=1e4, **change)
    return begin(config, policy, draw, journal, tmp_path / "checkpoints", place, before=0)


def test_version() -> None:
    """TRL is one that this border was checked against."""
    assert version("trl").startswith("1.16."), HINT


def test_private_signatures() -> None:
    """Methods that are overridden, and functions whose effect is undone, have the arguments that are counted on."""
    import trl
    from trl.trainer import base_trainer, dpo_trainer, utils

    expected = {
        trl.GRPOTrainer._compute_loss: ["self", "model", "inputs"],
        trl.GRPOTrainer._generate_and_score_completions: ["self", "inputs"],
        trl.DPOTrainer._compute_loss: ["self", "model", "inputs", "return_outputs"],
        trl.DPOTrainer._prepare_dataset: ["self", "dataset", "processing_class", "args", "dataset_name"],
        trl.DPOTrainer._precompute_ref_logps: ["self", "dataset", "name", "batch_size"],
        base_trainer._BaseTrainer._send_telemetry: ["self"],
        utils.add_fused_lm_head: ["model", "temperature", "cast_lm_head_to_fp32", "outputs"],
    }
    for function, names in expected.items():
        assert list(inspect.signature(function).parameters) == names, f"{function.__qualname__}: {HINT}"
    assert {"log_probs", "entropy", "mean_logits", "is_top1"} <= set(utils.FusedCausalLMOutput.__annotations__), HINT
    columns = ("input_ids", "attention_mask", "completion_mask", "ref_chosen_logps", "ref_rejected_logps")
    collate = inspect.getsource(dpo_trainer.DataCollatorForPreference.torch_call)
    assert all(f'output["{column}"]' in collate for column in columns), HINT


@pytest.mark.parametrize("algorithm", ["grpo", "dpo"])
def test_private_attributes(tmp_path: Path, algorithm: str) -> None:
    """A trainer has the attributes that are set or read, and TRL's head is off the policy."""
    pairs = PreferencePairs(
        torch.arange(3),
        torch.ones(3, 1, 8).long(),
        torch.zeros(3, 1, 8).long(),
        torch.zeros(3, 1),
        torch.zeros(3, 1),
        torch.ones(3, 1),
        torch.ones(3, 1),
        torch.ones(3, 1),
    )
    trainer = trainer_of(algorithm, tmp_path, pairs if algorithm == "dpo" else lambda handles, step: None)
    names = {
        "grpo": ["_step", "_metrics", "beta", "ref_model", "num_iterations"],
        "dpo": ["use_weighting"],
    }
    for name in names[algorithm]:
        assert hasattr(trainer, name), f"{name}: {HINT}"
    assert trainer.model.forward.__func__ is Policy.forward, HINT


def test_policy_says_what_the_generator_says() -> None:
    """Log-probabilities and entropies come from the generator, with its guidance, and are 0 where a label is -100."""
    generator = Toy()
    rollout = generator.sample(PROMPTS[:3], seed=1, sampling=GUIDED)
    policy = Policy(generator.module, generator.statistics, PROMPTS, GUIDED)
    ids = torch.cat([torch.arange(3)[:, None], rollout.tokens], dim=1)
    labels = ids.clone()
    labels[:, 0] = labels[1, 5:] = -100
    output = policy(ids, labels=labels, use_cache=False)
    assert torch.allclose(output.log_probs[[0, 2]], rollout.logprobs[[0, 2]], atol=1e-5)
    assert output.log_probs[1].ne(0).tolist() == output.entropy[1].ne(0).tolist() == [True] * 4 + [False] * 4


def test_checkpoint_holds_what_learns() -> None:
    """The state of a policy is its trained parameters alone."""
    generator = Toy()
    generator.module.requires_grad_(False)
    generator.module.head.requires_grad_(True)
    state = Policy(generator.module, generator.statistics, PROMPTS, GUIDED).state_dict()
    assert sorted(state) == ["trained.head.bias", "trained.head.weight"]


def always(rollout: Rollout, advantage: Tensor) -> trl_bridge.Draw:
    return lambda handles, step: Lesson(rollout, advantage, torch.ones(len(rollout)))


def test_grpo_gradient(tmp_path: Path) -> None:
    """The first update follows - mean A log p, with the advantages we gave, under the guided distribution."""
    advantage = torch.linspace(-2, 2, 24).view(6, 4)
    advantage = (advantage - advantage.mean(1, keepdim=True)).flatten() * torch.linspace(1, 3, 6).repeat_interleave(4)
    drawn: list[Rollout] = []

    def draw(handles: list[int], step: int) -> Lesson:
        assert (handles, step) == (list(range(6)), 0)
        drawn.append(Toy().sample(PROMPTS[:6], per_prompt=4, seed=5, sampling=GUIDED))
        return always(drawn[0], advantage)(handles, step)

    trl_bridge.train(trainer_of("grpo", tmp_path, draw), None)
    generator = Toy()
    loss = -(advantage[:, None] * generator.logprobs(drawn[0])).mean()
    row = read(tmp_path / "metrics.jsonl")[0]
    assert row["grad_norm"] == pytest.approx(gradient_norm(loss, generator), rel=1e-4)
    assert row["drift"] < 1e-5


@pytest.mark.parametrize("micro", [0, 6])
def test_token_weights_gradient(tmp_path: Path, micro: int) -> None:
    """Advantages of tokens [B, L] reach the loss, whatever TRL shuffles, and each row keeps its mean."""
    weights = torch.rand(24, 8, generator=torch.Generator().manual_seed(1)) * 2
    advantage = torch.linspace(-2, 2, 24).view(6, 4)
    advantage = (advantage - advantage.mean(1, keepdim=True)).flatten()[:, None] * (
        weights / weights.mean(1, keepdim=True)
    )
    rollout = Toy().sample(PROMPTS[:6], per_prompt=4, seed=5, sampling=GUIDED)
    trl_bridge.train(trainer_of("grpo", tmp_path, always(rollout, advantage), micro_batch=micro), None)
    generator = Toy()
    loss = -(advantage * generator.logprobs(rollout)).mean()
    row = read(tmp_path / "metrics.jsonl")[0]
    assert row["grad_norm"] == pytest.approx(gradient_norm(loss, generator), rel=1e-4)


@pytest.mark.parametrize(("micro", "loss"), [(0, "grpo"), (6, "grpo"), (0, "gspo")])
def test_truncated_weights_gradient(tmp_path: Path, micro: int, loss: str) -> None:
    """Each token, or with gspo each image, counts by its probability now over the sampler's, cut off at the cap."""
    advantage = torch.linspace(-2, 2, 24).view(6, 4)
    advantage = (advantage - advantage.mean(1, keepdim=True)).flatten()
    rollout = Toy().sample(PROMPTS[:6], per_prompt=4, seed=5, sampling=GUIDED)
    wrong = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
    stated = replace(rollout, logprobs=rollout.logprobs + wrong)  # a sampler that is off
    change = {"micro_batch": micro, "importance_cap": 1.5, "loss_type": loss}
    trl_bridge.train(trainer_of("grpo", tmp_path, always(stated, advantage), **change), None)
    generator = Toy()
    now = generator.logprobs(rollout)
    weights = torch.zeros(24, 8)
    for row in range(24):
        for place in range(8):
            ahead = now[row] - stated.logprobs[row]
            ratio = (ahead.mean() if loss == "gspo" else ahead[place]).exp().item()
            weights[row, place] = min(ratio, 1.5)
    row = read(tmp_path / "metrics.jsonl")[0]
    written = -(advantage[:, None] * weights * now).mean()
    if loss == "gspo":  # one ratio for all tokens of an image
        written = -(advantage * weights[:, 0] * now.mean(1)).mean()
    assert row["grad_norm"] == pytest.approx(gradient_norm(written, generator), rel=1e-4)
    assert row["importance_weight"] == pytest.approx(weights.mean().item(), rel=1e-4)
    if loss == "grpo":
        assert row["importance_capped"] == pytest.approx((weights == 1.5).float().mean().item(), abs=1e-6)


def test_importance_weights_are_of_the_weights_that_drew(tmp_path: Path) -> None:
    """In a second update from one draw the policy has moved, and the weights have not."""
    rollout = Toy().sample(PROMPTS[:6], per_prompt=4, seed=5, sampling=GUIDED)
    advantage = torch.tensor([1.0, -1.0, 0.5, -0.5]).repeat(6)
    trainer = trainer_of(
        "grpo",
        tmp_path,
        always(rollout, advantage),
        importance_cap=2.0,
        num_iterations=2,
        steps=2,
    )
    trl_bridge.train(trainer, None)
    assert [row["importance_weight"] for row in read(tmp_path / "metrics.jsonl")] == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("micro", [0, 6])
@pytest.mark.parametrize("how", ["k1", "k2", "k3", "k3_plain"])
def test_kl_gradient(tmp_path: Path, how: str, micro: int) -> None:
    """Each estimator and its gradient, with the ratio written out; dapo scales as the others do."""
    rollout = Toy().sample(PROMPTS[:6], per_prompt=4, seed=5, sampling=GUIDED)
    elsewhere, generator = Toy(), Toy()
    with torch.no_grad():
        elsewhere.module.head.bias += torch.linspace(-1, 1, 16)
    reference = Policy(torch.nn.Identity(), elsewhere.statistics, PROMPTS, GUIDED)
    zero = torch.zeros(24)
    trainer = trainer_of(
        "grpo",
        tmp_path,
        always(rollout, zero),
        reference,
        beta=0.5,
        kl_estimator=how,
        loss_type="dapo",
        micro_batch=micro,
    )
    trl_bridge.train(trainer, None)
    now = generator.logprobs(rollout)
    d = now - elsewhere.logprobs(rollout).detach()
    ratio = (now - now.detach()).exp()
    k3 = (-d).exp() - 1 + d
    kl = {"k1": ratio * d, "k2": d**2 / 2, "k3": ratio * k3, "k3_plain": k3}[how].mean()
    row = read(tmp_path / "metrics.jsonl")[0]
    assert row["kl_penalty"] == pytest.approx(kl.item(), rel=1e-4)
    assert row["grad_norm"] == pytest.approx(gradient_norm(0.5 * kl, generator), rel=1e-4)


@pytest.mark.parametrize("micro", [0, 1])
@pytest.mark.parametrize("algorithm", ["dpo", "soft", "margin", "ipo", "hinge", "sft", "rebel"])
def test_pair_gradient(tmp_path: Path, algorithm: str, micro: int) -> None:
    """The first update follows the mean over prompts of the mean over the pairs of each, accumulated or not.

    Of a pair it is - log sigmoid, with hard or soft labels, or the squared error, of the ratios. All pairs of five
    images are learnt, but for those of equals: 4, 10 and 7 of a prompt.
    """
    reward = torch.tensor([1.0, 1, 1, 1, 0, 5, 2, 4, 1, 3, 2, 0, 1, 1, 1])
    rollout = Toy().sample(PROMPTS[:3], per_prompt=5, seed=5, sampling=GUIDED)
    mined = all_pairs(reward, rollout.group)
    assert torch.bincount(rollout.group[mined.won]).tolist() == [4, 10, 7]
    reference = -20 - torch.rand(15, generator=torch.Generator().manual_seed(2)) * 30
    zeros = torch.zeros(len(mined))
    drawn = Draws(
        rollout.group,
        rollout.tokens,
        reward[:, None],
        torch.empty(len(reward), 0, 2),
        reward,
        mined.won,
        mined.lost,
        reference[mined.won],
        reference[mined.lost],
        zeros,
        zeros,
    )
    config = replace(DPO, batch_size=3, group_size=5)
    assert drawn.updates(config) == DPO.epochs
    pairs = drawn.preferences(config, 2.0 if algorithm == "soft" else None)
    trl_bridge.train(trainer_of(algorithm, tmp_path, pairs, micro_batch=micro), None)

    generator = Toy()
    now = generator.logprobs(rollout).sum(1)
    ratio = (now - reference)[mined.won] - (now - reference)[mined.lost]
    share = 1 / (3 * torch.bincount(rollout.group[mined.won])[rollout.group[mined.won]])
    z, margin = DPO.beta * ratio, mined.margin
    if algorithm == "soft":
        p_won = (margin / 2).sigmoid()
        each = -p_won * z.sigmoid().log() - (1 - p_won) * (-z).sigmoid().log()
    elif algorithm == "margin":
        each = margin / (share * margin).sum() * (1 + (0.7 * margin - z).exp()).log()
    elif algorithm == "ipo":
        each = (ratio / 8 - 1 / (2 * DPO.beta)) ** 2  # per token, of 8
    elif algorithm == "hinge":
        each = (1 - z).clamp(min=0)
        assert 0 < (each == 0).sum() < len(each)
    elif algorithm == "rebel":
        each = (ratio / REBEL.eta - margin) ** 2
    else:
        each = -z.sigmoid().log() - (0.5 / 8 * now[mined.won] if algorithm == "sft" else 0)
    loss = (share * each).sum()
    row = read(tmp_path / "metrics.jsonl")[0]
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert row["grad_norm"] == pytest.approx(gradient_norm(loss, generator), rel=1e-4)


def test_an_image_of_several_pairs_is_read_once(tmp_path: Path) -> None:
    """All pairs of four images cost four rows, and not twelve."""
    generator, seen = Toy(), []
    generator.module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    config = replace(DPO, rounds=1, epochs=1, batch_size=6, prompts_per_round=6, pairs="all", kl_every=0)
    dpo(config, generator, [Weighted("bright", Brightness())], PROMPTS, out=tmp_path)
    assert max(seen) == 6 * 4
    assert len(read(tmp_path / "metrics.jsonl")) == 1


def test_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run prints nothing, sends nothing, and leaves no card of TRL's."""

    def fail(**_: Any) -> None:
        raise AssertionError("telemetry was sent")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", fail)
    monkeypatch.delenv("CI", raising=False)
    rewards = [Weighted("bright", Brightness())]
    capfd.readouterr()
    grpo(replace(GRPO, steps=2), Toy(), rewards, PROMPTS, out=tmp_path / "grpo")
    dpo(replace(DPO, rounds=1), Toy(), rewards, PROMPTS, out=tmp_path / "dpo")
    rebel(replace(REBEL, rounds=1), Toy(), rewards, PROMPTS, out=tmp_path / "rebel")
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.rglob("README.md"))


@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_checkpointing(tmp_path: Path, rank: int) -> None:
    """Layers are computed again while learning alone, to the same gradients, and not after the run."""
    prompts = ["a photo of a red circle", "a photo of a blue square"]
    norms, runs = [], []
    for again in (False, True):
        generator = ShapesLlama.tiny()
        layer = generator.module.model.layers[0]
        layer.mlp.register_forward_pre_hook(lambda *_, seen=runs: seen.append(torch.is_grad_enabled()))
        config = replace(GRPO, steps=1, prompts_per_step=2, lora_rank=rank, gradient_checkpointing=again, kl_every=0)
        reward = [Weighted("c", load("colorfulness"))]
        trained = grpo(config, generator, reward, prompts, out=tmp_path / str(again), sampling=GUIDED)
        norms.append(read(trained.metrics)[0]["grad_norm"])
        assert not any(part.gradient_checkpointing for part in generator.module.model.layers)
        assert sum(runs) == (4 if again else 2)  # two branches, each of them twice
        runs.clear()
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    with pytest.raises(ValueError, match="needs layers that can be computed again, got Network"):
        grpo(replace(GRPO, gradient_checkpointing=True), Toy(), [], PROMPTS, out=tmp_path / "toy")


@pytest.mark.parametrize("rank", [0, 2])
def test_a_transformers_model(tmp_path: Path, rank: int) -> None:
    """A generator of transformers learns as the toy does, wholly or by adapters, and is saved as plain weights."""
    generator = ShapesLlama.tiny()
    prompts = [f"a photo of a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square")]
    config = replace(GRPO, steps=2, prompts_per_step=2, lora_rank=rank, beta=0.1, kl_every=1, token_weights="gcpo")
    trained = grpo(config, generator, [Weighted("c", load("colorfulness"))], prompts, out=tmp_path, sampling=GUIDED)
    rows = read(trained.metrics)
    assert abs(rows[0]["kl"]) < 1e-3 < abs(rows[1]["kl"])
    assert max(row["drift"] for row in rows) < 1e-5
    rollout = generator.sample(prompts, seed=0)
    assert torch.equal(ShapesLlama.from_folder(trained.generator).logprobs(rollout), generator.logprobs(rollout))


def test_two_processes(tmp_path: Path) -> None:
    """Two processes draw, score and train half each, and end with what one makes of it alone, by each algorithm.

    With dynamic resampling they decide alike how often to draw, and learn groups that the other drew.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    words = [*command, str(tmp_path), "grpo", "dynamic", "dpo", "rebel"]
    done = subprocess.run(words, env=environment, capture_output=True, timeout=200)
    runs = (("grpo", grpo, GRPO), ("dynamic", grpo, DYNAMIC), ("dpo", dpo, DPO), ("rebel", rebel, REBEL))
    for name, run, config in runs:
        # Judged by what was written: a process may abort in native code after all is done (gloo, on CPU).
        assert (tmp_path / name / "generator").exists(), done.stderr.decode()[-2000:]
        alone: Any = run
        watched = toy["WATCHED"] if name == "grpo" else None
        rewards = [Weighted("bright", toy["Dead"]() if name == "dynamic" else Brightness())]
        trained = alone(config, Toy(), rewards, PROMPTS, out=tmp_path / "alone" / name, watched=watched)
        one, two = (
            load_file(folder / name / "generator/model.safetensors") for folder in (tmp_path, tmp_path / "alone")
        )
        difference = torch.cat([(one[key] - two[key]).abs().flatten() for key in one])
        assert difference.mean() < 1e-5  # Adam enlarges rounding where a gradient is all but 0
        rows = read(tmp_path / name / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, trained.steps + 1))
        assert [row.get("images") for row in rows] == [row.get("images") for row in read(trained.metrics)]
    ledgers = [(folder / "dynamic" / "ledger.jsonl").read_text() for folder in (tmp_path, tmp_path / "alone")]
    assert ledgers[0].count("\n") == ledgers[1].count("\n") > 8 * 6
    looks = [read(folder / "grpo" / "watch.jsonl") for folder in (tmp_path, tmp_path / "alone")]
    assert [look["step"] for look in looks[0]] == [0, 4, 8]
    assert looks[0][0] == looks[1][0]  # five prompts over two processes
    shares = [int((tmp_path / f"watched-{rank}").read_text()) for rank in range(2)]
    assert sorted(shares) == [3 * 2 * 3, 3 * 3 * 3]  # three looks at three images of two prompts, and of three

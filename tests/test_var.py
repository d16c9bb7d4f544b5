"""VAR: what its own code draws, says of codes, and shows; its published layout, and training."""

from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwk.adapters.var import Var16, Var36
from rwk.adapters.var_transformer import VarConfig, VarTransformer
from rwk.adapters.var_vq import VarVq, VarVqConfig
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Dpo, Grpo
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.generator import GENERATORS, Rollout
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load as load_reward

CASE = runpy.run_path(str(Path(__file__).with_name("var_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "var.json").read_text())
KINDS = {"var.d16": "own", "var.d36": "shared"}
"""A name of each kind of network, by what is recorded of it."""
PROMPTS = [str(label) for label in CASE["LABELS"]]
TOLERANCE = 1e-4
"""Of logits that lie some 10 apart, of log-probabilities, and of pixels."""


def kind_of(name: str) -> type[Var16]:
    return GENERATORS.target(name)  # type: ignore[return-value]


def drawn(network: nn.Module, seed: str) -> dict[str, Tensor]:
    """The weights of the case under the keys of a network."""
    shapes = {key: tuple(value.shape) for key, value in network.named_parameters()}
    return {key: torch.from_numpy(value) for key, value in CASE["weights"](shapes, seed).items()}


def make_small(patch: pytest.MonkeyPatch, name: str) -> type[Var16]:
    kind = kind_of(name)
    patch.setattr(kind, "sizes", VarConfig(**CASE["GPT"], sides=CASE["SIDES"], shared=kind is Var36))
    patch.setattr(kind, "vq_sizes", VarVqConfig(sides=CASE["SIDES"], **CASE["VQ"]))
    return kind


def write_published(kind: type[Var16], folder: Path) -> None:
    """The published files of a small network, with the numbers that are no weights, and what encodes."""
    length = sum(side**2 for side in CASE["SIDES"])
    state = drawn(VarTransformer(kind.sizes), "shared" if kind.sizes.shared else "own")
    state |= {"lvl_1L": torch.zeros(1, length).long(), "attn_bias_for_masking": torch.zeros(1, 1, length, length)}
    state |= {f"blocks.{i}.attn.zero_k_bias": torch.zeros(kind.sizes.hidden_size) for i in range(2)}
    vq = drawn(VarVq(kind.vq_sizes), "vq")
    vq |= {"encoder.conv_in.weight": torch.zeros(1), "quant_conv.weight": torch.zeros(1)}
    vq |= {"quantize.ema_vocab_hit_SV": torch.zeros(len(CASE["SIDES"]), 48)}
    torch.save(state, folder / kind.origin.file)
    torch.save(vq, folder / kind.vq_origin.file)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Var16]:
    """One generator of each kind, of folders like those published, in which all networks are small."""
    made: dict[str, Var16] = {}
    for name in KINDS:
        folder = tmp_path_factory.mktemp("var")
        with pytest.MonkeyPatch.context() as patch:
            write_published(make_small(patch, name), folder)
            made[name] = GENERATORS.load(f"{name}@{folder}")  # type: ignore[assignment]
    return made


def rollout_of(draws: dict[str, Any], recipe: dict[str, Any]) -> Rollout:
    tokens, logprobs = torch.tensor(draws["tokens"]), torch.tensor(draws["logprobs"])
    sampling = Sampling(recipe["cfg"] + 1, top_k=recipe["top_k"], top_p=recipe["top_p"] or 1.0)
    return Rollout(PROMPTS, torch.arange(len(tokens)), tokens, logprobs, sampling)


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_the_authors_code(loaded: dict[str, Var16], name: str, record_property: Any) -> None:
    """All maps in one pass, with and without the class."""
    generator, told = loaded[name], RECORDED[KINDS[name]]
    tokens = torch.tensor(told["draws"][0]["tokens"])
    for branch, rows in (("cond", PROMPTS), ("uncond", [None] * len(PROMPTS))):
        with torch.no_grad():
            logits = generator.image_logits(generator.states(rows, tokens))[..., ::12]
        AGREE(record_property, name, RECORDED, logits, torch.tensor(told[branch]), atol=TOLERANCE)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("number", range(3))
def test_probabilities_are_those_of_the_authors_sampler(
    loaded: dict[str, Var16], name: str, number: int, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Codes that their cached sampler drew, guided and truncated, have its probabilities, cached here and not."""
    generator, recipe = loaded[name], CASE["RECIPES"][number]
    theirs = rollout_of(RECORDED[KINDS[name]]["draws"][number], recipe)
    with torch.no_grad():
        AGREE(record_property, name, RECORDED, generator.logprobs(theirs), theirs.logprobs, atol=TOLERANCE)
    maps = iter(theirs.tokens.split(generator.spec.steps, 1))
    monkeypatch.setattr("rwk.policy_opt.stepwise.draw", lambda logp, uniform: next(maps).flatten())
    ours = generator.sample(PROMPTS, seed=0, sampling=theirs.sampling)
    assert torch.equal(ours.tokens, theirs.tokens)
    AGREE(record_property, name, RECORDED, ours.logprobs, theirs.logprobs, atol=TOLERANCE)


def test_pictures_are_those_of_the_authors_tokenizer(loaded: dict[str, Var16], record_property: Any) -> None:
    """Of the codes that were drawn, to the level below, as they have it."""
    generator, draws = loaded["var.d16"], RECORDED["own"]["draws"][0]
    tokens, official = torch.tensor(draws["tokens"]), torch.tensor(draws["pixels"])
    assert (official.diff() != 0).float().mean() > 0.7  # not all at the ends
    with torch.no_grad():
        pixels = generator.soft_pixels(generator.code_embeddings()[tokens]).flatten(1)[:, ::211]
    AGREE(record_property, "var.d16", RECORDED, pixels, official, atol=TOLERANCE)
    levels = torch.stack([torch.tensor(list(image.tobytes())) for image in generator.decode(tokens)])
    levels = levels.view(len(tokens), -1, 3).mT.flatten(1)[:, ::211]  # colour by colour, as pixels are
    sure = (255 * official % 1 - 0.5).abs() < 0.49
    assert torch.equal(levels[sure], (255 * official).long()[sure])


def digest(network: nn.Module) -> str:
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in network.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_published_layouts() -> None:
    """At full size every network has the keys and shapes of the authors', and its file the size that is told."""
    names = [name for name in GENERATORS.names() if name.startswith("var.")]
    assert {*names, "tokenizer"} == set(RECORDED["layouts"])
    for name in names:
        kind, told = kind_of(name), RECORDED["layouts"][name]
        with torch.device("meta"):
            assert digest(VarTransformer(kind.sizes)) == told["digest"]
            assert digest(VarVq(kind.vq_sizes)) == RECORDED["layouts"]["tokenizer"]["digest"]
        assert kind.origin.megabytes == told["megabytes"]
        depth, sides = CASE["PUBLISHED"][name]
        assert (kind.spec.steps, kind.spec.image_size) == (tuple(side**2 for side in sides), 16 * sides[-1])
        assert (kind.sizes.sides, kind.vq_sizes.sides) == (sides, sides)
        assert kind.origin.file == f"var_d{depth}.pth"
    assert Var16.vq_origin.megabytes == RECORDED["layouts"]["tokenizer"]["megabytes"]


@pytest.mark.parametrize("fault", ["missing", "not wanted", "of another shape"])
def test_other_checkpoints_are_refused(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that lacks a key, has one more, or one of another shape is refused by name."""
    kind = make_small(monkeypatch, "var.d16")
    write_published(kind, tmp_path)
    state = torch.load(tmp_path / kind.origin.file, weights_only=True)
    if fault == "not wanted":
        state["extra.weight"] = torch.zeros(1)
    elif fault == "missing":
        del state["head.weight"]
    else:
        state["head.weight"] = torch.ones(33)
    torch.save(state, tmp_path / kind.origin.file)
    with pytest.raises(ValueError, match=f"var.d16 cannot take this checkpoint: of its keys, 1 {fault}"):
        GENERATORS.load(f"var.d16@{tmp_path}")


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    """Nothing that could run code is opened."""
    torch.save(nn.Linear(1, 1), tmp_path / "var_d16.pth")
    torch.save({}, tmp_path / "vae_ch160v4096z32.pth")
    with pytest.raises(ValueError, match=r"var_d16\.pth holds pickled objects"):
        GENERATORS.load(f"var.d16@{tmp_path}")


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    """Without a network the file that lacks is named: the transformer, or else the tokenizer beside it."""
    with pytest.raises(RunFailed, match=r"needs var_d16.pth of FoundationVision/var \(about 1\d\d\d MB\)"):
        Var16()
    (tmp_path / "var_d16.pth").touch()
    with pytest.raises(RunFailed, match=r"vae_ch160v4096z32.pth .* copy var_d16.pth and vae_ch160v4096z32.pth"):
        GENERATORS.load(f"var.d16@{tmp_path}")


def test_guidance_rises_from_map_to_map() -> None:
    """Of the authors' cfg t the first map gets nothing and the last all."""
    generator = Var16.__new__(Var16)
    found = [generator.guidance_at(step, 5.0) for step in range(10)]
    assert found == pytest.approx([1 + 4 * step / 9 for step in range(10)])


def test_what_is_not_drawn_is_left_out() -> None:
    """A picture of some maps lacks the details of the others, and that of a part of a map is that without it."""
    generator = Var16.tiny()
    tokens = generator.sample(["1", "2"], seed=0).tokens
    some, more, whole = (generator.decode_partial(tokens[:, :count]) for count in (5, 11, 14))
    assert [image.tobytes() for image in some] == [image.tobytes() for image in more]
    assert [image.tobytes() for image in whole] == [image.tobytes() for image in generator.decode(tokens)]
    assert some[0].tobytes() != whole[0].tobytes()


def test_recomputing_layers_changes_no_gradient() -> None:
    """With gradient checkpointing values and gradients are the same."""
    generator = Var36.tiny()
    rollout = generator.sample(["1", "2"], seed=0, sampling=Sampling(guidance=3.0))
    found = []
    for again in (False, True):
        generator.module.gradient_checkpointing = again  # type: ignore[assignment]
        generator.module.train().zero_grad()
        generator.logprobs(rollout).sum().backward()
        found.append([value.grad for value in generator.module.parameters() if value.grad is not None])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("algorithm", ["grpo", "grpo with adapters", "dpo"])
def test_a_reward_moves_it(algorithm: str, tmp_path: Path) -> None:
    """Two updates with a reward of pixels change the policy, all of it or through LoRA, and what is saved."""
    generator = Var16.tiny()
    prompts = list(generator.example_prompts)
    before = generator.sample(prompts, seed=1)
    rewards = [Weighted("contrast", load_reward("contrast"))]
    shared: dict[str, Any] = {"group_size": 4, "learning_rate": 1e-2, "seed": 3}
    if algorithm == "dpo":
        dpo(Dpo(**shared, rounds=1, batch_size=2), generator, rewards, prompts, out=tmp_path / "run")
    else:
        extra: dict[str, Any] = {"token_weights": "panw"} if algorithm == "grpo" else {"lora_rank": 2}
        config = Grpo(**shared, **extra, steps=2, prompts_per_step=2)
        grpo(config, generator, rewards, prompts, out=tmp_path / "run")
    after = generator.logprobs(before).detach()
    assert after.isfinite().all()
    assert (after - before.logprobs).abs().max() > 1e-3
    saved = Var16.from_folder(tmp_path / "run" / "generator").logprobs(before).detach()
    torch.testing.assert_close(saved, after, rtol=0, atol=1e-5)

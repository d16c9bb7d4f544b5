"""Show-o: what its own code draws and shows; its published layout, its prompts and order, and training."""

from __future__ import annotations

import hashlib
import json
import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwk.adapters.magvit_vq import Magvit, MagvitConfig
from rwk.adapters.masked_order import halton_order, steps_of
from rwk.adapters.showo import VQ, PhiSizes, Showo, Showo512
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Dpo, Grpo
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.generator import GENERATORS, Rollout
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.errors import RunFailed
from rwk.rewards.registry import load as load_reward

CASE = runpy.run_path(str(Path(__file__).with_name("showo_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
RECORDED = json.loads((Path(__file__).with_name("parity") / "showo.json").read_text())
PROMPTS = list(CASE["PROMPTS"])
LENGTH = CASE["SIDE"] ** 2
TOLERANCE = 1e-4
"""Of log-probabilities and of pixels."""


def drawn(network: nn.Module, seed: str) -> dict[str, Tensor]:
    """The weights of the case under the keys of a network."""
    shapes = {key: tuple(value.shape) for key, value in network.named_parameters()}
    return {key: torch.from_numpy(value) for key, value in CASE["weights"](shapes, seed).items()}


def sizes() -> PhiSizes:
    return PhiSizes(**CASE["PHI"], words=len(CASE["tokenizer"]()))


def vq_sizes() -> MagvitConfig:
    names = ("BITS", "VQ_WIDTH", "MULTIPLES", "BLOCKS", "DECODER_MULTIPLES", "DECODER_BLOCKS")
    return MagvitConfig(*(CASE[name] for name in names))


def write_published(folder: Path) -> None:
    """The published files of a small network, with what reads images by CLIP and the tables of the tokenizer."""
    from safetensors.torch import save_file
    from transformers import PhiForCausalLM

    phi = drawn(PhiForCausalLM(sizes().config(1 << CASE["BITS"])), "phi")
    state = {f"showo.{key}": value for key, value in phi.items()} | {"mm_projector.0.weight": torch.zeros(1)}
    vq = drawn(Magvit(vq_sizes()), "vq")
    vq |= {"quantize.embedding": torch.zeros(32, 5), "quantize.power_vals": torch.zeros(5).long()}
    (folder / "magvitv2").mkdir()
    save_file(state, folder / VQ.file)
    save_file(vq, folder / "magvitv2" / VQ.file)
    CASE["tokenizer"]().save_pretrained(folder)


def make_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Showo, "sizes", sizes())
    patch.setattr(Showo, "vq_sizes", vq_sizes())
    patch.setattr(Showo, "spec", replace(Showo.spec, tokens=LENGTH, steps=steps_of(LENGTH, CASE["DRAWS"])))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Showo:
    """A generator of a folder like those published, in which all networks are small."""
    folder = tmp_path_factory.mktemp("showo")
    write_published(folder)
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        return GENERATORS.load(f"showo.256@{folder}")  # type: ignore[return-value]


def test_prompts_are_read_as_by_the_authors(loaded: Showo) -> None:
    """With marks, once a begin, and the end kept where a prompt is cut."""
    assert [loaded.prompt_ids(prompt) for prompt in PROMPTS] == RECORDED["draws"][0]["ids"]
    assert loaded.prompt_ids(None) == loaded.prompt_ids("")


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("row", range(4))
def test_probabilities_are_those_of_the_authors_network(
    loaded: Showo, number: int, row: int, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Codes that their sampler kept have its probabilities under the same masks, prompt by prompt, as in a batch."""
    draws = RECORDED["draws"][number]
    kept = torch.tensor(draws["kept"][row])
    counts = tuple(kept.bincount().tolist())
    assert counts == loaded.spec.steps
    monkeypatch.setattr(loaded, "order", kept.argsort(stable=True))
    tokens, logprobs = (torch.tensor(draws[name])[:, loaded.order] for name in ("tokens", "logprobs"))
    sampling = Sampling(CASE["GUIDANCE"][number] + 1)
    theirs = Rollout(PROMPTS, torch.arange(len(tokens)), tokens, logprobs, sampling)  # of which one row has this order
    with torch.no_grad():
        found = loaded.logprobs(theirs)[row]
    AGREE(record_property, "showo.256", RECORDED, found, logprobs[row], atol=TOLERANCE)


def test_pictures_are_those_of_the_authors_tokenizer(loaded: Showo, record_property: Any) -> None:
    """Codes have their pixels, to the level below, and pixels their codes."""
    tokens = torch.tensor(RECORDED["draws"][0]["tokens"])[:, loaded.order]
    official = (torch.tensor(RECORDED["vq"]["pixels"]).clamp(-1, 1) + 1) / 2
    assert (official.diff() != 0).float().mean() > 0.7  # not all at the ends
    with torch.no_grad():
        pixels = loaded.soft_pixels(loaded.code_embeddings()[tokens]).flatten(1)[:, ::5]
    AGREE(record_property, "showo.256", RECORDED, pixels, official, atol=TOLERANCE)
    levels = torch.stack([torch.tensor(list(image.tobytes())) for image in loaded.decode(tokens)])
    levels = levels.view(len(tokens), -1, 3).mT.flatten(1)[:, ::5]  # colour by colour, as pixels are
    sure = (255 * official % 1 - 0.5).abs() < 0.49
    assert torch.equal(levels[sure], (255 * official).long()[sure])
    codes = loaded.vq.encode((torch.from_numpy(CASE["pixels"]()) + 1) / 2)
    assert codes.tolist() == RECORDED["vq"]["codes"]
    assert len(codes.unique()) > 3


def digest(network: nn.Module, prefix: str = "") -> str:
    lines = sorted(f"{prefix}{key} {tuple(value.shape)}" for key, value in network.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_published_layouts() -> None:
    """At full size the networks have the keys and shapes of the authors', and the files the sizes that are told."""
    from transformers import PhiForCausalLM

    network, tokenizer = (RECORDED["layouts"][name] for name in ("network", "tokenizer"))
    with torch.device("meta"):
        assert digest(PhiForCausalLM(PhiSizes().config(8192)), "showo.") == network["digest"]
        assert digest(Magvit(MagvitConfig())) == tokenizer["digest"]
    names = [name for name in GENERATORS.names() if name.startswith("showo.")]
    kinds: list[type[Showo]] = [GENERATORS.target(name) for name in names]  # type: ignore[misc]
    assert len({kind.origin.hub for kind in kinds}) == len(names) == 5
    for kind in kinds:
        assert abs(kind.origin.megabytes - network["megabytes"]) < 40
        assert sum(kind.spec.steps) == kind.spec.tokens == (kind.spec.image_size // 16) ** 2
        assert kind.spec.licence == kind.origin.licence
    assert abs(VQ.megabytes - tokenizer["megabytes"]) < 2


@pytest.mark.parametrize("fault", ["missing", "not wanted", "of another shape"])
@pytest.mark.parametrize("part", ["network", "tokenizer"])
def test_other_checkpoints_are_refused(tmp_path: Path, fault: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that lacks a key, has one more, or one of another shape is refused by name."""
    from safetensors.torch import load_file, save_file

    make_small(monkeypatch)
    write_published(tmp_path)
    folder, key = (
        (tmp_path, "showo.lm_head.weight") if part == "network" else (tmp_path / "magvitv2", "decoder.conv_in.bias")
    )
    state = load_file(folder / VQ.file)
    if fault == "not wanted":
        state["extra.weight"] = torch.zeros(1)
    elif fault == "missing":
        del state[key]
    else:
        state[key] = torch.ones(33)
    save_file(state, folder / VQ.file)
    with pytest.raises(ValueError, match=r"showo\.256 .* checkpoint.* 1 (keys that are )?(missing|not wanted|of ano)"):
        GENERATORS.load(f"showo.256@{tmp_path}")


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the file that lacks is named: the network, the tokenizer of images, or that of texts."""
    with pytest.raises(RunFailed, match=r"needs pytorch_model.safetensors of showlab/show-o \(about 5790 MB\)"):
        Showo()
    make_small(monkeypatch)
    write_published(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(RunFailed, match=r"needs the tokenizer of microsoft/phi-1_5"):
        GENERATORS.load(f"showo.256@{tmp_path}")
    (tmp_path / "magvitv2" / VQ.file).unlink()
    with pytest.raises(RunFailed, match=r"showlab/magvitv2 .* into its folder magvitv2 and name it as showo.256@PATH"):
        GENERATORS.load(f"showo.256@{tmp_path}")


def test_another_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks and codes stand behind the words, so one word more would shift them all."""
    make_small(monkeypatch)
    write_published(tmp_path)
    tokenizer = CASE["tokenizer"]()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs a tokenizer of 257 words, got one of 258; take microsoft"):
        GENERATORS.load(f"showo.256@{tmp_path}")


def test_steps() -> None:
    """By the cosine: of 256 codes in 18 draws, and as many draws as tokens at most."""
    left = [256, *(math.floor(256 * math.cos(math.pi * step / 36)) for step in range(1, 18)), 0]
    found = steps_of(256, 18)
    assert found == Showo.spec.steps
    assert max(abs(sum(found[:step]) - 256 + left[step]) for step in range(19)) <= 1  # of float32, as the authors
    assert steps_of(9, 9) == (1,) * 9
    for draws in (0, 10):
        with pytest.raises(ValueError, match=f"made in 1 to 9 draws, got {draws}"):
            steps_of(9, draws)


def test_order() -> None:
    """Every place once, in the order of the two-dimensional sequence, which begins as its definition says."""
    for side in (1, 3, 16, 32):
        assert halton_order(side).sort().values.tolist() == list(range(side**2))
    points = [(1 / 2, 1 / 3), (1 / 4, 2 / 3), (3 / 4, 1 / 9), (1 / 8, 4 / 9), (5 / 8, 7 / 9)]  # as the sequence begins
    assert halton_order(16)[:5].tolist() == [int(16 * row) * 16 + int(16 * column) for row, column in points]


def test_more_draws_may_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws are the constructor's, and are kept with the generator."""
    make_small(monkeypatch)
    write_published(tmp_path)
    generator = Showo(weights=tmp_path, draws=2)
    assert generator.spec.steps == steps_of(LENGTH, 2)
    generator.save(tmp_path / "saved")
    assert Showo.from_folder(tmp_path / "saved").spec.steps == generator.spec.steps


def test_padding_changes_nothing(loaded: Showo) -> None:
    """A long prompt in the batch, which pads the others, changes no state of theirs."""
    codes = torch.zeros([2, 0], dtype=torch.long)
    with torch.no_grad():
        alone, among = loaded.reader(["a"])(codes[:1]), loaded.reader(["a", "much longer than that"])(codes)
    torch.testing.assert_close(alone[0], among[0])


def test_what_is_not_drawn_is_grey() -> None:
    """A picture of some codes is of full size, and of none it is that of a grey one."""
    generator = Showo.tiny()
    tokens = generator.sample(["a", "b"], seed=0).tokens
    none, some, whole = (generator.decode_partial(tokens[:, :count]) for count in (0, 4, 9))
    assert none[0].tobytes() == none[1].tobytes()
    assert [image.tobytes() for image in whole] == [image.tobytes() for image in generator.decode(tokens)]
    assert len({none[0].tobytes(), some[0].tobytes(), whole[0].tobytes()}) == 3


def test_recomputing_layers_changes_no_gradient() -> None:
    """With transformers' gradient checkpointing values and gradients are the same."""
    generator = Showo512.tiny()
    rollout = generator.sample(["a dog", "the cat sat"], seed=0, sampling=Sampling(guidance=3.0))
    found = []
    for again in (False, True):
        if again:
            generator.module.activation_checkpointing_enable()
        generator.module.train().zero_grad()
        generator.logprobs(rollout).sum().backward()
        found.append([value.grad for value in generator.module.parameters() if value.grad is not None])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("algorithm", ["grpo", "grpo with adapters", "dpo"])
def test_a_reward_moves_it(algorithm: str, tmp_path: Path) -> None:
    """Two updates with a reward of pixels change the policy, all of it or through LoRA, and what is saved."""
    generator = Showo.tiny()
    prompts = list(generator.example_prompts)
    before = generator.sample(prompts, seed=1)
    rewards = [Weighted("contrast", load_reward("contrast"))]
    shared: dict[str, Any] = {"group_size": 4, "learning_rate": 1e-2, "seed": 3}
    if algorithm == "dpo":
        dpo(Dpo(**shared, rounds=1, batch_size=2), generator, rewards, prompts, out=tmp_path / "run")
    else:
        config = Grpo(**shared, lora_rank=0 if algorithm == "grpo" else 2, steps=2, prompts_per_step=2)
        grpo(config, generator, rewards, prompts, out=tmp_path / "run")
    after = generator.logprobs(before).detach()
    assert after.isfinite().all()
    assert (after - before.logprobs).abs().max() > 1e-3
    saved = Showo.from_folder(tmp_path / "run" / "generator").logprobs(before).detach()
    torch.testing.assert_close(saved, after, rtol=0, atol=1e-5)

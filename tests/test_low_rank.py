"""Low-rank changes beside weights of half precision: what was learnt is drawn, judged, saved and learnt on."""

from __future__ import annotations

import copy
import functools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from rwk.adapters.janus import JanusPro, random_network, tiny_tokenizer
from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt import generator as generators
from rwk.policy_opt.advantage import Weighted
from rwk.policy_opt.configs import Dpo, Grpo
from rwk.policy_opt.contract import check_leaves_the_module, check_saves_and_loads
from rwk.policy_opt.dpo import dpo
from rwk.policy_opt.generator import Generator, Rollout
from rwk.policy_opt.grpo import grpo
from rwk.policy_opt.ladder import ladder
from rwk.policy_opt.ladder_config import Ladder
from rwk.policy_opt.low_rank import ADAPTER, put_on, taken_off
from rwk.policy_opt.policy import trainable
from rwk.policy_opt.probability_checks import check_logprobs_match_the_sampler
from rwk.policy_opt.quiet import quiet
from rwk.rewards.registry import load

PROMPTS = ["a red cat", "two birds", "a small dog", "a tree"]
COLOUR = [Weighted("colour", load("colorfulness"))]
HALF = torch.bfloat16
GRPO = Grpo(steps=3, prompts_per_step=4, group_size=4, learning_rate=1e-2, kl_every=1, save_every=0, lora_rank=4)


@functools.cache
def _made() -> JanusPro:
    return JanusPro.of(random_network(layers=1, side=2), tiny_tokenizer())


def small(dtype: torch.dtype = HALF) -> JanusPro:
    """A Janus of one layer and four codes of one precision, whose weights are the numbers of bfloat16."""
    generator = copy.deepcopy(_made())
    with torch.no_grad():
        for number, p in enumerate(generator.module.parameters()):
            p.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
        for p in generator.network.parameters():
            p.data = p.to(HALF).to(dtype)
    return generator


def moved(generator: Generator, seed: int = 0, size: float = 1e-3) -> dict[str, tuple[Tensor, Tensor]]:
    """Puts random changes of rank 2, of deviation `size` each weight, on all linear layers, as if they were learnt."""
    with quiet(), trainable(generator, replace(GRPO, lora_rank=2), keep=False):
        changes = {
            name: (part.lora_A["default"].weight.detach(), part.lora_B["default"].weight.detach())
            for name, part in generator.module.named_modules()
            if hasattr(part, "lora_A")
        }
        source = torch.Generator().manual_seed(seed)
        for down, up in changes.values():
            down.normal_(generator=source)
            up.normal_(std=size, generator=source)
        return {name: (down.clone(), 2 * up.clone()) for name, (down, up) in changes.items()}


def told(generator: Generator, rollout: Rollout) -> Tensor:
    with torch.no_grad():
        return generator.logprobs(rollout)


def drawn(generator: Generator) -> Rollout:
    return generator.sample(PROMPTS, per_prompt=2, seed=0)


@contextmanager
def last_policy(monkeypatch: pytest.MonkeyPatch, seen: list[Tensor], rollout: Rollout) -> Iterator[None]:
    """Keeps what the policy says of a rollout right before learning ends."""
    from rwk.policy_opt import trl_bridge

    train = trl_bridge.train

    def watched(trainer: Any, *given: Any, **more: Any) -> None:
        train(trainer, *given, **more)
        with torch.no_grad():
            seen.append(trainer.model.statistics(rollout).logprobs)

    with monkeypatch.context() as patch:
        patch.setattr(trl_bridge, "train", watched)
        yield


@pytest.mark.parametrize(
    ("learn", "config"),
    [
        (grpo, GRPO),
        (dpo, Dpo(rounds=1, batch_size=2, group_size=4, learning_rate=1e-2, lora_rank=4, prompts_per_draw=2)),
    ],
    ids=["grpo", "dpo"],
)
def test_what_was_learnt_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learn: Any, config: Any) -> None:
    """After the run, and from its folder, the generator says of images to the bit what the policy said at its end."""
    generator, rollout = small(), drawn(small())
    began, learnt = told(generator, rollout), list[Tensor]()
    with last_policy(monkeypatch, learnt, rollout):
        trained = learn(config, generator, COLOUR, PROMPTS, out=tmp_path)
    assert (learnt[-1] - began).abs().sum() > 0.01
    assert torch.equal(told(generator, rollout), learnt[-1])
    loaded = generators.load(str(trained.generator))
    assert torch.equal(told(loaded, rollout), learnt[-1])
    assert torch.equal(drawn(loaded).tokens, drawn(generator).tokens)
    assert {p.dtype for p in loaded.module.parameters() if p.requires_grad} == {HALF}


def test_a_merge_would_lose_it() -> None:
    """Changes of 1e-5 a weight, merged into bfloat16, move few weights; beside them they are whole."""
    generator, rollout = small(), drawn(small())
    began = told(generator, rollout)
    plain = {name: p.detach().clone() for name, p in generator.module.named_parameters()}
    changes = moved(generator, size=1e-5)
    beside = told(generator, rollout)
    taken_off(generator.module)
    total = kept = 0
    with torch.no_grad():
        for name, (down, up) in changes.items():
            weight = generator.module.get_parameter(f"{name}.weight")
            weight += (up @ down).to(HALF)
            total += weight.numel()
            kept += int((weight != plain[f"{name}.weight"]).sum())
    assert kept < 0.1 * total
    assert (beside - began).abs().mean() > 0


def test_weights_of_float32_take_changes_up() -> None:
    """A float32 generator has plain weights afterwards, and says the same."""
    generator = small(torch.float32)
    rollout, names = drawn(generator), [name for name, _ in generator.module.named_parameters()]
    changes = moved(generator)
    assert [name for name, _ in generator.module.named_parameters()] == names
    other = small(torch.float32)
    put_on(other.module, changes)
    torch.testing.assert_close(told(generator, rollout), told(other, rollout), rtol=0, atol=1e-4)


def test_goes_on_beside_what_was_learnt(tmp_path: Path) -> None:
    """A second run begins at what the first learnt, measures from there, and ends with the sum, of both ranks."""
    generator, rollout = small(), drawn(small())
    first = moved(generator)
    began = told(generator, rollout)
    copied = copy.deepcopy(generator)
    assert torch.equal(told(copied, rollout), began)
    with trainable(generator, GRPO, keep=True) as reference:
        assert reference is not None
        assert torch.equal(told(generator, rollout), began)
        learns = {name for name, p in generator.module.named_parameters() if p.requires_grad}
        assert learns
        assert all(".default." in name for name in learns)
        with torch.no_grad():
            for name, p in generator.module.named_parameters():
                if "lora_B.default" in name:
                    p.normal_(std=1e-2, generator=torch.Generator().manual_seed(5))
        now = told(generator, rollout)
        assert (now - began).abs().max() > 0.003
        assert torch.equal(reference(rollout).logprobs, began)
        assert torch.equal(told(generator, rollout), now)
        assert {name for name, p in generator.module.named_parameters() if p.requires_grad} == learns
    torch.testing.assert_close(told(generator, rollout), now, rtol=0, atol=0.02)  # two products are one, in bfloat16
    changes = taken_off(generator.module)
    assert {len(down) for down, _ in changes.values()} == {2 + 4}
    for name, (down, up) in first.items():
        assert torch.equal(changes[name][0][:2], down)
        assert torch.equal(changes[name][1][:, :2], up)


def test_commands_take_what_was_kept(tmp_path: Path, rwk: Any) -> None:
    """By its name it is told of, drawn from and learnt from; another of that name leaves nothing of it behind."""
    small().save(tmp_path / "begun")
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "a house", "a boat"]))
    words = ["--algo", "grpo", "--name", "mine", "--prompts", "prompts.txt", "--steps", "1", "--prompts-per-step", "2"]
    words += ["--group-size", "2", "--reward", "contrast", "--eval-prompts", "1", "--eval-images", "1", "--json"]
    words += ["--learning-rate", "1e-2", "--save-every", "0"]
    ended = rwk("optimize", *words, "--generator", "begun", "--lora-rank", "4", "--out", "run")
    assert ended.code == 0, ended.err
    kept = generators.load("run/generator")
    assert taken_off(generators.load("mine").module)
    told_of = json.loads(rwk("info", "mine", "--json").out)
    assert told_of["class"] == "rwk.adapters.janus:JanusPro"
    sizes = [file.stat().st_size for file in (tmp_path / "run" / "generator").rglob("*.safetensors")]
    assert len(sizes) == 2
    assert told_of["megabytes"] == round(sum(sizes) / 1e6, 2)
    assert rwk("sample", "--generator", "mine", "--prompt", PROMPTS[0], "--per-prompt", "2", "--json").code == 0
    images = kept.decode(kept.sample(PROMPTS[:1], per_prompt=2, seed=0).tokens)
    for place, image in enumerate(images):
        assert Image.open(tmp_path / "samples" / f"00000-{place}.png").tobytes() == image.tobytes()
    words_of = ["--benchmark", "prompts.txt", "--reward", "contrast", "--images", "1", "--seeds", "1", "--json"]
    evaluated = rwk("evaluate", "--generator", "mine", *words_of)
    assert evaluated.code == 0, evaluated.err
    again = rwk("optimize", *words, "--generator", "begun", "--out", "plain")
    assert again.code == 0, again.err
    assert not taken_off(generators.load("mine").module)


def test_all_weights_learn_beneath(tmp_path: Path) -> None:
    """A run without LoRA moves the weights beneath earlier changes, which stay as they are, and are kept too."""
    generator = small()
    changes = moved(generator)
    weights = {name: p.detach().clone() for name, p in generator.module.named_parameters() if "lora_" not in name}
    config = replace(GRPO, lora_rank=0, learning_rate=1e-3)
    trained = grpo(config, generator, COLOUR, PROMPTS, out=tmp_path)
    rollout = drawn(generator)
    assert torch.equal(told(generators.load(str(trained.generator)), rollout), told(generator, rollout))
    now = dict(generator.module.named_parameters())
    assert sum(int((now[name] != value).sum()) for name, value in weights.items()) > 1000
    after = taken_off(generator.module)
    assert all(torch.equal(after[name][place], changes[name][place]) for name in changes for place in (0, 1))


def test_a_ladder_climbs_on_what_it_learnt(tmp_path: Path) -> None:
    """Each part goes on from the last, and a resumed ladder, whose parts are all done, has what the first left."""
    config = Ladder(**{**asdict(GRPO), "steps": 4, "kl_every": 0}, climbs=2, harvest=1, harvest_batch=4)
    generator, again = small(), small()
    trained = ladder(config, generator, COLOUR, PROMPTS, out=tmp_path)
    rollout = drawn(generator)
    assert {len(down) for down, _ in taken_off(copy.deepcopy(generator.module)).values()} == {4 * 4}
    ladder(config, again, COLOUR, PROMPTS, out=tmp_path, resume=True)
    assert torch.equal(told(again, rollout), told(generator, rollout))
    assert torch.equal(told(generators.load(str(trained.generator)), rollout), told(generator, rollout))


def test_keeps_the_contract() -> None:
    """With changes beside its weights a generator is one: what it draws, learns by and saves agree."""
    generator = small(torch.float32)
    put_on(generator.module, moved(small(torch.float32), size=1e-2))
    rollout = drawn(generator)
    assert (told(generator, rollout) - told(small(torch.float32), rollout)).abs().max() > 0.01
    for check in (check_saves_and_loads, check_logprobs_match_the_sampler, check_leaves_the_module):
        check(generator)


def drawn_in_the_world(generator: Generator) -> Rollout:
    return generator.sample(generator.example_prompts, per_prompt=2, seed=0)


def test_saving_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that was saved, or could not be, still has its changes; one without leaves none in the folder."""
    generator, rollout = small(), drawn(small())
    moved(generator)
    began = told(generator, rollout)
    with monkeypatch.context() as patch:
        patch.setattr(JanusPro, "_save", lambda *_: exec("raise OSError('full')"))
        with pytest.raises(OSError, match="full"):
            generator.save(tmp_path / "kept")
    assert torch.equal(told(generator, rollout), began)
    generator.save(tmp_path / "kept")
    assert torch.equal(told(generator, rollout), began)
    assert torch.equal(told(JanusPro.from_folder(tmp_path / "kept"), rollout), began)
    small().save(tmp_path / "kept")
    assert torch.equal(told(JanusPro.from_folder(tmp_path / "kept"), rollout), told(small(), rollout))


def test_no_peft_where_there_is_nothing_to_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator without changes is saved and loaded where peft could not be imported."""
    monkeypatch.setitem(sys.modules, "peft", None)
    ShapesLlama.tiny().save(tmp_path / "plain")
    assert not taken_off(generators.load(str(tmp_path / "plain")).module)


def test_the_folder(tmp_path: Path) -> None:
    """It is what peft reads, is found by a name with it, and a foreign or damaged one is refused in one sentence."""
    from peft import PeftModel

    generator, plain = ShapesLlama.tiny(), ShapesLlama.tiny()
    put_on(generator.module, moved(ShapesLlama.tiny()))
    generator.save(tmp_path / "kept")
    base, rollout = ShapesLlama(weights=tmp_path / "kept"), drawn_in_the_world(generator)
    assert torch.equal(told(base, rollout), told(plain, rollout))
    with quiet():
        PeftModel.from_pretrained(base.module, str(tmp_path / "kept" / ADAPTER))
    torch.testing.assert_close(told(base, rollout), told(generator, rollout))
    named = generators.load(f"shapes.llama@{tmp_path / 'kept'}")
    torch.testing.assert_close(told(named, rollout), told(generator, rollout))

    tensors = tmp_path / "kept" / ADAPTER / "adapter_model.safetensors"
    held = tensors.read_bytes()
    tensors.write_bytes(held[:100])
    with pytest.raises(ValueError, match=r"adapter does not hold low-rank changes of shapes\.llama: .*"):
        generators.load(str(tmp_path / "kept"))
    tensors.write_bytes(held)
    found = load_file(tensors)
    name = next(iter(found))
    for wrong, said in ((found | {name: torch.zeros(2, 5)}, r"is \[\d+, \d+\], got a change of "), ({}, "'base_model")):
        save_file(wrong, tensors)
        with pytest.raises(ValueError, match=rf"adapter does not hold low-rank changes of shapes\.llama: .*{said}"):
            generators.load(str(tmp_path / "kept"))

"""The calculator against what is really allocated, and by hand; its guide is up to date."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwk.adapters.janus import JanusPro
from rwk.adapters.llamagen_gpt import Gpt, GptConfig
from rwk.adapters.llamagen_t2i import TextToImage
from rwk.adapters.llamagen_vq import Vq
from rwk.adapters.magvit_vq import Magvit
from rwk.adapters.shapes_generator import LLAMA, ShapesLlama
from rwk.adapters.shapes_scales import SIZES, ScalesLlama, ShapesScales
from rwk.adapters.showo import Showo
from rwk.adapters.var import Var16
from rwk.adapters.var_transformer import VarTransformer
from rwk.adapters.var_vq import VarVq
from rwk.policy_opt import compiled
from rwk.policy_opt.compiled import compile_draws
from rwk.policy_opt.configs import Dpo, Grpo, Rebel, Rft
from rwk.policy_opt.generator import GENERATORS, Generator
from rwk.policy_opt.packed import MOST_BYTES, _Packed
from rwk.policy_opt.policy import trainable
from rwk.policy_opt.quiet import quiet
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.sizing import Card, plan
from rwk.policy_opt.sizing_guide import lines
from rwk.policy_opt.sizing_known import KNOWN
from rwk.policy_opt.sizing_shape import JANUS_PRO, llama_shape, shape_of

SHAPE = llama_shape(hidden=8, layers=2, inner=16, vocabulary=100, codes=32, tokens=10)


def test_a_real_generator() -> None:
    """Weights are those of the module, and adapters have the parameters that peft makes."""
    generator = ShapesLlama.tiny()
    held = sum(value.numel() * value.element_size() for value in generator.module.parameters())
    shape = shape_of(generator)
    assert plan(Grpo(), shape, prompts=100, rewards=1, guided=False).weights == held
    config = Grpo(lora_rank=3)
    with trainable(generator, config, keep=False):
        learns = sum(value.numel() for value in generator.module.parameters() if value.requires_grad)
    assert plan(config, shape, prompts=100, rewards=1, guided=False).trained_parameters == learns


def test_changes_beside_the_weights() -> None:
    """What an earlier run left beside weights of half precision is float32, is copied with them and learns no more."""
    generator = ShapesLlama.tiny()
    generator.module.bfloat16()
    plain, given = shape_of(generator), {"prompts": 100, "rewards": 1, "guided": False}
    with quiet(), trainable(generator, Grpo(lora_rank=3), keep=False):
        pass
    shape = shape_of(generator)
    assert shape == replace(plain, beside=3 * plain.linear, active=plain.active + 3 * plain.linear)
    config = Grpo(kl_every=5)
    one, two = (plan(config, each, **given) for each in (plain, shape))  # type: ignore[arg-type]
    assert two.weights == sum(value.nbytes for value in generator.module.parameters())
    extra = 4 * shape.beside
    assert two.sampling_bytes - one.sampling_bytes == config.draws * 64 * extra
    more = {"sampling_operations", "training_operations", "sampling_bytes"}
    expected = replace(one, weights=one.weights + extra, reference=one.reference + extra)
    assert replace(two, **{name: getattr(one, name) for name in more}) == expected


def test_memory_by_hand() -> None:
    """A Llama of two layers of width 8: every part of the memory, guided, with a reference and an average."""
    config = Grpo(prompts_per_step=2, group_size=4, micro_batch=2, beta=0.1, reference_every=5, ema=0.9)
    found = plan(config, SHAPE, prompts=100, rewards=1, guided=True)
    parameters = 2 * (4 * 64 + 3 * 8 * 16) + 2 * 100 * 8 + (64 + 8 * 32)
    assert SHAPE.parameters == parameters
    assert (found.weights, found.gradients, found.optimizer) == (2 * parameters, 2 * parameters, 8 * parameters)
    assert found.masters == 4 * parameters
    assert found.reference == 2 * 2 * (parameters + 72_000_000)
    assert found.average == 4 * parameters
    assert plan(replace(config, reference_mix=0.5), SHAPE, prompts=9, rewards=1, guided=True).average == 8 * parameters
    assert found.cache == 8 * 2 * (64 + 10) * 2 * 2 * 8 * 2  # rows, guided, length, k and v, layers, width, bytes
    assert found.activations == 2 * 2 * 74 * 2 * 34 * 8
    assert found.logits == 4 * 2 * 2 * 10 * 32
    assert found.peak == parameters * (2 + 2 + 8 + 4 + 4) + found.reference + 144_000_000 + max(
        found.cache, found.activations + found.logits
    )


def test_work_by_hand() -> None:
    """What is drawn, trained and scored by each algorithm, and what it costs."""
    grpo = plan(Grpo(steps=10, num_iterations=2, save_every=50), SHAPE, prompts=100, rewards=3, guided=False)
    assert (grpo.images_drawn, grpo.tokens_drawn, grpo.images_scored) == (5 * 128, 5 * 1280, 5 * 128 * 3)
    assert grpo.tokens_trained == 10 * 1280
    assert grpo.training_operations == SHAPE.active * (6 * 12800 + 2 * 6400)  # old log-probabilities are taken again
    weighed = plan(Grpo(steps=10, token_weights="gcpo"), SHAPE, prompts=100, rewards=1, guided=False)
    assert weighed.training_operations == SHAPE.active * 12800 * (6 + 2 * 2)  # the policy and its reference read it too
    rounds = {"rounds": 2, "prompts_per_round": 0, "group_size": 4}
    for config, images in ((Dpo(**rounds), 400), (Rebel(**rounds, pairs="all"), 800), (Rft(**rounds, keep=2), 400)):
        found = plan(config, SHAPE, prompts=100, rewards=1, guided=False)
        assert (found.images_drawn, found.tokens_trained) == (800, images * 10)
    assert plan(Dpo(**rounds, pairs="top_bottom"), SHAPE, prompts=9, rewards=1, guided=False).tokens_trained == 720
    slow = Card(operations=1.0, bandwidth=1e12, share=0.5)
    assert grpo.hours(slow) == pytest.approx((grpo.sampling_operations + 2 * grpo.training_operations) / 3600)


def test_modes_and_checkpointing_by_hand() -> None:
    """Branches without a gradient keep no activations, and layers computed again keep what goes into them."""
    config = Grpo(prompts_per_step=2, group_size=4, micro_batch=2, steps=10, prompts_per_draw=1)
    given: dict[str, Any] = {"prompts": 100, "rewards": 1, "guided": True}
    whole, detached, biased = (
        plan(config, SHAPE, **given, mode=mode)  # type: ignore[arg-type]
        for mode in ("matched", "matched_detach_uncond", "cond_only")
    )
    assert whole.activations == 2 * detached.activations == 2 * biased.activations
    assert whole.logits == detached.logits == 2 * biased.logits
    assert whole.cache == detached.cache == biased.cache == 4 * 2 * 74 * 2 * 2 * 8 * 2
    operations = [run.training_operations / (SHAPE.active * 10 * 80) for run in (whole, detached, biased)]
    assert operations == [12, 8, 6]
    again = plan(replace(config, gradient_checkpointing=True), SHAPE, **given)
    assert again.activations == 2 * 2 * 74 * (2 * 2 + 34) * 8
    assert again.training_operations == SHAPE.active * 10 * 80 * 16


def test_draws_by_halves_and_shares() -> None:
    """A draw that is made by halves to score meanwhile, or cut for idle processes, takes room for its part alone."""
    given: dict[str, Any] = {"prompts": 100, "rewards": 1, "guided": False}
    for config in (Grpo(), Dpo(prompts_per_round=16)):
        whole = plan(config, SHAPE, **given).cache
        assert plan(replace(config, score_meanwhile=True), SHAPE, **given).cache == whole // 2
        assert plan(config, SHAPE, **given, processes=4).cache == whole // 4
    many = Dpo(prompts_per_round=16, prompts_per_draw=4)
    assert plan(many, SHAPE, **given, processes=2).cache == plan(many, SHAPE, **given).cache


def test_adapters_and_processes() -> None:
    """Adapters make no copy for a reference, and two processes hold half of the rows each."""
    config = Grpo(beta=0.1, lora_rank=4)
    one = plan(config, JANUS_PRO["1B"], prompts=100, rewards=1, guided=True)
    two = plan(replace(config, lora_rank=4), JANUS_PRO["1B"], prompts=100, rewards=1, guided=True, processes=2)
    assert (one.reference, one.masters) == (0, 0)
    assert (one.gradients, one.optimizer) == (4 * one.trained_parameters, 8 * one.trained_parameters)
    assert (two.cache, two.activations, two.images_drawn) == (one.cache // 2, one.activations // 2, one.images_drawn)


def without_weights(name: str) -> Generator:
    """A published VAR, Show-o or LlamaGen at full size, of which no weight is kept."""
    from transformers import PhiForCausalLM

    kind = GENERATORS.target(name)
    generator = kind.__new__(kind)
    with torch.device("meta"):
        if isinstance(generator, Var16):
            generator.module, generator.vq = VarTransformer(kind.sizes), VarVq(kind.vq_sizes)
        if isinstance(generator, TextToImage):
            generator.module, generator.vq = Gpt(kind.sizes), Vq(kind.vq_sizes)
            generator.prompt_ids = lambda prompt: [0] * 64
        if isinstance(generator, Showo):
            generator.module, generator.vq = PhiForCausalLM(kind.sizes.config(8192)), Magvit(kind.vq_sizes)
            generator.prompt_ids = lambda prompt: [0] * 64
    generator.module.bfloat16()
    return generator


@pytest.mark.parametrize("name", [name for name in KNOWN if name.startswith(("showo.", "var."))])
def test_known_shapes_are_those_of_the_networks(name: str) -> None:
    """Without weights the shape is that of the network at full size, but for biases and norms."""
    known, real = KNOWN[name], shape_of(without_weights(name))
    for field in ("parameters", "decoder"):
        assert getattr(known, field) == pytest.approx(getattr(real, field), rel=2e-3), field
    unused = known.hidden * (known.tokens if known.cached else 58_498 - known.codes)  # positions; words of the head
    assert known.active == pytest.approx(real.active - unused, rel=2e-3)
    kept = {field: getattr(real, field) for field in ("parameters", "active", "decoder", "keys")}
    assert replace(known, **kept) == real
    assert known.keys == (real.keys if known.cached else 0)


@pytest.mark.parametrize("name", [name for name in KNOWN if name.startswith("llamagen.")])
def test_known_shapes_of_llamagen(name: str) -> None:
    """Likewise, of the network of the authors' own, which tells no config of transformers."""
    known, real = KNOWN[name], shape_of(without_weights(name))
    for field in ("parameters", "decoder"):
        assert getattr(known, field) == pytest.approx(getattr(real, field), rel=2e-3), field
    assert (known.linear, known.codes, known.width) == (real.linear, real.codes, real.width)
    sizes: GptConfig = GENERATORS.target(name).sizes
    assert (known.tokens, known.layers, known.hidden) == (sizes.grid**2, sizes.layers, sizes.width)


def test_shards_by_hand() -> None:
    """What is spread over eight processes is an eighth; FSDP2 holds a twin beside, ZeRO masters of adapters too."""
    given: dict[str, Any] = {"prompts": 100, "rewards": 1, "guided": False, "processes": 8}
    config = Grpo(prompts_per_step=8)
    whole, fsdp, zero = (
        plan(config, SHAPE, **given, sharding=how)  # type: ignore[arg-type]
        for how in ("none", "fsdp", "zero2")
    )
    for name in ("gradients", "optimizer", "masters"):
        assert getattr(whole, name) == 8 * getattr(fsdp, name) == 8 * getattr(zero, name)
    assert (whole.twin, zero.twin, fsdp.twin) == (0, 0, SHAPE.parameters * 2 // 8 + 144_000_000)
    assert whole.peak - zero.peak == (2 + 8 + 4) * SHAPE.parameters * 7 // 8
    adapted = replace(config, lora_rank=4)
    assert plan(adapted, SHAPE, **given).masters == 0
    found = plan(adapted, SHAPE, **given, sharding="zero2")
    assert found.masters == found.gradients == found.trained_parameters * 4 // 8


def test_the_room_of_compiled_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of a plan is what compiled steps take room for, to the byte, rows and lengths of their graphs."""
    monkeypatch.setattr(compiled, "OPTIONS", {"backend": "eager", "dynamic": False})
    torch._dynamo.reset()
    generator = JanusPro.tiny()
    compile_draws(generator)
    prompts = list(generator.example_prompts)[:3]
    generator.sample(prompts, per_prompt=3, seed=0, sampling=Sampling(guidance=2.0))
    *layers, _, _, _ = generator._compiled.room
    shape = replace(shape_of(generator), prompt=max(len(generator.prompt_ids(prompt)) for prompt in prompts))
    config = Grpo(prompts_per_step=3, group_size=3, torch_compile=True)
    found = plan(config, shape, prompts=3, rewards=1, guided=True)
    assert found.cache == sum(layer.nbytes for layer in layers)
    assert len(layers[0]) == 20 > 2 * 9  # rows of one graph
    assert found.peak - plan(replace(config, torch_compile=False), shape, prompts=3, rewards=1, guided=True).peak > 0


def test_what_a_cpu_lays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan holds as many bytes as are laid out for a draw, but where that does not pay or would be too much."""
    laid_out: list[int] = []
    call = _Packed.__call__

    def counted(layer: _Packed, hidden: torch.Tensor, which: slice = slice(None)) -> torch.Tensor:
        known = len(layer.kept)
        found = call(layer, hidden, which)
        if len(layer.kept) > known:
            laid_out.append(layer.layer.weight[which].nbytes)
        return found

    monkeypatch.setattr(_Packed, "__call__", counted)
    from transformers import LlamaConfig, LlamaForCausalLM

    network = LlamaForCausalLM(LlamaConfig(**LLAMA | {"hidden_size": 384, "num_hidden_layers": 2}))
    generator = ShapesLlama.tiny()
    generator.module = network
    shape = shape_of(generator)
    config = Grpo(prompts_per_step=2, group_size=4)
    given: dict[str, Any] = {"prompts": 9, "rewards": 1, "guided": False}
    found = plan(config, shape, **given, lays_out=True)
    generator.sample(["a red circle", "a black cross"], per_prompt=4, seed=0)
    extra = network.lm_head.weight[512:].nbytes  # of which a draw reads the codes alone
    assert found.laid_out == sum(laid_out) + extra > extra
    few, far = replace(config, prompts_per_step=1, group_size=2), replace(shape, large=MOST_BYTES // 4 + 1)
    assert plan(few, shape, **given, lays_out=True).laid_out == plan(config, far, **given, lays_out=True).laid_out == 0
    assert plan(config, shape, **given).laid_out == 0
    busy = replace(found, cache=found.activations + found.logits)
    assert busy.peak - replace(busy, laid_out=0).peak == found.laid_out
    laid_out.clear()
    maps = ShapesScales.tiny()
    maps.module = ScalesLlama(SIZES | {"hidden_size": 384, "num_hidden_layers": 2})
    found = plan(config, shape_of(maps), **given, lays_out=True)
    maps.sample(["a red circle", "a black cross"], per_prompt=4, seed=0, sampling=Sampling())
    assert found.laid_out == sum(laid_out) > 0


def test_draws_by_hand() -> None:
    """Ten draws read the weights ten times; without a cache each of three computes all anew, twice in training."""
    shape = replace(SHAPE, prompt=0)
    config = Grpo(steps=10, prompts_per_step=2, group_size=4, micro_batch=2)
    one, few, anew = (
        plan(config, each, prompts=100, rewards=1, guided=False)
        for each in (shape, replace(shape, draws=3), replace(shape, draws=3, cached=False))
    )
    assert few.sampling_bytes == pytest.approx(one.sampling_bytes * 3 / 10)
    assert replace(few, sampling_bytes=one.sampling_bytes) == one
    assert (anew.activations, anew.cache) == (one.activations, 0)
    assert anew.sampling_operations == 3 * one.sampling_operations
    assert anew.training_operations == 3 * (one.training_operations + 2 * shape.active * anew.tokens_trained)


def test_the_guide_is_what_the_calculator_says() -> None:
    """Every line of the table stands in docs/sizing.md."""
    text = Path(__file__).parent.parent.joinpath("docs", "sizing.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("|")] == lines()

"""The rollout engine against plain transformers, and what it promises of its cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwk.policy_opt.contract import CHECKS, check_saves_and_loads
from rwk.policy_opt.distribution import distribution
from rwk.policy_opt.generator import GeneratorSpec, TokenStatistics
from rwk.policy_opt.rollout import CausalGenerator
from rwk.policy_opt.sampling import Sampling

CODES, TOKENS = 11, 6
PROMPTS = ["a red circle", "a b", "a small blue square above"]
HARD = Sampling(guidance=3.0, temperature=0.7, top_k=5, top_p=0.9)
RENAMED = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
LLAMA = {
    "vocab_size": CODES + 30,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


class Tiny(CausalGenerator):
    """A Llama of two layers whose text tokens are the letters, and whose images are rows of grey."""

    spec = GeneratorSpec("tiny", TOKENS, CODES, TOKENS, "n/a", "made up")

    def __init__(self, **llama: Any) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module: Any = LlamaForCausalLM(LlamaConfig(**{**LLAMA, **llama}))

    @classmethod
    def tiny(cls) -> Tiny:
        return cls()

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Tiny:
        raise NotImplementedError

    def _save(self, folder: Path) -> None:
        raise NotImplementedError

    def prompt_ids(self, prompt: str) -> list[int]:
        return [CODES, *(CODES + 2 + ord(letter) % 28 for letter in prompt), CODES + 1]

    def null_ids(self, prompt: str) -> list[int]:
        return [CODES, CODES + 1]

    def _levels(self, tokens: Tensor) -> Tensor:
        return (20 * tokens).to(torch.uint8)[:, None, None].expand(-1, 3, TOKENS, -1)


class OwnHeads(Tiny):
    """Codes have an embedding and a head with a bias of their own, and no prompt is as long as one, as in Janus."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.module.codes = nn.Embedding(CODES, 32)
            self.module.image_head = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, CODES))

    def embed_codes(self, codes: Tensor) -> Tensor:
        return self.module.codes(codes)  # type: ignore[no-any-return]

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.module.image_head(hidden)  # type: ignore[no-any-return]

    def prompt_ids(self, prompt: str) -> list[int]:
        return [ord(letter) % 28 for letter in prompt]

    def null_ids(self, prompt: str) -> list[int]:
        return [28] * len(prompt)


@contextmanager
def backbone_calls(generator: CausalGenerator) -> Iterator[list[dict[str, Any]]]:
    """Records what the backbone is called with."""
    calls: list[dict[str, Any]] = []
    intact = generator.backbone

    def recording(embeds: Tensor, **options: Any) -> Tensor:
        hidden = intact(embeds, **options)
        cache = options.get("cache")
        room = [layer.room[0].data_ptr() for layer in getattr(cache, "layers", []) if hasattr(layer, "room")]
        seen = {key: options.get(key) for key in ("mask", "positions")}
        calls.append({"shape": tuple(embeds.shape[:2]), "room": room, **seen})
        return hidden

    generator.backbone = recording  # type: ignore[method-assign]
    yield calls
    del generator.backbone


def plain_logits(generator: CausalGenerator, ids: list[int], tokens: Tensor) -> Tensor:
    """[L, K] logits of one row by transformers alone: no cache, no padding, no mask, the whole vocabulary."""
    full = torch.tensor([ids + tokens.tolist()])
    logits = generator.causal_lm(input_ids=full).logits[0, len(ids) - 1 : -1]
    return logits[:, : generator.spec.codes]  # type: ignore[no-any-return]


@pytest.mark.parametrize("llama", [{}, {"num_key_value_heads": 4}, {"attn_implementation": "eager"}, {"head_dim": 16}])
@pytest.mark.parametrize("guidance", [1.0, 3.0, 0.0])
def test_logprobs_are_those_of_plain_transformers(guidance: float, llama: dict[str, Any]) -> None:
    """Sampler and statistics agree with an uncached, unpadded, row by row computation within 1e-5."""
    generator = Tiny(**llama)
    rollout = generator.sample(PROMPTS, per_prompt=2, seed=3, sampling=Sampling(guidance=guidance, temperature=0.7))
    logprobs, entropy = generator.statistics(rollout)
    for row, prompt in enumerate(rollout.prompts):
        tokens = rollout.tokens[row]
        cond = plain_logits(generator, generator.prompt_ids(prompt), tokens)
        uncond = plain_logits(generator, generator.null_ids(prompt), tokens)
        logp = ((uncond + guidance * (cond - uncond)) / 0.7).log_softmax(1)
        expected = logp.gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(rollout.logprobs[row], expected, rtol=0, atol=1e-5, check_stride=False)
        torch.testing.assert_close(logprobs[row], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(entropy[row], -(logp.exp() * logp).sum(1), rtol=0, atol=1e-5)


def test_greedy_tokens_are_those_of_plain_transformers() -> None:
    """With top_k=1 each token is the argmax of an uncached computation."""
    generator = Tiny()
    rollout = generator.sample(PROMPTS, seed=0, sampling=Sampling(top_k=1))
    for row, prompt in enumerate(PROMPTS):
        logits = plain_logits(generator, generator.prompt_ids(prompt), rollout.tokens[row])
        assert logits.argmax(1).tolist() == rollout.tokens[row].tolist()


@pytest.mark.parametrize("check", [check for check in CHECKS if check is not check_saves_and_loads])
@pytest.mark.parametrize("make", [Tiny, OwnHeads])
def test_contract_holds(make: type[Tiny], check: Any) -> None:
    """A generator of the usual kind and one with its own code embedding and head keep the contract."""
    check(make())


def test_each_prompt_is_read_once() -> None:
    """One prefill has a row per different prompt, and one without if guided; each step a row per image and copy."""
    generator = Tiny()
    width = len(generator.prompt_ids(PROMPTS[2]))
    for guidance, copies in ((1.0, 1), (3.0, 2)):
        with backbone_calls(generator) as calls:
            generator.sample([*PROMPTS, PROMPTS[0]], per_prompt=5, seed=0, sampling=Sampling(guidance=guidance))
        assert [call["shape"] for call in calls] == [(2 + copies, width)] + [(20 * copies, 1)] * (TOKENS - 1)


@pytest.mark.parametrize("prompts", [["a long prompt"], ["a long prompt", "a longer prompt than that"]])
def test_statistics_read_a_shared_prompt_once(prompts: list[str]) -> None:
    """Values and gradients are those of each row alone."""
    generator, found = OwnHeads(), []
    rollout = generator.sample(prompts, per_prompt=3, seed=0, sampling=HARD)
    with backbone_calls(generator) as calls:
        together = generator.statistics(rollout)
    rows, width = len(rollout), max(map(len, prompts))
    assert [call["shape"] for call in calls] == [(len(prompts), width), (rows, TOKENS - 1)] * 2
    assert [call["mask"] is not None for call in calls] == [False, True] * 2
    alone = [generator.statistics(rollout[row : row + 1]) for row in range(rows)]
    for result in (together, TokenStatistics(*(torch.cat(list(each)) for each in zip(*alone, strict=True)))):
        (result.logprobs.sum() + result.entropy.sum()).backward()
        found.append([result.logprobs, result.entropy, *gradients(generator).values()])
    for value, expected in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_cache_takes_its_room_once() -> None:
    """Keys lie in the same memory in every step."""
    generator = Tiny()
    with backbone_calls(generator) as calls:
        generator.sample(PROMPTS, per_prompt=2, seed=0, sampling=Sampling(guidance=3.0))
    rooms = [call["room"] for call in calls[1:]]
    assert len(rooms[0]) == 2
    assert all(room == rooms[0] for room in rooms)


def test_equal_lengths_need_no_mask() -> None:
    """A mask is made only where prompts differ in length."""
    generator = Tiny()
    for prompts, masked in ((["abc", "abd"], False), (["abc", "ab"], True)):
        with backbone_calls(generator) as calls:
            generator.statistics(generator.sample(prompts, seed=0))
        assert [call["mask"] is not None for call in calls] == [False] + [masked] * (TOKENS - 1) + [False]


def test_positions_may_count_from_the_image() -> None:
    """Then code i has position i, behind a prompt of any length, and in a Llama, which sees distances, all is equal."""
    generator, moved = Tiny(), Tiny()
    moved.counts_from_image = True  # type: ignore[misc]
    expected = generator.sample(PROMPTS, seed=0, sampling=HARD)
    lengths = torch.tensor([[len(generator.prompt_ids(prompt))] for prompt in PROMPTS])
    with backbone_calls(moved) as calls:
        rollout = moved.sample(PROMPTS, seed=0, sampling=HARD)
        logprobs = moved.logprobs(rollout)
        ended = moved.continue_from(PROMPTS, rollout.tokens[:, :2], places=[0] * 3, seed=0, sampling=HARD)
    assert torch.equal(rollout.tokens, expected.tokens)
    assert torch.equal(ended, expected.tokens)
    torch.testing.assert_close(logprobs, expected.logprobs, rtol=0, atol=1e-5, check_stride=False)
    read, *drawn = [call["positions"] for call in calls]
    assert torch.equal(read[:3], torch.arange(read.shape[1]) - lengths)
    assert [set(step.flatten().tolist()) for step in drawn[: TOKENS - 1]] == [{step} for step in range(TOKENS - 1)]
    trained = drawn[TOKENS - 1]
    assert torch.equal(trained, torch.arange(trained.shape[1]) - lengths)
    assert [set(step.flatten().tolist()) for step in drawn[-TOKENS + 3 :]] == [{step} for step in range(2, TOKENS - 1)]


def test_rows_of_the_head_for_text_are_not_used() -> None:
    """NaN in them reaches nothing."""
    generator = Tiny()
    with torch.no_grad():
        generator.module.lm_head.weight[CODES:] = math.nan
    rollout = generator.sample(PROMPTS, seed=0, sampling=HARD)
    logprobs = generator.logprobs(rollout)
    torch.testing.assert_close(logprobs, rollout.logprobs, rtol=0, atol=1e-5, check_stride=False)


def test_a_prompt_named_again_continues_its_group() -> None:
    """Twice the same prompt is one group of two images, the same as per_prompt=2 gives."""
    generator = Tiny()
    apart = generator.sample(["ab", "cd", "ab"], seed=0)
    together = generator.sample(["ab"], per_prompt=2, seed=0)
    assert apart.group.tolist() == [0, 1, 0]
    assert torch.equal(apart.tokens[[0, 2]], together.tokens)
    assert not torch.equal(together.tokens[0], together.tokens[1])


@RENAMED
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora_acts_and_alone_gets_gradients(targets: list[str]) -> None:
    """Adapters change the policy in sampler and statistics alike, on the head too, and can be switched off."""
    from peft import LoraConfig, get_peft_model

    generator = Tiny()
    plain = generator.sample(PROMPTS, seed=0, sampling=HARD)
    generator.module = get_peft_model(generator.module, LoraConfig(r=2, target_modules=targets, lora_dropout=0.5))
    with torch.no_grad():
        for name, value in generator.module.named_parameters():
            if "lora_B" in name:
                value.add_(0.3)
    rollout = generator.sample(PROMPTS, seed=0, sampling=HARD)
    logprobs = generator.logprobs(rollout)
    assert (generator.logprobs(plain) - plain.logprobs).abs().max() > 0.01
    torch.testing.assert_close(logprobs, rollout.logprobs, rtol=0, atol=1e-5, check_stride=False)
    logprobs.sum().backward()
    assert {"lora_" in name for name, value in generator.module.named_parameters() if value.grad is not None} == {True}
    with generator.module.disable_adapter():
        torch.testing.assert_close(generator.logprobs(plain), plain.logprobs, rtol=0, atol=1e-5, check_stride=False)


def test_bfloat16_keeps_float32_log_probabilities() -> None:
    """In bfloat16 the log-probabilities are float32, of a distribution that adds up to 1, and near the sampler's."""
    generator = Tiny()
    generator.module.to(torch.bfloat16)
    rollout = generator.sample(PROMPTS, per_prompt=4, seed=0, sampling=Sampling(guidance=3.0))
    with torch.no_grad():
        logprobs, entropy = generator.statistics(rollout)
    assert rollout.logprobs.dtype == logprobs.dtype == entropy.dtype == torch.float32
    assert (logprobs - rollout.logprobs).abs().mean() < 0.05
    states = torch.randn(5, 32, dtype=torch.bfloat16)
    total = distribution(generator.image_logits(states), None, Sampling()).exp().sum(1)
    torch.testing.assert_close(total, torch.ones(5), rtol=0, atol=1e-6)


def gradients(generator: CausalGenerator) -> dict[str, Tensor]:
    """Gradients of the parameters that have one, which are taken away."""
    found = {name: value.grad for name, value in generator.module.named_parameters() if value.grad is not None}
    generator.module.zero_grad()
    return found


@pytest.mark.parametrize("recipe", [Sampling(), HARD])
def test_statistics_never_hold_all_logits(recipe: Sampling) -> None:
    """With room for 4 tokens' logits, values and gradients are the same and no more than 4 are computed at once."""
    generator = Tiny()
    rollout = generator.sample(PROMPTS, per_prompt=3, seed=0, sampling=recipe)
    whole = generator.statistics(rollout)
    (whole.logprobs.sum() + whole.entropy.sum()).backward()
    expected = gradients(generator)
    intact, sizes = generator.image_logits, []

    def recording(hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return intact(hidden)

    generator.max_logits, generator.image_logits = 4 * CODES, recording  # type: ignore[method-assign]
    parts = generator.statistics(rollout)
    (parts.logprobs.sum() + parts.entropy.sum()).backward()
    assert max(sizes) == 4
    for value, other in [*zip(parts, whole, strict=True), *zip(gradients(generator).values(), expected.values())]:  # noqa: B905
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)


def test_modes_of_guidance() -> None:
    """Each mode's value and gradient, with both branches written out; the detached one has no gradient without."""
    generator = OwnHeads()
    sampling = Sampling(guidance=3.0, temperature=0.7)
    rollout = generator.sample(PROMPTS, per_prompt=2, seed=0, sampling=sampling)

    def written(mode: str) -> tuple[Tensor, dict[str, Tensor]]:
        rows = []
        for prompt, tokens in zip(rollout.prompts, rollout.tokens, strict=True):
            cond, uncond = (
                generator.image_logits(generator._states([ids], tokens[None])[0])
                for ids in (generator.prompt_ids(prompt), generator.null_ids(prompt))
            )
            uncond = uncond.detach() if mode == "matched_detach_uncond" else uncond
            logits = cond if mode == "cond_only" else uncond + 3 * (cond - uncond)
            rows.append((logits / 0.7).log_softmax(1).gather(1, tokens[:, None])[:, 0])
        values = torch.stack(rows)
        values.sum().backward()
        return values, gradients(generator)

    expected = {mode: written(mode) for mode in ("matched", "matched_detach_uncond", "cond_only")}
    for mode, (values, slopes) in expected.items():
        recipe: Any = replace(sampling, mode=mode)  # type: ignore[arg-type]
        found = generator.logprobs(replace(rollout, sampling=recipe))
        found.sum().backward()
        torch.testing.assert_close(found, values, rtol=1e-4, atol=1e-5)
        for name, slope in gradients(generator).items():
            torch.testing.assert_close(slope, slopes[name], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(expected["matched"][0], expected["matched_detach_uncond"][0])
    full, half = (expected[mode][1]["codes.weight"] for mode in ("matched", "matched_detach_uncond"))
    assert (full - half).norm() > 0.1 * full.norm()


@RENAMED
@pytest.mark.parametrize("again", [False, True])
def test_a_detached_branch_keeps_nothing(again: bool) -> None:
    """Of what is kept for the backward pass, the unconditional branch holds none: as much as without guidance."""
    generator, kept = OwnHeads(), []
    if again:
        generator.module.activation_checkpointing_enable()
        generator.module.train()
    weights = {value.data_ptr() for value in generator.module.parameters()}
    for recipe in (Sampling(), Sampling(guidance=3.0), Sampling(guidance=3.0, mode="matched_detach_uncond")):
        rollout, sizes = replace(generator.sample(PROMPTS, seed=0), sampling=recipe), []

        def packed(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(0 if tensor.data_ptr() in weights else tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
            generator.statistics(rollout)
        kept.append(sum(sizes))
    alone, both, detached = kept
    assert both > 1.8 * alone
    assert detached < 1.2 * alone


def test_off_is_without_guidance() -> None:
    """Mode off goes with guidance 1 alone."""
    with pytest.raises(ValueError, match="mode off must go with guidance 1, got 3"):
        Sampling(guidance=3.0, mode="off")
    rollout = Tiny().sample(PROMPTS, seed=0, sampling=Sampling(mode="off"))
    assert torch.equal(rollout.tokens, Tiny().sample(PROMPTS, seed=0).tokens)


@RENAMED
def test_gradient_checkpointing_changes_nothing() -> None:
    """Layers that are computed again in the backward pass give the same gradients; sampling still uses its cache."""
    generator = Tiny()
    rollout = generator.sample(PROMPTS, seed=0, sampling=HARD)
    generator.logprobs(rollout).sum().backward()
    expected = gradients(generator)
    generator.module.gradient_checkpointing_enable()
    generator.module.train()
    runs = []
    generator.module.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    generator.logprobs(rollout).sum().backward()
    assert len(runs) == 4  # conditional and not, each twice
    for name, value in gradients(generator).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    assert torch.equal(generator.sample(PROMPTS, seed=0, sampling=HARD).tokens, rollout.tokens)
    assert generator.module.training


@RENAMED
def test_gradient_checkpointing_refuses_dropout() -> None:
    """Recomputing with dropout would give a wrong gradient in silence, so it is a ValueError."""
    generator = Tiny(attention_dropout=0.25)
    rollout = generator.sample(PROMPTS, seed=0)
    generator.module.gradient_checkpointing_enable()
    generator.module.train()
    with pytest.raises(ValueError, match=r"without dropout, got a rate of 0\.25"):
        generator.statistics(rollout)


def test_dropout_is_off_in_training_mode() -> None:
    """A rate of attention dropout changes nothing, in training mode either."""
    generator = Tiny(attention_dropout=0.5)
    generator.module.train()
    rollout = generator.sample(PROMPTS, seed=0)
    torch.testing.assert_close(generator.logprobs(rollout), rollout.logprobs, rtol=0, atol=1e-5, check_stride=False)
    assert all(part.training for part in generator.module.modules())


def test_a_prompt_without_ids_is_refused() -> None:
    """There would be no state to predict the first code from."""
    with pytest.raises(ValueError, match="needs at least one id"):
        OwnHeads().sample(["", "a"], seed=0)


def test_one_token_an_image() -> None:
    """An image of a single token needs no step after the prefill."""
    generator = Tiny()
    generator.spec = replace(generator.spec, tokens=1)
    rollout = generator.sample(PROMPTS, per_prompt=2, seed=0, sampling=HARD)
    assert rollout.tokens.shape == (6, 1)
    torch.testing.assert_close(generator.logprobs(rollout), rollout.logprobs, rtol=0, atol=1e-5, check_stride=False)


class Crowded(Tiny):
    """Has no memory for more than so many sequences at once."""

    holds = 5

    def backbone(self, embeds: Tensor, **more: Any) -> Tensor:
        if len(embeds) > self.holds:
            raise torch.OutOfMemoryError(f"{len(embeds)} sequences")
        return super().backbone(embeds, **more)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_fewer_rows_are_taken_at_once_where_memory_ends(guidance: float) -> None:
    """Rows at once are halved until they fit, for drawing, going on and statistics, and nothing else changes."""
    recipe, prompts = Sampling(guidance=guidance), ["one", "another", "a third"]
    expected, crowded = (kind().sample(prompts, per_prompt=4, seed=0, sampling=recipe) for kind in (Tiny, Crowded))
    assert torch.equal(crowded.tokens, expected.tokens)
    generator, places = Crowded(), [0, 1, 2, 3] * 3
    ended = generator.continue_from(crowded.prompts, crowded.tokens[:, :2], places=places, seed=0, sampling=recipe)
    assert torch.equal(ended, expected.tokens)
    assert 1 <= generator.max_rows <= generator.holds
    assert torch.allclose(Crowded().logprobs(crowded), expected.logprobs, atol=1e-5)


def test_no_memory_for_one_row_is_told() -> None:
    """Where not even one sequence fits, the error comes through."""
    generator = Crowded()
    generator.holds = 0
    with pytest.raises(torch.OutOfMemoryError, match="1 sequences"):
        generator.sample(["one", "another"], seed=0)

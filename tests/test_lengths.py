"""Rows of unequal length in parts: what the parts are, and that nothing but the cost depends on them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwk.adapters.emu3 import Emu3Gen
from rwk.adapters.janus import JanusPro
from rwk.adapters.llamagen_t2i import Xl256
from rwk.adapters.simplear import SimpleArSft
from rwk.policy_opt import lengths, shared_prefix
from rwk.policy_opt.contract import check_draws_ignore_companions
from rwk.policy_opt.lengths import Machine, Size, in_step, keys_of_a_pass, machine, parted, tokens_of_a_pass
from rwk.policy_opt.probability_checks import check_logprobs_ignore_neighbours
from rwk.policy_opt.rollout import CausalGenerator
from rwk.policy_opt.sampling import Sampling

PROMPTS = ["a", "a red circle and a blue square", "b", "a red circle"]


def another_pass_takes(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 parts rows of every length, 1e9 none."""
    monkeypatch.setattr(lengths, "_seconds", lambda *_: seconds)


@pytest.mark.parametrize(
    ("rows", "another", "parts"),
    [
        ([7, 7, 7], 0, [[0, 1, 2]]),
        ([3, 1, 2], 0, [[1], [2], [0]]),
        ([4, 1, 3], 1.5, [[1], [0, 2]]),  # 1 + 2 * 4 + 2 * 1.5 = 12; apart 8 + 4.5, at once 12 + 1.5, else 10 + 3
        ([3, 1, 2], 2.5, [[0, 1, 2]]),
        ([10, 209], 198, [[0], [1]]),  # 219 + 396 < 418 + 198
        ([10, 209], 200, [[0, 1]]),
        ([10, 11, 10, 209, 200], 50, [[0, 1, 2], [3, 4]]),
        ([5], 1, [[0]]),
    ],
)
def test_parts_are_those_that_cost_least(rows: list[int], another: float, parts: list[list[int]]) -> None:
    """Counted by hand: rows times the longest of them, and passes."""
    assert parted(rows, another) == parts


def test_no_other_parts_cost_less() -> None:
    """Of all ways to part up to six rows none is cheaper, and every row is in one part."""
    draw = torch.Generator().manual_seed(0)
    for count in range(1, 7):
        rows = torch.randint(1, 30, [count], generator=draw).tolist()
        another = float(torch.randint(0, 60, [], generator=draw))
        found = parted(rows, another)
        assert sorted(itertools.chain(*found)) == list(range(count))

        def cost(parts: Any, rows: list[int] = rows, another: float = another) -> float:
            return float(sum(len(part) * max(rows[row] for row in part) + another for part in parts))

        ways = itertools.product(range(count), repeat=count)
        made = ([[row for row in range(count) if way[row] == part] for part in set(way)] for way in ways)
        assert cost(found) == min(map(cost, made))


def test_what_another_pass_costs() -> None:
    """Half of it for the calls, half for the weights, by hand; and the figures of this repository's devices."""
    device = Machine(layer=0.001, products=1e9, traffic=1e6)
    size = Size(layers=4, weights=1000, bytes=4000)
    assert tokens_of_a_pass(size, device) == pytest.approx(0.008 * 1e9 / 2000)
    assert keys_of_a_pass(size, 16, device) == pytest.approx(0.008 * 1e6 / 16)
    assert machine("cpu") is lengths.CPU
    assert machine("cuda") is lengths.GPU


def test_size_is_that_of_the_linear_layers() -> None:
    """Of a Llama without its heads: four square ones and three of the MLP in each layer."""
    generator = SimpleArSft.tiny()
    config = generator.causal_lm.get_decoder().config
    size = Size.of(generator.causal_lm)
    assert size.layers == config.num_hidden_layers
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * heads * (config.hidden_size // config.num_attention_heads) * config.hidden_size
    assert size.weights == size.layers * (attention + 3 * config.hidden_size * config.intermediate_size)
    assert size.bytes == 4 * size.weights


def calls_of(generator: CausalGenerator, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens of each call of the backbone from now on."""
    calls: list[tuple[int, int]] = []
    intact = generator.backbone

    def recording(embeds: Tensor, **options: Any) -> Tensor:
        calls.append((embeds.shape[0], embeds.shape[1]))
        return intact(embeds, **options)

    monkeypatch.setattr(generator, "backbone", recording, raising=False)
    return calls


def learnt(generator: CausalGenerator, recipe: Sampling, per_prompt: int) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens, log-probabilities and entropies of a draw, which is also continued, and all gradients."""
    drawn = generator.sample(PROMPTS, per_prompt=per_prompt, seed=1, sampling=recipe)
    rows, places = drawn.prompts, list(range(per_prompt)) * len(PROMPTS)
    ended = generator.continue_from(rows, drawn.tokens[:, :3], places=places, seed=1, sampling=recipe)
    assert torch.equal(ended, drawn.tokens)
    found = generator.statistics(drawn)
    (found.logprobs.sum() + found.entropy.sum()).backward()
    slopes = [value.grad for value in generator.module.parameters() if value.grad is not None]
    generator.module.zero_grad()
    return [drawn.tokens, drawn.logprobs, found.logprobs, found.entropy], slopes


@pytest.mark.parametrize("family", [SimpleArSft, JanusPro, Emu3Gen, Xl256])
@pytest.mark.parametrize(("guidance", "per_prompt", "least"), [(1.0, 1, 0), (3.0, 3, 0), (3.0, 3, math.inf)])
def test_parts_change_nothing(
    family: Any, guidance: float, per_prompt: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing, going on, statistics and gradients are those of padded rows, with shared prefixes and copied ones."""
    monkeypatch.setattr(shared_prefix, "LEAST_SAVED", least)
    recipe, found, reads = Sampling(guidance=guidance), [], []
    for seconds, bunch in ((1e9, 1e9), (0.0, 0)):
        another_pass_takes(seconds, monkeypatch)
        monkeypatch.setattr(shared_prefix, "ANOTHER", bunch)
        generator = family.tiny()
        reads.append(calls_of(generator, monkeypatch))
        found.append(learnt(generator, recipe, per_prompt))
    (padded, its_slopes), (apart, slopes) = found
    assert torch.equal(padded[0], apart[0])
    for value, expected in zip(apart[1:], padded[1:], strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=3e-5)
    for slope, expected in zip(slopes, its_slopes, strict=True):
        assert (slope - expected).norm() <= 1e-4 * expected.norm()
    if family is not Xl256:  # whose prompts are all of one length
        steps, parts = ([call for call in calls if call[1] == 1] for calls in reads)
        assert len(reads[1]) > len(reads[0])
        assert len(parts) > 2 * len(steps) if least else len(parts) >= len(steps)
        assert sum(rows * width for rows, width in reads[1]) < sum(rows * width for rows, width in reads[0])


@pytest.mark.parametrize("check", [check_draws_ignore_companions, check_logprobs_ignore_neighbours])
def test_the_contract_holds_of_parts(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row says and draws the same alone, in another order, and in parts of a batch."""
    another_pass_takes(0.0, monkeypatch)
    check(SimpleArSft.tiny())


def test_equal_lengths_cost_what_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where another pass costs nothing they are read at once, and drawn at once."""
    another_pass_takes(0.0, monkeypatch)
    generator = SimpleArSft.tiny()
    calls = calls_of(generator, monkeypatch)
    drawn = generator.sample(["abc", "abd"], per_prompt=1, seed=0, sampling=Sampling())
    generator.statistics(drawn)
    width, tokens = len(generator.prompt_ids("abc")), generator.spec.tokens
    assert calls == [(2, width)] + [(2, 1)] * (tokens - 1) + [(2, width + tokens - 1)]


class Gathered(nn.Linear):
    """Like a layer of FSDP2, which must be called equally often by all processes."""

    def unshard(self) -> None:
        raise NotImplementedError


def test_sharded_weights_are_read_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics call the layers once, whatever the prompts, so that no process waits for another."""
    another_pass_takes(0.0, monkeypatch)
    generator = SimpleArSft.tiny()
    drawn = generator.sample(PROMPTS, per_prompt=3, seed=0, sampling=Sampling())
    expected = generator.logprobs(drawn)
    generator.module.gathered = Gathered(1, 1)
    assert in_step(generator.module)
    calls = calls_of(generator, monkeypatch)
    found = generator.logprobs(drawn)
    assert len(calls) == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)

"""Prompts that a group reads once in every step of a draw, against a cache with a copy of the prompt for each row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rwk.adapters.anole import Anole
from rwk.adapters.emu3 import Emu3Gen
from rwk.adapters.janus import JanusPro
from rwk.adapters.llamagen_t2i import Xl256
from rwk.adapters.simplear import SimpleArSft
from rwk.policy_opt import shared_prefix
from rwk.policy_opt.generator import Rollout
from rwk.policy_opt.sampling import Sampling

FAMILIES = [JanusPro, SimpleArSft, Emu3Gen, Anole, Xl256]
"""With a head of keys for each or for several of queries, ends of lines, normalised queries, its own attention."""


def drawn(
    generator: Any, prompts: list[str], guidance: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> Rollout:
    """Images, where as many keys as `least` must be saved for each row before a prefix is shared."""
    monkeypatch.setattr(shared_prefix, "LEAST_SAVED", least)
    rollout: Rollout = generator.sample(prompts, per_prompt=3, seed=1, sampling=Sampling(guidance=guidance))
    return rollout


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompts", [["abc", "abd"], ["a b", "a red circle", "b"], ["abc", "b", "abc"]])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sharing_changes_nothing(
    family: Any, prompts: list[str], guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are equal, log-probabilities within 3e-5, and the network has its own attention again."""
    generator = family.tiny()
    config = getattr(generator.causal_lm, "get_decoder", lambda: generator.causal_lm)().config
    own = getattr(config, "_attn_implementation", None)
    copied = drawn(generator, prompts, guidance, float("inf"), monkeypatch)
    made: list[int] = []
    intact = shared_prefix._softmax
    monkeypatch.setattr(shared_prefix, "_softmax", lambda *a: made.append(1) or intact(*a))
    shared = drawn(generator, prompts, guidance, 0, monkeypatch)
    assert made
    assert torch.equal(copied.tokens, shared.tokens)
    torch.testing.assert_close(copied.logprobs, shared.logprobs, rtol=0, atol=3e-5)
    assert getattr(config, "_attn_implementation", None) == own

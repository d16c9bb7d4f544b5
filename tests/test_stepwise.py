"""Generators of which every draw gives several tokens: resumed anywhere, drawn in pieces; faults that are caught."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rwk.adapters.showo import Showo
from rwk.adapters.var import Var16
from rwk.policy_opt import contract
from rwk.policy_opt import token_weights as tw
from rwk.policy_opt.contract import Check
from rwk.policy_opt.generator import Rollout, TokenStatistics
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.stepwise import Reader, StepwiseGenerator

RECIPE = Sampling(guidance=3.0, top_k=12)
KINDS: tuple[type[StepwiseGenerator], ...] = (Var16, Showo)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_goes_on_as_it_would_have(kind: type[StepwiseGenerator]) -> None:
    """From no token, or any number of them, to any further one, a row is what `sample` draws, at its own place."""
    generator = kind.tiny()
    prompts = list(generator.example_prompts)
    whole = generator.sample(prompts, per_prompt=2, seed=5, sampling=RECIPE).tokens
    rows, places = [prompt for prompt in prompts for _ in range(2)], [0, 1] * len(prompts)
    length = generator.spec.tokens
    for begun, end in ((0, length), (0, 3), (3, 7), (length - 1, length), (generator.spec.steps[0], length)):
        found = generator.continue_from(rows, whole[:, :begun], places=places, seed=5, until=end, sampling=RECIPE)
        assert torch.equal(found, whole[:, :end]), (begun, end)
    with pytest.raises(ValueError, match="continues rows of a prompt, a place and fewer than 2 tokens"):
        generator.continue_from(rows, whole[:, :3], places=places, seed=5, until=2)


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_logits_than_allowed(kind: type[StepwiseGenerator]) -> None:
    """Rows drawn and read in pieces of few logits are the same."""
    generator = kind.tiny()
    prompts = list(generator.example_prompts)
    whole = generator.sample(prompts, seed=0, sampling=RECIPE)
    intact, seen = generator.image_logits, []

    def recording(hidden: Tensor) -> Tensor:
        seen.append(hidden.shape[:-1].numel() * generator.spec.codes)
        return intact(hidden)

    generator.max_logits, generator.image_logits = 4 * generator.spec.codes, recording  # type: ignore[method-assign]
    parts = generator.sample(prompts, seed=0, sampling=RECIPE)
    assert torch.equal(parts.tokens, whole.tokens)
    torch.testing.assert_close(generator.logprobs(parts), whole.logprobs, rtol=0, atol=1e-5)
    assert max(seen) <= generator.max_logits


def test_a_draw_of_many_tokens_weighs_each_less() -> None:
    """Maps of 1, 4 and 9 codes; GCPO, which wants codes row by row, is refused."""
    generator = Var16.tiny()
    rollout = generator.sample(["1", "2"], seed=0)
    tw.check_token_weights("panw", generator)
    found = tw.token_weights("panw", generator, None, rollout, torch.zeros(2))
    assert torch.equal(found, tw.panw((1, 4, 9)).expand(2, -1))
    with pytest.raises(ValueError, match=r"row by row, got var\.d16, which draws several at a time"):
        tw.check_token_weights("gcpo", generator)


class TellsAMapOfItself(Var16):
    """Reads all maps at once, each from the codes up to its own."""

    def states(self, rows: Sequence[str | None], codes: Tensor) -> Tensor:
        classes = self._classes(rows)
        maps = [self._embeds(classes, codes[:, :end], scale) for scale, (_, end) in enumerate(self.bounds)]
        made: Tensor = self.module(torch.cat(maps, 1), classes)
        return made


class SameGuidanceForAllMaps(Var16):
    """Trains under a guidance that does not rise."""

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        self.guidance_at = lambda step, guidance: guidance  # type: ignore[method-assign]
        try:
            return super().statistics(rollout)
        finally:
            del self.guidance_at


class ForgetsTheLastDraw(Showo):
    """Draws without having seen what the draw before gave."""

    def _drawn_part(
        self, prompts: Sequence[str], tokens: Tensor, noise: Tensor, recipe: Sampling
    ) -> tuple[Tensor, Tensor]:
        intact = self.reader
        self.reader = lambda rows: self._late(intact(rows))  # type: ignore[method-assign]
        try:
            return super()._drawn_part(prompts, tokens, noise, recipe)
        finally:
            del self.reader

    def _late(self, read: Reader) -> Reader:
        return lambda codes: read(torch.cat([codes[:, :-1], (codes[:, -1:] + 1) % self.spec.codes], 1))


class KeepsWhatIsLikely(Showo):
    """Draws twice and keeps the likelier code, and states its probability: what confidence comes to."""

    def _draw(self, states: Sequence[Tensor], noise: Tensor, recipe: Sampling) -> tuple[Tensor, Tensor]:
        codes, logprobs = super()._draw(states, noise, recipe)
        others, likelier = super()._draw(states, (noise + 0.5) % 1, recipe)
        return torch.where(likelier > logprobs, others, codes), torch.maximum(likelier, logprobs)


FAULTS: tuple[tuple[type[StepwiseGenerator], Check], ...] = (
    (TellsAMapOfItself, contract.check_logprobs_match_the_sampler),
    (TellsAMapOfItself, contract.check_is_causal),
    (SameGuidanceForAllMaps, contract.check_logprobs_match_the_sampler),
    (ForgetsTheLastDraw, contract.check_logprobs_match_the_sampler),
    (KeepsWhatIsLikely, contract.check_draws_follow_the_logprobs),
)


@pytest.mark.parametrize(("fault", "check"), FAULTS)
def test_a_fault_is_caught(fault: type[StepwiseGenerator], check: Check) -> None:
    """Each planted fault fails the check that is for it."""
    with pytest.raises(AssertionError):
        check(fault.tiny())

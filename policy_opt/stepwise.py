"""Images of which every draw gives several tokens: the next scale, or the next set of masked positions.

The tokens of a draw are independent given all draws before. So the log-probability of a draw is the sum of those of its
tokens, and that of an image the sum over its draws. This is exact as long as nothing that is drawn decides which tokens
a draw gives; `spec.steps` fixes them beforehand.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rwk.policy_opt.batched import BatchedGenerator
from rwk.policy_opt.distribution import distribution, draw, placed_uniforms, row_uniforms
from rwk.policy_opt.generator import Rollout, TokenStatistics
from rwk.policy_opt.module_state import without_dropout
from rwk.policy_opt.packed import packed
from rwk.policy_opt.sampling import Sampling

Reader = Callable[[Tensor], Tensor]
"""From the codes [B, k] of all draws before to the states [B, n, D] of the tokens of the next draw."""


class StepwiseGenerator(BatchedGenerator):
    """A generator that draws `spec.steps` tokens at a time.

    A subclass sets `spec` and `module`, and writes `reader`, `image_logits` and `decode`. Dropout is off while sampling
    and in `statistics`, whatever mode the module is in.
    """

    max_rows = 256
    cached: ClassVar[bool] = True
    """Whether a draw reads no more than the tokens of the draw before."""

    @abstractmethod
    def reader(self, rows: Sequence[str | None]) -> Reader:
        """What reads rows of these prompts, None standing for no prompt; it is called for later and later draws."""

    def check_prompt(self, prompt: str) -> None:
        self.reader([prompt])

    def states(self, rows: Sequence[str | None], codes: Tensor) -> Tensor:
        """[B, L, D] states of the tokens of all draws, given the codes [B, L], with gradient.

        Draw by draw, each computed again in the backward pass: what is held is the inside of one draw.
        """
        read = self.reader(rows)

        def states(known: Tensor) -> Tensor:
            with without_dropout(self.module, recompute=torch.is_grad_enabled()):  # backward is outside of the other
                return read(known)

        run = functools.partial(checkpoint, states, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([run(codes[:, :start]) for start, _ in self.bounds], 1)

    def guidance_at(self, step: int, guidance: float) -> float:
        """The weight of the guidance in this draw, where the recipe says `guidance`."""
        return guidance

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The first token of every draw, and the one behind its last."""
        ends = list(accumulate(self.spec.steps))
        return list(zip([0, *ends], ends, strict=False))

    def sample(
        self, prompts: Sequence[str], *, per_prompt: int = 1, seed: int, sampling: Sampling | None = None
    ) -> Rollout:
        """See `Generator.sample`; a prompt that is named again continues its group, with further places in it."""
        recipe = sampling or self.spec.sampling
        rows, group = self._rows(prompts, per_prompt)
        noise = row_uniforms(rows, self.spec.tokens, seed).to(self.device)
        none = torch.empty([len(rows), 0], dtype=torch.long, device=self.device)
        tokens, logprobs = self._drawn(rows, none, noise, recipe)
        return Rollout(rows, torch.tensor(group, device=self.device), tokens, logprobs, recipe)

    def continue_from(
        self,
        prompts: Sequence[str],
        tokens: Tensor,
        *,
        places: Sequence[int],
        seed: int,
        until: int | None = None,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """See `Generator.continue_from`; rows may begin and end within a draw."""
        end = self._end(prompts, tokens, places, until)
        noise = placed_uniforms(prompts, places, self.spec.tokens, seed)[:, :end].to(self.device)
        return self._drawn(prompts, tokens.to(self.device), noise, sampling or self.spec.sampling)[0]

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        """See `Generator.statistics`. A token that the truncation would drop by now is kept, as `distribution` says."""
        recipe = rollout.sampling
        if recipe.mode == "cond_only":
            recipe = replace(recipe, guidance=1.0)

        def part_of(part: slice) -> list[Tensor]:
            rows = self._branches(rollout.prompts[part], recipe)
            codes = rollout.tokens[part].to(self.device)
            states = self.states(rows, codes.repeat(len(rows) // len(codes), 1)).split(len(codes))
            steps = [
                self._token_statistics([state[:, start:end] for state in states], codes[:, start:end], own)
                for (start, end), own in zip(self.bounds, self._recipes(recipe), strict=True)
            ]
            return [torch.cat(list(column), 1) for column in zip(*steps, strict=True)]

        with without_dropout(self.module, recompute=torch.is_grad_enabled()):
            results = self._by_parts(len(rollout), recipe.guidance, part_of)
        logprobs, entropy = (torch.cat(list(column)) for column in zip(*results, strict=True))
        return TokenStatistics(logprobs, entropy)

    def _branches(self, prompts: Sequence[str], recipe: Sampling) -> list[str | None]:
        """The rows to read: the prompts and, where guidance asks for them, as many of none."""
        return [*prompts] if recipe.guidance == 1 else [*prompts, *[None] * len(prompts)]

    def _recipes(self, recipe: Sampling) -> list[Sampling]:
        """The recipe of every draw."""
        count = len(self.spec.steps)
        return [replace(recipe, guidance=self.guidance_at(step, recipe.guidance)) for step in range(count)]

    def _drawn(self, prompts: Sequence[str], begun: Tensor, noise: Tensor, recipe: Sampling) -> tuple[Tensor, Tensor]:
        """Tokens [B, end] that begin with `begun` [B, k], and the log-probabilities of the others [B, end - k].

        Args:
            noise: [B, end] quantiles.
        """
        count = len(prompts)

        def drawn_part(part: slice) -> tuple[Tensor, Tensor]:
            return self._drawn_part(prompts[part], begun[part], noise[part], recipe)

        with torch.no_grad(), without_dropout(self.module), packed(self.module, rows=count, calls=noise.shape[1]):
            parts = self._by_parts(count, recipe.guidance, drawn_part)
        tokens, logprobs = (torch.cat(list(column)) for column in zip(*parts, strict=True))
        return tokens, logprobs

    def _drawn_part(
        self, prompts: Sequence[str], tokens: Tensor, noise: Tensor, recipe: Sampling
    ) -> tuple[Tensor, Tensor]:
        rows, end = self._branches(prompts, recipe), noise.shape[1]
        read, logprobs = self.reader(rows), []
        for (start, stop), own in zip(self.bounds, self._recipes(recipe), strict=True):
            known, stop = tokens.shape[1], min(stop, end)
            if known >= stop:
                continue
            states = read(tokens[:, :start].repeat(len(rows) // len(prompts), 1))[:, known - start : stop - start]
            code, logprob = self._draw(states.split(len(prompts)), noise[:, known:stop], own)
            tokens = torch.cat([tokens, code], 1)
            logprobs.append(logprob)
        return tokens, torch.cat(logprobs, 1)

    def _draw(self, states: Sequence[Tensor], noise: Tensor, recipe: Sampling) -> tuple[Tensor, Tensor]:
        """Codes and their log-probabilities, both [B, n], of states [B, n, D] with a prompt and perhaps without."""
        size = max(1, self.max_logits // self.spec.codes)
        pieces = []
        for uniform, *hidden in zip(*(tensor.flatten(0, 1).split(size) for tensor in (noise, *states)), strict=True):
            cond, *uncond = (self.image_logits(each) for each in hidden)
            logp = distribution(cond, uncond[0] if uncond else None, recipe)
            code = draw(logp, uniform)
            pieces.append((code, logp.gather(1, code[:, None])[:, 0]))
        code, logprob = (torch.cat(list(column)).view(noise.shape) for column in zip(*pieces, strict=True))
        return code, logprob

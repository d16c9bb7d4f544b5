"""What generators share that draw many rows at once: how rows are parted, and what tokens say without all logits."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rwk.policy_opt.distribution import distribution
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.sampling import Sampling

T = TypeVar("T")


class BatchedGenerator(Generator):
    """A generator whose hidden states, one for each token, become logits token by token."""

    max_rows: int
    """Sequences that go through the model at once, guided ones counting double; no result depends on it, and it is
    halved for as long as the memory does not hold them."""
    max_logits = 1 << 22
    """Logits that are held at once; what `statistics` has beyond is computed again in the backward pass."""

    @property
    def device(self) -> torch.device:
        """Where the model is; tokens and log-probabilities are made there."""
        return next(self.module.parameters()).device

    @abstractmethod
    def image_logits(self, hidden: Tensor) -> Tensor:
        """[..., K] logits of the image codes alone, of hidden states [..., D]."""

    def logits_at(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """[..., K] logits of what may stand at the slots [...] of 0..L-1: codes, unless a text is written first."""
        return self.image_logits(hidden)

    def _rows(self, prompts: Sequence[str], per_prompt: int) -> tuple[list[str], list[int]]:
        """The prompt of every row that `sample` draws, and the number of its group."""
        if isinstance(prompts, str) or not prompts or per_prompt < 1:
            came = "a text" if isinstance(prompts, str) else f"{len(prompts)} prompts"
            raise ValueError(
                f"{self.spec.name} samples at least one image for each of a list of prompts, "
                f"got {came} and per_prompt {per_prompt}; give at least one of each."
            )
        rows = [prompt for prompt in prompts for _ in range(per_prompt)]
        place = {prompt: index for index, prompt in enumerate(dict.fromkeys(rows))}
        return rows, [place[prompt] for prompt in rows]

    def _end(self, prompts: Sequence[str], tokens: Tensor, places: Sequence[int], until: int | None) -> int:
        """Tokens that the rows of `continue_from` are to have; raises ValueError where its lengths do not fit."""
        end = self.spec.tokens if until is None else until
        if not len(prompts) == len(tokens) == len(places) >= 1 or not tokens.shape[1] < end <= self.spec.tokens:
            raise ValueError(
                f"{self.spec.name} continues rows of a prompt, a place and fewer than {end} tokens of at most "
                f"{self.spec.tokens}, got {len(prompts)} prompts, {len(places)} places and tokens of shape "
                f"{list(tokens.shape)}; give one of each and end later."
            )
        return end

    def _by_parts(self, rows: int, guidance: float, work: Callable[[slice], T]) -> list[T]:
        """What `work` makes of all rows, some at a time.

        Raises:
            torch.OutOfMemoryError: where the memory does not hold one row.
        """
        made: list[T] = []
        copies, start = 1 if guidance == 1 else 2, 0
        while start < rows:
            part = slice(start, min(rows, start + max(1, self.max_rows // copies)))
            try:
                made.append(work(part))
            except torch.OutOfMemoryError:
                if part.stop - start == 1:
                    raise
                self.max_rows = copies * ((part.stop - start) // 2)
                continue
            start = part.stop
        return made

    def _token_statistics(self, states: list[Tensor], codes: Tensor, recipe: Sampling) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, both [B, L], without ever holding more than `max_logits` logits.

        Args:
            states: [B, L, D] given the prompt and, where the recipe guides, without it.
        """

        def piece(code: Tensor, slot: Tensor, cond: Tensor, uncond: Tensor | None = None) -> tuple[Tensor, Tensor]:
            without = None if uncond is None else self.logits_at(uncond, slot)
            if without is not None and recipe.mode == "matched_detach_uncond":
                without = without.detach()
            logp = distribution(self.logits_at(cond, slot), without, recipe, drawn=code)  # [tokens, K]
            surprise = -logp.masked_fill(logp == -math.inf, 0)  # 0 log 0 is 0, in the gradient too
            return logp.gather(1, code[:, None])[:, 0], (logp.exp() * surprise).sum(1)

        size = max(1, self.max_logits // self.spec.codes)
        run: Callable[..., tuple[Tensor, Tensor]] = piece
        if codes.numel() > size and torch.is_grad_enabled():
            run = functools.partial(checkpoint, piece, use_reentrant=False, preserve_rng_state=False)
        slots = torch.arange(codes.shape[1], device=self.device).repeat(len(codes))
        flat = [codes.flatten(), slots, *(state.flatten(0, 1) for state in states)]
        starts = range(0, codes.numel(), size)
        pieces = [run(*(tensor[start : start + size] for tensor in flat)) for start in starts]
        logprobs, entropy = (torch.cat(list(column)).view_as(codes) for column in zip(*pieces, strict=True))
        return logprobs, entropy

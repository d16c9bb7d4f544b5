"""The distribution that tokens are drawn from, said once for sampler and statistics, and the draw itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from rwk.policy_opt.sampling import Sampling


def distribution(cond: Tensor, uncond: Tensor | None, sampling: Sampling, *, drawn: Tensor | None = None) -> Tensor:
    """[..., K] float32 log-probabilities that tokens are drawn from; -inf where truncation drops a token.

    In this order: guidance, temperature, top-k, top-p among what top-k left, and the softmax of the rest. Tokens that
    tie with the last one kept are kept too.

    Args:
        cond: [..., K] logits given the prompt.
        uncond: [..., K] logits without it, or None to leave guidance out.
        drawn: [...] long, tokens that are known to have been drawn and so must have been kept. One that truncation
            would drop, because its logit is rounded otherwise here or because the weights have moved, is ranked first
            before truncating. Its log-probability then stays finite and continuous in the weights.
    """
    logits = cond.float()
    if uncond is not None:
        base = uncond.float()
        logits = base + sampling.guidance * (logits - base)
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits = _top_k(logits, sampling.top_k, drawn)
    if sampling.top_p < 1:
        logits = _top_p(logits, sampling.top_p, drawn)
    return logits.log_softmax(-1)


def _top_k(logits: Tensor, k: int, drawn: Tensor | None) -> Tensor:
    """The logits with all but the k largest at -inf; a drawn token takes the k-th place if it has none."""
    best = logits.topk(min(k, logits.shape[-1])).values  # [..., k], falling
    least = best[..., -1:]
    if drawn is None:
        return logits.masked_fill(logits < least, -math.inf)
    own = logits.gather(-1, drawn[..., None])
    above = best[..., -2:-1] if best.shape[-1] > 1 else torch.full_like(least, math.inf)
    keep = logits >= torch.where(own < least, above, least)
    return logits.masked_fill(~keep.scatter(-1, drawn[..., None], True), -math.inf)


def _top_p(logits: Tensor, p: float, drawn: Tensor | None) -> Tensor:
    """The logits with all at -inf but the smallest set of probability p; a drawn token is counted first if outside."""
    ranked = logits.sort(-1, descending=True).values
    mass = ranked.detach().softmax(-1)
    before = mass.cumsum(-1) - mass  # [..., K], what is more likely than each
    least = ranked.masked_fill(before >= p, math.inf).amin(-1, keepdim=True)
    least = torch.minimum(least, ranked[..., :1])  # the most likely token stays, whatever p is
    if drawn is None:
        return logits.masked_fill(logits < least, -math.inf)
    index = drawn[..., None]
    own = logits.gather(-1, index)
    taken = (own.detach() - ranked.detach().logsumexp(-1, keepdim=True)).exp()
    above = ranked.masked_fill(before + taken >= p, math.inf).amin(-1, keepdim=True)
    keep = logits >= torch.where(own < least, above, least)
    return logits.masked_fill(~keep.scatter(-1, index, True), -math.inf)


def draw(logp: Tensor, uniform: Tensor) -> Tensor:
    """[B] long: the token at quantile `uniform` [B] of the log-probabilities [B, K]; never one of probability 0."""
    mass = logp.exp().cumsum(-1, dtype=torch.float64)
    code = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True).clamp(max=logp.shape[-1] - 1)
    # A parallel sum may rise by a rounding error where the probability is 0.
    lost = logp.gather(1, code) == -math.inf
    return torch.where(lost, logp.argmax(-1, keepdim=True), code)[:, 0]


def row_uniforms(prompts: Sequence[str], steps: int, seed: int) -> Tensor:
    """[B, steps] float64 in 0..1, each row from the seed, its prompt, and how often the prompt came before it."""
    seen: Counter[str] = Counter()
    rows = np.empty([len(prompts), steps])
    for row, prompt in enumerate(prompts):
        digest = blake2b(f"{seed} {seen[prompt]} {prompt}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        rows[row] = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(steps)
        seen[prompt] += 1
    return torch.from_numpy(rows)


def placed_uniforms(prompts: Sequence[str], places: Sequence[int], steps: int, seed: int) -> Tensor:
    """[B, steps] float64: the uniforms that `sample` takes for the image of each prompt at each place in its group."""
    count: dict[str, int] = {}
    for prompt, place in zip(prompts, places, strict=True):
        count[prompt] = max(count.get(prompt, 0), place + 1)
    rows = [(prompt, place) for prompt, most in count.items() for place in range(most)]
    table = row_uniforms([prompt for prompt, _ in rows], steps, seed)
    index = {row: number for number, row in enumerate(rows)}
    return table[[index[row] for row in zip(prompts, places, strict=True)]]

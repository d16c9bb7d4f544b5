"""The checks of the generator contract that are about probabilities; `contract.CHECKS` lists them all."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from rwk.policy_opt.batched import BatchedGenerator
from rwk.policy_opt.expect import HARD, PLAIN, TOLERANCE, draw, logprobs, require_close
from rwk.policy_opt.generator import Generator
from rwk.policy_opt.module_state import moved
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.checking import require

RECIPES = (
    PLAIN,
    *(Sampling(guidance, 0.8, top_k, top_p) for guidance, top_k, top_p in product((1.0, 3.0), (0, 6), (1.0, 0.9))),
)


def check_logprobs_match_the_sampler(generator: Generator) -> None:
    """`logprobs(rollout)` is `rollout.logprobs` for every recipe, with prompts of unequal length in one batch."""
    for recipe in RECIPES:
        rollout = draw(generator, recipe)
        require_close(logprobs(generator, rollout), rollout.logprobs, f"with {recipe}")


def check_logprobs_ignore_neighbours(generator: Generator) -> None:
    """A row has the same log-probabilities and entropies alone as among groups of prompts of unequal length."""
    rollout = draw(generator, HARD, per_prompt=3)
    with torch.no_grad():
        together = generator.statistics(rollout)
        alone = [generator.statistics(rollout[row : row + 1]) for row in range(len(rollout))]
    for field in ("logprobs", "entropy"):
        rows = torch.cat([getattr(one, field) for one in alone])
        require_close(rows, getattr(together, field), f"{field} of each row alone")


def check_truncation_is_renormalised(generator: Generator) -> None:
    """Of one token kept the log-probability is 0; of two, p and 1 - p, which is what the entropy says too."""
    for recipe in (Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(guidance=3.0, top_k=1)):
        rollout = draw(generator, recipe)
        for values in (rollout.logprobs, logprobs(generator, rollout)):
            require_close(values, torch.zeros_like(values), f"log-probabilities with {recipe}")
    for recipe in (Sampling(top_k=2), Sampling(guidance=3.0, top_k=2)):
        rollout = draw(generator, recipe)
        with torch.no_grad():
            entropy = generator.statistics(rollout).entropy
        p = rollout.logprobs.double().exp().to(entropy.device)
        two = (torch.special.entr(p) + torch.special.entr(1 - p)).float()
        require_close(entropy, two, f"entropies with {recipe}", 10 * TOLERANCE)


def check_draws_follow_the_logprobs(generator: Generator) -> None:
    """The mean surprise of many draws is the mean entropy, within five standard errors, so the draw is as stated."""
    rows = 1 + 2048 // (len(generator.example_prompts) * generator.spec.tokens)  # so of some 2,000 tokens
    for recipe in (Sampling(temperature=0.2), Sampling(guidance=3.0), Sampling(top_p=0.5)):
        rollout = draw(generator, recipe, per_prompt=rows)
        with torch.no_grad():
            entropy = generator.statistics(rollout).entropy.cpu().double()
        excess = -rollout.logprobs.cpu().double() - entropy
        error = excess.square().sum().sqrt().item() + 1e-6 * excess.numel()
        seen = excess.sum().item() / error
        require(abs(seen) < 5, f"mean surprise is {seen:.1f} standard errors from the entropy with {recipe}")
        most = math.log(generator.spec.codes)
        inside = bool(((entropy > -TOLERANCE) & (entropy < most + TOLERANCE)).all())
        require(inside, f"entropies lie in {entropy.min():.4f}..{entropy.max():.4f}, outside 0..{most:.4f}")


def check_gradient_is_right(generator: Generator) -> None:
    """The gradient of the log-probabilities is finite, and a small step along it raises them by what it promises."""
    parameters = [value for value in generator.module.parameters() if value.requires_grad]
    require(bool(parameters), "no parameter of the module can be trained")
    for recipe in (PLAIN, replace(HARD, top_p=1.0), replace(HARD, mode="cond_only", top_k=0, top_p=1.0)):
        rollout = draw(generator, recipe)
        mean = generator.logprobs(rollout).mean()
        require(mean.requires_grad, "logprobs has no gradient")
        slopes = torch.autograd.grad(mean, parameters, allow_unused=True)
        norm = torch.stack([slope.float().norm() for slope in slopes if slope is not None]).norm()
        require(bool(norm.isfinite()) and norm > 0, f"the gradient's norm is {norm}")
        sides = []
        for sign in (1, -1):
            with moved(parameters, slopes, sign * 3e-3 / norm.item()):
                sides.append(logprobs(generator, rollout).double().mean().item())
        seen, promised = sides[0] - sides[1], 6e-3 * norm.item()
        require(abs(seen - promised) < 0.05 * promised, f"a step raises logprobs by {seen}, promised {promised}")


def check_any_tokens_have_logprobs(generator: Generator) -> None:
    """Tokens that truncation drops, as it will once the weights have moved, have finite log-probabilities, a gradient
    without NaN, and finite entropies."""
    rollout = draw(generator, HARD)
    other = replace(rollout, tokens=(rollout.tokens + 1) % generator.spec.codes)
    for mode, top_k in product(("matched", "cond_only"), (1, 2, 0)):
        recipe: Any = {"mode": mode, "top_k": top_k, "top_p": 0.5}
        result = generator.statistics(replace(other, sampling=replace(HARD, **recipe)))
        finite = bool(result.logprobs.isfinite().all() and result.entropy.isfinite().all())
        require(finite, f"a log-probability or an entropy is not finite with {recipe}")
        parameters = [value for value in generator.module.parameters() if value.requires_grad]
        total = result.logprobs.sum() + result.entropy.sum()
        slopes = [slope for slope in torch.autograd.grad(total, parameters, allow_unused=True) if slope is not None]
        require(all(bool(slope.isfinite().all()) for slope in slopes), f"a gradient is not finite with {recipe}")


def check_is_causal(generator: Generator) -> None:
    """A token says nothing of those drawn before it or with it: log-probabilities change in later draws, and do."""
    steps = generator.spec.steps or (1,) * generator.spec.tokens
    if not isinstance(generator, BatchedGenerator) or len(steps) < 2:
        return
    rollout = draw(generator, Sampling(guidance=3.0))
    place = sum(steps[: len(steps) // 2])
    end = place + steps[len(steps) // 2]
    tokens = rollout.tokens.clone()
    tokens[:, place] = (tokens[:, place] + 1) % generator.spec.codes
    before, after = logprobs(generator, rollout), logprobs(generator, replace(rollout, tokens=tokens))
    require_close(after[:, :place], before[:, :place], f"before token {place}, which was edited,")
    if place + 1 < end:
        require_close(after[:, place + 1 : end], before[:, place + 1 : end], f"drawn with token {place}, edited,")
    if end < generator.spec.tokens:
        shift = (after[:, end:] - before[:, end:]).abs().max().item()
        require(shift > TOLERANCE, f"later log-probabilities move by {shift} only when token {place} is edited")


def check_prompt_matters(generator: Generator) -> None:
    """The same tokens have other log-probabilities under another prompt."""
    rollout = draw(generator, PLAIN)
    swapped = replace(rollout, prompts=rollout.prompts[-2:] + rollout.prompts[:-2])
    shift = (logprobs(generator, swapped) - rollout.logprobs).abs().amax(1).min().item()
    require(shift > TOLERANCE, f"another prompt moves the log-probabilities by {shift} only")


def check_guidance_matters(generator: Generator) -> None:
    """Guidance changes the log-probabilities of a `matched` rollout and not those of a `cond_only` one."""
    rollout = draw(generator, PLAIN)
    plain = logprobs(generator, rollout)
    matched = logprobs(generator, replace(rollout, sampling=Sampling(guidance=3.0)))
    shift = (matched - plain).abs().amax(1).min().item()
    require(shift > TOLERANCE, f"guidance moves the log-probabilities by {shift} only")
    conditional = replace(rollout, sampling=Sampling(guidance=3.0, mode="cond_only"))
    require_close(logprobs(generator, conditional), plain, "under cond_only")
    guided = generator.sample(rollout.prompts[:1], seed=0, sampling=conditional.sampling)
    matched = logprobs(generator, replace(guided, sampling=Sampling(guidance=3.0)))
    require_close(guided.logprobs, matched, "those that cond_only's sampler states, which is guided,")


def check_detached_guidance(generator: Generator) -> None:
    """In mode `matched_detach_uncond` values are those of `matched`, and the gradient is another one."""
    rollout, found = draw(generator, replace(HARD, top_k=0, top_p=1.0)), []
    parameters = [value for value in generator.module.parameters() if value.requires_grad]
    for mode in ("matched", "matched_detach_uncond"):
        recipe: Any = {"mode": mode}
        values = generator.logprobs(replace(rollout, sampling=replace(rollout.sampling, **recipe)))
        slopes = torch.autograd.grad(values.mean(), parameters, allow_unused=True)
        flat = [torch.zeros_like(p) if s is None else s for s, p in zip(slopes, parameters, strict=True)]
        found.append((values.detach(), torch.cat([slope.flatten().float() for slope in flat])))
    (matched, whole), (detached, part) = found
    require_close(detached, matched, "under matched_detach_uncond")
    apart = ((whole - part).norm() / whole.norm()).item()
    require(apart > 0.01, f"the gradient under matched_detach_uncond is that of matched, but for {apart:.2g} of it")
    require(bool(part.isfinite().all()) and part.norm().item() > 0, f"its norm is {part.norm()}")

"""The contract of a generator as checks that run: `check_generator` for a plug-in's own tests, `CHECKS` for a suite.

Every `check_*` is one claim, takes a generator, and raises `AssertionError` where the claim does not hold (or lets
through what the generator raised). They need no weights: give them `YourGenerator.tiny()`, or the real one.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageChops

from rwk.policy_opt.batched import BatchedGenerator
from rwk.policy_opt.expect import HARD, PLAIN, draw, logprobs, require_close, require_unchanged
from rwk.policy_opt.generator import GENERATORS, Generator, as_images
from rwk.policy_opt.module_state import changes, in_mode, module_state
from rwk.policy_opt.probability_checks import (
    check_any_tokens_have_logprobs,
    check_detached_guidance,
    check_draws_follow_the_logprobs,
    check_gradient_is_right,
    check_guidance_matters,
    check_is_causal,
    check_logprobs_ignore_neighbours,
    check_logprobs_match_the_sampler,
    check_prompt_matters,
    check_truncation_is_renormalised,
)
from rwk.rewards.checking import require, run_checks
from rwk.rewards.global_state import global_state, restored, seed_everything

Check = Callable[[Generator], None]


def check_generator(generator: Generator) -> None:
    """Runs every check.

    Raises:
        AssertionError: naming each check that failed, and what it saw.
    """
    checks = {check.__name__: check for check in CHECKS}
    run_checks(generator, checks, f"{generator.spec.name} breaks the generator contract")


def check_spec_is_complete(generator: Generator) -> None:
    """The spec states name, licence, source and sizes, and there are example prompts of unequal length."""
    spec = generator.spec
    for field in ("name", "licence", "source"):
        value = getattr(spec, field)
        require(isinstance(value, str) and value.strip() == value != "", f"spec.{field} is {value!r}")
    for field in ("tokens", "codes", "image_size"):
        require(getattr(spec, field) >= 1, f"spec.{field} is {getattr(spec, field)}")
    require(spec.codes >= 2, f"spec.codes is {spec.codes}, which leaves nothing to draw")
    steps = spec.steps or (1,) * spec.tokens
    require(min(steps) >= 1 and sum(steps) == spec.tokens, f"spec.steps draw {sum(steps)} of {spec.tokens} tokens")
    lengths = {len(prompt) for prompt in generator.example_prompts}
    require(len(set(generator.example_prompts)) > 1 < len(lengths), f"example_prompts are of lengths {lengths}")


def check_tiny_is_repeatable(generator: Generator) -> None:
    """`tiny()` builds its own class, twice alike, and leaves global state as it was."""
    before = global_state()
    first, second = type(generator).tiny(), type(generator).tiny()
    require_unchanged(before, "tiny()")
    require(type(first) is type(generator), f"tiny() of {type(generator).__name__} built {type(first).__name__}")
    rollout = draw(first, PLAIN)
    require_close(logprobs(second, rollout), logprobs(first, rollout), "the second that tiny() built")


def check_rows_and_groups(generator: Generator) -> None:
    """Rows of one prompt are adjacent, in the order of the prompts, and share a number that no other prompt has."""
    prompts = list(generator.example_prompts)
    rollout = generator.sample(prompts, per_prompt=2, seed=0, sampling=HARD)
    rows, length = 2 * len(prompts), generator.spec.tokens
    require(rollout.prompts == [p for p in prompts for _ in range(2)], f"rows are of prompts {rollout.prompts}")
    shapes = {name: tuple(getattr(rollout, name).shape) for name in ("group", "tokens", "logprobs")}
    expected = {"group": (rows,), "tokens": (rows, length), "logprobs": (rows, length)}
    require(shapes == expected, f"shapes are {shapes}, expected {expected}")
    group = rollout.group.tolist()
    same = [[a == b for b in group] for a in group]
    wanted = [[a == b for b in rollout.prompts] for a in rollout.prompts]
    require(same == wanted and rollout.group.dtype == torch.long, f"group is {rollout.group}")
    require(rollout.sampling == HARD, f"sampling is {rollout.sampling}, asked was {HARD}")
    default = generator.sample(prompts[:1], seed=0).sampling
    require(default == generator.spec.sampling, f"sampling is {default} where none is named")


def check_tokens_are_codes(generator: Generator) -> None:
    """Tokens are whole numbers in 0..K-1, and their log-probabilities are float32, finite, and not above 0."""
    for recipe in (PLAIN, HARD):
        rollout = draw(generator, recipe, per_prompt=4)
        low, high = int(rollout.tokens.min()), int(rollout.tokens.max())
        require(rollout.tokens.dtype == torch.long, f"tokens are {rollout.tokens.dtype}")
        require(low >= 0 and high < generator.spec.codes, f"tokens lie in {low}..{high} of {generator.spec.codes}")
        stated = rollout.logprobs
        require(stated.dtype == torch.float32, f"log-probabilities are {stated.dtype}")
        ok = bool(stated.isfinite().all()) and stated.max().item() <= 1e-6
        require(ok, f"log-probabilities lie in {stated.min()}..{stated.max()}")


def check_seed_decides(generator: Generator) -> None:
    """The same seed draws the same tokens, whatever the global generators say; other seeds and places, others."""
    first = draw(generator, PLAIN, per_prompt=3)
    with restored():
        seed_everything(1)
        again = draw(generator, PLAIN, per_prompt=3)
    require(torch.equal(first.tokens, again.tokens), "the same seed drew other tokens")
    other = draw(generator, PLAIN, per_prompt=3, seed=1)
    rows = {tuple(row) for row in first.tokens.tolist() + other.tokens.tolist()}
    require(len(rows) == 2 * len(first), f"{2 * len(first)} rows of two seeds hold {len(rows)} different images")


def check_draws_ignore_companions(generator: Generator) -> None:
    """A row's tokens depend on seed, prompt and place in the group, not on other prompts, order or `max_rows`."""
    prompts = list(generator.example_prompts)
    for recipe in (PLAIN, HARD):
        expected = draw(generator, recipe, per_prompt=2).tokens.view(len(prompts), 2, -1)
        alone = torch.stack([generator.sample([p], per_prompt=2, seed=0, sampling=recipe).tokens for p in prompts])
        require(torch.equal(alone, expected), f"a prompt alone draws other tokens than among others, with {recipe}")
        turned = generator.sample(prompts[::-1], per_prompt=3, seed=0, sampling=recipe).tokens
        turned = turned.view(len(prompts), 3, -1).flip(0)[:, :2]
        require(torch.equal(turned, expected), f"another order or a larger group draws other tokens, with {recipe}")
        if isinstance(generator, BatchedGenerator):
            split = draw(_in_threes(generator), recipe, per_prompt=2)
            require(torch.equal(split.tokens.view_as(expected), expected), "max_rows changes the tokens")
            require_close(logprobs(_in_threes(generator), split), split.logprobs, "with max_rows=3")


def check_leaves_global_state(generator: Generator) -> None:
    """Sampling, statistics and decoding change no global generator, gradient mode, default dtype or thread count."""
    with restored():
        for grad in (True, False):
            seed_everything(715_225_739)
            torch.set_grad_enabled(grad)
            before = global_state()
            rollout = draw(generator, HARD)
            require_unchanged(before, "sample")
            generator.statistics(rollout)
            require_unchanged(before, "statistics")
            generator.decode(rollout.tokens)
            require_unchanged(before, "decode")


def check_leaves_the_module(generator: Generator) -> None:
    """Sampling and statistics change no parameter, buffer, gradient, or training mode, and log nothing for autograd."""
    for training in (True, False):
        with in_mode(generator.module, training):
            before = module_state(generator.module)
            rollout = draw(generator, HARD)
            require(not rollout.logprobs.requires_grad, "sample gave log-probabilities with gradient")
            generator.statistics(rollout)
            changed = changes(before, module_state(generator.module))
            some = ", ".join(changed[:3])
            require(not changed, f"sample or statistics changed {len(changed)} things of the module: {some}")


def check_ignores_dropout(generator: Generator) -> None:
    """Training mode changes neither the tokens drawn nor the log-probabilities: a policy is one distribution."""
    with in_mode(generator.module, False):
        rollout = draw(generator, PLAIN)
    with in_mode(generator.module, True):
        again = draw(generator, PLAIN)
        require(torch.equal(again.tokens, rollout.tokens), "other tokens are drawn in training mode")
        require_close(logprobs(generator, rollout), rollout.logprobs, "in training mode")


def check_decode(generator: Generator) -> None:
    """Every row decodes to an RGB image of the stated size, the same alone, in any order, and again."""
    tokens = draw(generator, PLAIN, per_prompt=1).tokens
    kept = tokens.clone()
    images = generator.decode(tokens)
    size = generator.spec.image_size
    seen = [(image.mode, image.size) for image in images]
    require(seen == [("RGB", (size, size))] * len(tokens), f"{len(tokens)} rows decode to {seen}")
    require(torch.equal(tokens, kept), "decode changed the tokens that it was given")
    for name, others in {
        "alone": [generator.decode(row[None])[0] for row in tokens],
        "in another order": generator.decode(tokens.flip(0))[::-1],
    }.items():
        for image, other in zip(images, others, strict=True):
            require(_near(image, other), f"a row {name} decodes to another image than in the batch")
    same = as_images(generator.levels(tokens)) == images
    require(same, "levels are not those of the images that decode gives")


def check_saves_and_loads(generator: Generator) -> None:
    """What `save` wrote, config.json and safetensors, loads by class and by name to the same log-probabilities."""
    rollout = draw(generator, HARD)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "saved"
        generator.save(folder)
        files = sorted(path.name for path in folder.rglob("*") if path.is_file())
        strange = [name for name in files if not name.endswith((".json", ".safetensors", ".txt", ".model"))]
        require(not strange, f"save wrote {', '.join(strange)}; only JSON and safetensors hold no code")
        loaded = [type(generator).from_folder(folder)]
        if json.loads((folder / "config.json").read_text()).get("rwk_generator") in GENERATORS.names():
            loaded.append(GENERATORS.load(str(folder)))
    for other in loaded:
        require(type(other) is type(generator), f"what was saved loads as {type(other).__name__}")
        require_close(logprobs(other, rollout), rollout.logprobs, "after save and load")
        again = other.sample(generator.example_prompts, per_prompt=2, seed=0, sampling=HARD)
        require(torch.equal(again.tokens.cpu(), rollout.tokens.cpu()), "after save and load, other tokens are drawn")


def check_refuses_wrong_calls(generator: Generator) -> None:
    """No prompts, a text in place of a list, and a group of nothing are a ValueError."""
    wrong: list[tuple[Any, int]] = [([], 1), (generator.example_prompts[0], 1), (generator.example_prompts, 0)]
    for prompts, per_prompt in wrong:
        try:
            generator.sample(prompts, per_prompt=per_prompt, seed=0)
        except ValueError:
            continue
        require(False, f"prompts {prompts!r} with per_prompt {per_prompt} were sampled")


CHECKS: tuple[Check, ...] = (
    check_spec_is_complete,
    check_tiny_is_repeatable,
    check_rows_and_groups,
    check_tokens_are_codes,
    check_logprobs_match_the_sampler,
    check_logprobs_ignore_neighbours,
    check_truncation_is_renormalised,
    check_draws_follow_the_logprobs,
    check_seed_decides,
    check_draws_ignore_companions,
    check_leaves_global_state,
    check_leaves_the_module,
    check_ignores_dropout,
    check_gradient_is_right,
    check_any_tokens_have_logprobs,
    check_is_causal,
    check_prompt_matters,
    check_guidance_matters,
    check_detached_guidance,
    check_decode,
    check_saves_and_loads,
    check_refuses_wrong_calls,
)


def _in_threes(generator: BatchedGenerator) -> BatchedGenerator:
    """The same generator, three sequences at a time."""
    other = copy.copy(generator)
    other.max_rows = 3
    return other


def _near(image: Image.Image, other: Image.Image) -> bool:
    """Equal up to one of 255 levels, which batched float arithmetic may round otherwise."""
    extrema = ImageChops.difference(image, other).getextrema()
    return max(high for _, high in extrema) <= 1  # type: ignore[misc]

"""Every check of the generator contract catches what it is for: a generator broken in one way fails it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.shapes_generator import ShapesLlama
from rwk.policy_opt import contract, probability_checks
from rwk.policy_opt.distribution import distribution
from rwk.policy_opt.generator import Rollout, TokenStatistics
from rwk.policy_opt.prefix import Prefix
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.global_state import restored


class Drawing(ShapesLlama):
    """The generator with a hook before and after each draw; as it stands it is not broken."""

    def before(self, recipe: Sampling) -> Sampling:
        return recipe

    def after(self, rollout: Rollout) -> Rollout:
        return rollout

    def sample(
        self, prompts: Sequence[str], *, per_prompt: int = 1, seed: int, sampling: Sampling | None = None
    ) -> Rollout:
        recipe = sampling or self.spec.sampling
        drawn = super().sample(prompts, per_prompt=per_prompt, seed=seed, sampling=self.before(recipe))
        return self.after(replace(drawn, sampling=recipe))


class ConditionalLogprobs(ShapesLlama):
    """Samples guided and trains unguided, without saying so."""

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        return super().statistics(replace(rollout, sampling=replace(rollout.sampling, guidance=1.0)))


class ForgetsTemperature(ShapesLlama):
    """Log-probabilities are those of temperature 1."""

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        return super().statistics(replace(rollout, sampling=replace(rollout.sampling, temperature=1.0)))


class ForgetsTopP(ShapesLlama):
    """Log-probabilities are those of all tokens."""

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        return super().statistics(replace(rollout, sampling=replace(rollout.sampling, top_p=1.0)))


class DrawsAtTemperatureOne(Drawing):
    """States the log-probabilities that were asked for, but draws from others."""

    def before(self, recipe: Sampling) -> Sampling:
        return replace(recipe, temperature=1.0, top_p=1.0)

    def after(self, rollout: Rollout) -> Rollout:
        with torch.no_grad():
            return replace(rollout, logprobs=self.logprobs(rollout))


class NotRenormalised(Drawing):
    """Truncates the draw and states, everywhere, the probabilities before truncation."""

    def after(self, rollout: Rollout) -> Rollout:
        with torch.no_grad():
            return replace(rollout, logprobs=self.logprobs(rollout))

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        return super().statistics(replace(rollout, sampling=replace(rollout.sampling, top_k=0, top_p=1.0)))


class TopPNotRenormalised(Drawing):
    """Likewise of top-p alone."""

    def after(self, rollout: Rollout) -> Rollout:
        with torch.no_grad():
            return replace(rollout, logprobs=self.logprobs(rollout))

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        return super().statistics(replace(rollout, sampling=replace(rollout.sampling, top_p=1.0)))


class OffByOneCodes(Drawing):
    """Gives the id behind each code that it drew, as where the first id of the codes is wrong by one."""

    def after(self, rollout: Rollout) -> Rollout:
        return replace(rollout, tokens=(rollout.tokens + 1) % self.spec.codes)


class WrongUnconditionalRow(ShapesLlama):
    """Guides each row away from the unconditional states of its neighbour."""

    def _draw(self, prefix: Prefix, group: list[int], noise: Tensor, recipe: Sampling) -> tuple[Tensor, Tensor]:
        self.guided = len(group) > len(noise)
        return super()._draw(prefix, group, noise, recipe)

    def backbone(self, embeds: Tensor, *, positions: Any = None, mask: Any = None, cache: Any = None) -> Tensor:
        hidden = super().backbone(embeds, positions=positions, mask=mask, cache=cache)
        if cache is None or embeds.shape[1] > 1 or not self.guided:
            return hidden
        cond, uncond = hidden.chunk(2)
        return torch.cat([cond, uncond.roll(1, 0)])


class StaleCache(ShapesLlama):
    """While it draws, the cache holds the code before in the place of the last."""

    def backbone(self, embeds: Tensor, *, positions: Any = None, mask: Any = None, cache: Any = None) -> Tensor:
        hidden = super().backbone(embeds, positions=positions, mask=mask, cache=cache)
        for layer in cache.layers if cache is not None and embeds.shape[1] == 1 else ():
            for room in layer.room:
                room[:, :, layer.filled - 1] = room[:, :, layer.filled - 2]
        return hidden


class StalePrefix(ShapesLlama):
    """Draws from the prompts that were read before, where they were as many."""

    def sample(self, prompts: Sequence[str], **options: Any) -> Rollout:
        self.drawing = True
        try:
            return super().sample(prompts, **options)
        finally:
            self.drawing = False

    def _prefill(self, prefixes: Sequence[Sequence[int]], codes: Tensor) -> Prefix:
        known: dict[int, Prefix] = vars(self).setdefault("known", {})
        fresh = super()._prefill(prefixes, codes)
        return known.setdefault(len(prefixes), fresh) if self.drawing else fresh


class OffByOne(ShapesLlama):
    """Gives each token the log-probability of its neighbour."""

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        result = super().statistics(rollout)
        return TokenStatistics(result.logprobs.roll(1, 1), result.entropy)


class SeesPadding(ShapesLlama):
    """Decodes without a mask, so short prompts attend to their padding."""

    def backbone(self, embeds: Tensor, *, positions: Any = None, mask: Any = None, cache: Any = None) -> Tensor:
        return super().backbone(embeds, positions=positions, cache=cache)


class CountsPadding(ShapesLlama):
    """Decodes at positions that count a short prompt's padding."""

    def backbone(self, embeds: Tensor, *, positions: Any = None, mask: Any = None, cache: Any = None) -> Tensor:
        return super().backbone(embeds, mask=mask, cache=cache)


class PadsLeftWithoutMask(ShapesLlama):
    """Pads prompts on the left in sampling and statistics alike, so that both see the padding."""

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        width = max(len(self.prompt_ids(prompt)) for prompt in rollout.prompts)
        intact = self.prompt_ids
        self.prompt_ids = lambda prompt: [0] * (width - len(intact(prompt))) + intact(prompt)  # type: ignore[method-assign]
        try:
            return super().statistics(rollout)
        finally:
            del self.prompt_ids


class WrongGroup(Drawing):
    """Numbers the rows and not the prompts."""

    def after(self, rollout: Rollout) -> Rollout:
        return replace(rollout, group=torch.arange(len(rollout)))


class Interleaved(Drawing):
    """Rows of one prompt are not adjacent."""

    def after(self, rollout: Rollout) -> Rollout:
        return rollout[torch.arange(len(rollout)).view(-1, 2).T.flatten()] if len(rollout) % 2 == 0 else rollout


class DrawsFromTheGlobalGenerator(Drawing):
    """Takes torch's global generator one step further."""

    def after(self, rollout: Rollout) -> Rollout:
        torch.rand(1)
        return rollout


class SeedsGlobally(Drawing):
    """Seeds torch's global generator."""

    def before(self, recipe: Sampling) -> Sampling:
        torch.manual_seed(0)
        return recipe


class LeavesGradientsOff(Drawing):
    """Switches gradients off and not on again."""

    def after(self, rollout: Rollout) -> Rollout:
        torch.set_grad_enabled(False)
        return rollout


class IgnoresTheSeed(ShapesLlama):
    """Always draws the same."""

    def sample(self, prompts: Sequence[str], *, seed: int, **options: Any) -> Rollout:
        return super().sample(prompts, seed=0, **options)


class SeedsByTheBatch(ShapesLlama):
    """The draw depends on how many prompts there are."""

    def sample(self, prompts: Sequence[str], *, seed: int, **options: Any) -> Rollout:
        return super().sample(prompts, seed=seed + len(prompts), **options)


class RestartsTheNoise(ShapesLlama):
    """Every part of a rollout that does not fit in one draws with the noise of the part before."""

    def sample(self, prompts: Sequence[str], **options: Any) -> Rollout:
        self.last: Tensor | None = None
        return super().sample(prompts, **options)

    def _draw(self, prefix: Prefix, group: list[int], noise: Tensor, recipe: Sampling) -> tuple[Tensor, Tensor]:
        last, self.last = self.last, noise
        again = last is not None and last.shape == noise.shape
        return super()._draw(prefix, group, last if again else noise, recipe)  # type: ignore[arg-type]


class Detached(ShapesLlama):
    """Log-probabilities without gradient."""

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        return TokenStatistics(*(value.detach() for value in super().statistics(rollout)))


class HalfTheGradient(ShapesLlama):
    """A gradient that is not that of the log-probabilities."""

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        logprobs, entropy = super().statistics(rollout)
        return TokenStatistics(0.5 * logprobs + 0.5 * logprobs.detach(), entropy)


class TextIds(Drawing):
    """Gives ids that are not codes."""

    def after(self, rollout: Rollout) -> Rollout:
        return replace(rollout, tokens=rollout.tokens + self.spec.codes)


class StretchedByTheBatch(ShapesLlama):
    """An image is as bright as the brightest of the batch allows."""

    def decode(self, tokens: Tensor) -> list[Image.Image]:
        images = super().decode(tokens)
        brightest = max(image.convert("L").getextrema()[1] for image in images)
        return [image.point(lambda value: value * 200 // brightest) for image in images]


class BluerLevels(ShapesLlama):
    """Rewards of pixels see other images than those that are kept."""

    def decode(self, tokens: Tensor) -> list[Image.Image]:
        return [Image.merge("RGB", image.split()[::-1]) for image in super().decode(tokens)]


class HalfSize(ShapesLlama):
    """Images are not of the stated size."""

    def decode(self, tokens: Tensor) -> list[Image.Image]:
        return [image.resize((24, 24)) for image in super().decode(tokens)]


class Dropout(ShapesLlama):
    """Is another policy in training mode."""

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        logprobs, entropy = super().statistics(rollout)
        return TokenStatistics(logprobs * (0.9 if self.module.training else 1.0), entropy)


class LeavesEvaluationMode(Drawing):
    """Leaves the module in evaluation mode."""

    def after(self, rollout: Rollout) -> Rollout:
        self.module.eval()
        return rollout


class ChangesWeights(Drawing):
    """Moves a weight a little with each draw."""

    def after(self, rollout: Rollout) -> Rollout:
        with torch.no_grad():
            next(self.module.parameters())[0, 0] += 1e-6
        return rollout


class IgnoresThePrompt(ShapesLlama):
    """Reads every prompt as the same."""

    def prompt_ids(self, prompt: str) -> list[int]:
        return super().prompt_ids("a red circle")


class IgnoresGuidance(Drawing):
    """Draws and states the conditional distribution, whatever the guidance."""

    def before(self, recipe: Sampling) -> Sampling:
        return replace(recipe, guidance=1.0)

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        return super().statistics(replace(rollout, sampling=self.before(rollout.sampling)))


class UnguidedCondOnly(Drawing):
    """Takes cond_only to mean that the sampler is not guided."""

    def before(self, recipe: Sampling) -> Sampling:
        return replace(recipe, guidance=1.0) if recipe.mode == "cond_only" else recipe


class ForgetsToDetach(ShapesLlama):
    """Takes the gradient through both branches in every mode that is guided."""

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        return super().statistics(replace(rollout, sampling=replace(rollout.sampling, mode="matched")))


class LooksAhead(ShapesLlama):
    """Teacher-forces with the sum of all codes in sight."""

    def embed_codes(self, codes: Tensor) -> Tensor:
        embeds = super().embed_codes(codes)
        return embeds + embeds.mean(1, keepdim=True) if codes.shape[1] > 1 else embeds


class ForgetsTheDraw(ShapesLlama):
    """A token that truncation drops by now has probability 0."""

    def _token_statistics(self, states: list[Tensor], codes: Tensor, recipe: Sampling) -> tuple[Tensor, Tensor]:
        logits = [self.image_logits(state) for state in states] + [None]
        logp = distribution(logits[0], logits[1], recipe)  # type: ignore[arg-type]
        entropy = -(logp.exp() * logp.masked_fill(logp == -math.inf, 0)).sum(-1)
        return logp.gather(2, codes[..., None])[..., 0], entropy


class LosesItsWeights(ShapesLlama):
    """What is loaded is not what was saved."""

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> LosesItsWeights:
        loaded = cls.tiny()
        with torch.no_grad():
            next(loaded.module.parameters()).mul_(2)
        return loaded  # type: ignore[return-value]


class Pickles(ShapesLlama):
    """Saves a file that can hold code."""

    def _save(self, folder: Path) -> None:
        super()._save(folder)
        torch.save({}, folder / "optimizer.pt")


class NewEveryTime(ShapesLlama):
    """`tiny()` takes its weights from the global generator."""

    @classmethod
    def tiny(cls) -> ShapesLlama:
        built = super().tiny()
        with torch.no_grad():
            next(built.module.parameters()).normal_()
        return built


class Nameless(ShapesLlama):
    """Says nothing of its licence."""

    def _place(self, device: str) -> None:
        super()._place(device)
        self.spec = replace(self.spec, licence="")


class TakesText(ShapesLlama):
    """Takes a text for a list of prompts."""

    def sample(self, prompts: Sequence[str], **options: Any) -> Rollout:
        return super().sample([prompts] if isinstance(prompts, str) else prompts, **options)


CAUGHT: dict[type[ShapesLlama], tuple[contract.Check, str]] = {
    Nameless: (contract.check_spec_is_complete, "spec.licence is ''"),
    NewEveryTime: (contract.check_tiny_is_repeatable, "changed the global torch generator"),
    WrongGroup: (contract.check_rows_and_groups, "group is tensor"),
    Interleaved: (contract.check_rows_and_groups, "rows are of prompts"),
    TextIds: (contract.check_tokens_are_codes, "of 512"),
    ConditionalLogprobs: (probability_checks.check_logprobs_match_the_sampler, "with Sampling(guidance=3.0"),
    ForgetsTemperature: (probability_checks.check_logprobs_match_the_sampler, "temperature=0.8"),
    ForgetsTopP: (probability_checks.check_logprobs_match_the_sampler, "top_p=0.9"),
    OffByOneCodes: (probability_checks.check_logprobs_match_the_sampler, "off by"),
    WrongUnconditionalRow: (probability_checks.check_logprobs_match_the_sampler, "with Sampling(guidance=3.0"),
    StaleCache: (probability_checks.check_logprobs_match_the_sampler, "off by"),
    StalePrefix: (contract.check_draws_ignore_companions, "a prompt alone draws"),
    OffByOne: (probability_checks.check_logprobs_match_the_sampler, "off by"),
    SeesPadding: (probability_checks.check_logprobs_match_the_sampler, "off by"),
    CountsPadding: (probability_checks.check_logprobs_match_the_sampler, "off by"),
    PadsLeftWithoutMask: (probability_checks.check_logprobs_ignore_neighbours, "each row alone"),
    NotRenormalised: (probability_checks.check_truncation_is_renormalised, "top_k=1"),
    TopPNotRenormalised: (probability_checks.check_truncation_is_renormalised, "top_p=1e-06"),
    DrawsAtTemperatureOne: (probability_checks.check_draws_follow_the_logprobs, "temperature=0.2"),
    IgnoresTheSeed: (contract.check_seed_decides, "9 different images"),
    SeedsByTheBatch: (contract.check_draws_ignore_companions, "a prompt alone draws"),
    RestartsTheNoise: (contract.check_draws_ignore_companions, "max_rows changes"),
    DrawsFromTheGlobalGenerator: (contract.check_leaves_global_state, "sample changed the global torch generator"),
    SeedsGlobally: (contract.check_leaves_global_state, "sample changed the global torch generator"),
    LeavesGradientsOff: (contract.check_leaves_global_state, "global gradient mode"),
    LeavesEvaluationMode: (contract.check_leaves_the_module, "training mode of the whole"),
    ChangesWeights: (contract.check_leaves_the_module, "model.embed_tokens.weight"),
    Dropout: (contract.check_ignores_dropout, "in training mode"),
    Detached: (probability_checks.check_gradient_is_right, "no gradient"),
    HalfTheGradient: (probability_checks.check_gradient_is_right, "promised"),
    ForgetsTheDraw: (probability_checks.check_any_tokens_have_logprobs, "not finite"),
    LooksAhead: (probability_checks.check_is_causal, "before token 32"),
    IgnoresThePrompt: (probability_checks.check_prompt_matters, "another prompt"),
    IgnoresGuidance: (probability_checks.check_guidance_matters, "guidance moves"),
    UnguidedCondOnly: (probability_checks.check_guidance_matters, "cond_only's sampler"),
    ForgetsToDetach: (probability_checks.check_detached_guidance, "is that of matched"),
    StretchedByTheBatch: (contract.check_decode, "a row alone"),
    HalfSize: (contract.check_decode, "(24, 24)"),
    BluerLevels: (contract.check_decode, "levels"),
    LosesItsWeights: (contract.check_saves_and_loads, "after save and load"),
    Pickles: (contract.check_saves_and_loads, "optimizer.pt"),
    TakesText: (contract.check_refuses_wrong_calls, "were sampled"),
}


@pytest.mark.parametrize("broken", CAUGHT, ids=lambda broken: broken.__name__)
def test_broken_generator_is_caught(broken: type[ShapesLlama]) -> None:
    """The check fails on the generator that it must catch, and says why."""
    check, words = CAUGHT[broken]
    with restored(), pytest.raises(AssertionError, match=re.escape(words)):
        check(broken.tiny())


def test_hook_breaks_nothing() -> None:
    """The base of the broken generators passes the checks that these fail, so each fails for its own fault."""
    for check in {check for broken, (check, _) in CAUGHT.items() if issubclass(broken, Drawing)}:
        check(Drawing.tiny())


def test_every_check_catches_something() -> None:
    """There is a broken generator for each check."""
    assert {check for check, _ in CAUGHT.values()} == set(contract.CHECKS)

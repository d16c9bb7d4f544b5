"""What a round of learning from pairs draws: images with their scores, and the pairs among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rwk.policy_opt.advantage import Weighted, combine, order_summary, summary, weights_of
from rwk.policy_opt.calibrated import confident
from rwk.policy_opt.configs import Rounds
from rwk.policy_opt.draws import Draws, joined, save_whole
from rwk.policy_opt.generator import Generator, Rollout
from rwk.policy_opt.guards import diversity
from rwk.policy_opt.journal import derived_seed
from rwk.policy_opt.off_policy import drift
from rwk.policy_opt.pairs import mined
from rwk.policy_opt.policy import Statistics, World
from rwk.policy_opt.sampling import Sampling
from rwk.policy_opt.scored_draws import Scored, scored

KL_IMAGES = 128
"""Images of a round by which the distance to the beginning is measured."""


@dataclass(frozen=True)
class Artist:
    """Draws, scores and pairs the images of a round."""

    config: Rounds
    generator: Generator
    rewards: Sequence[Weighted]
    unit: float
    """Margin of the reward that makes log-odds of 1; NaN where nobody asks."""
    floors: Sequence[float]
    table: list[str]
    sampling: Sampling
    place: World
    fixed: Statistics | None
    """Of the generator as it began, where that is the reference; else it is the policy that draws."""

    def draw(self, folder: Path, number: int) -> Draws:
        """All draws of a round; those that lie in the folder already are not made again.

        Where there are fewer draws than processes each is cut, so that none of them idles, and a process that has one
        to make makes it by halves where scores are to overlap: the images are the same.
        """
        order = torch.Generator().manual_seed(derived_seed(self.config.seed, number))
        chosen = torch.randperm(len(self.table), generator=order)[: self.config.prompts_per_round or None]
        folder.mkdir(parents=True, exist_ok=True)
        whole = torch.split(chosen, self.config.prompts_per_draw)
        cuts = -(-self.place.size // len(whole))
        of, parts = zip(*((index, part) for index, draw in enumerate(whole) for part in draw.chunk(cuts)), strict=True)
        cut = f"-{cuts}" if cuts > 1 else ""
        files = [folder / f"{index:05d}{cut}.safetensors" for index in range(len(parts))]
        own = [index for index in range(self.place.rank, len(parts), self.place.size) if not files[index].exists()]
        meanwhile, from_pixels = self.config.score_meanwhile, self.config.from_pixels
        pieces = {index: parts[index].chunk(2 if meanwhile and len(own) == 1 else 1) for index in own}
        seeds = {index: derived_seed(self.config.seed, number, of[index]) for index in own}
        drawn = (self._drawn(piece, seeds[index]) for index in own for piece in pieces[index])
        seed = derived_seed(self.config.seed, number)
        coming = scored(drawn, self.rewards, meanwhile=meanwhile, seed=seed, from_pixels=from_pixels)
        for index in own:
            draws = self._paired(parts[index], Scored.joined([next(coming) for _ in pieces[index]]))
            save_whole({name: value.contiguous() for name, value in vars(draws).items()}, files[index])
        self.place.wait()
        return joined([Draws(**load_file(file)) for file in files])

    def without_pairs(self, draws: Draws) -> str:
        """What is to be said of draws among which there is no pair."""
        return (
            f"found no pair among {len(draws.tokens)} images in groups of {self.config.group_size}: "
            f"{int(draws.reward.isnan().sum())} have no reward, and the others differ by no more than min_margin, "
            f"which is {self.config.min_margin}, or are preferred with less than min_confidence, which is "
            f"{self.config.min_confidence}"
        )

    def _drawn(self, handles: Tensor, seed: int) -> tuple[Rollout, Tensor]:
        """A group for each of some prompts, and its images as 8-bit levels."""
        rollout = self.generator.sample(
            [self.table[handle] for handle in handles.tolist()],
            per_prompt=self.config.group_size,
            seed=seed,
            sampling=self.sampling,
        )
        return rollout, self.generator.levels(rollout.tokens)

    def _paired(self, handles: Tensor, part: Scored) -> Draws:
        """Scored images with their pairs, and the reference's log-probabilities of what is in a pair."""
        config, rollout, scores = self.config, part.rollout, part.scores
        group = torch.arange(len(handles)).repeat_interleave(config.group_size)
        weights = weights_of(self.rewards, config.aggregation)
        floors = self.floors
        reward = combine(scores, weights, group, how=config.aggregation, min_std=floors, lower_k=config.lower_k)
        pairs = mined(config, reward, group)
        if config.min_confidence:
            pairs = confident(pairs, config.min_confidence, self.unit)

        rows, place = torch.unique(torch.cat([pairs.won, pairs.lost]), return_inverse=True)
        with torch.no_grad():
            logprobs = self.generator.logprobs(rollout[rows]) if len(rows) else rollout.logprobs[:0]
            reference = self.fixed(rollout[rows]).logprobs if self.fixed and len(rows) else logprobs
        won, lost = reference.sum(1).cpu()[place].chunk(2)
        apart = drift(self.generator.statistics, rollout[rows], logprobs) if len(rows) else logprobs.sum(1)
        gap = (rollout.logprobs[rows] - logprobs).mean(1)
        apart, gap = (column.cpu()[place].view(2, -1).mean(0) for column in (apart, gap))
        drawn = handles.repeat_interleave(config.group_size)
        tokens = rollout.tokens.cpu()
        return Draws(drawn, tokens, scores, part.orders, reward, pairs.won, pairs.lost, won, lost, apart, gap)

    def summary(self, draws: Draws) -> dict[str, Any]:
        """What the journal keeps of a round's draws."""
        group = torch.arange(len(draws.tokens)) // self.config.group_size
        values = summary(self.rewards, draws.scores, draws.reward, group) | order_summary(self.rewards, draws.orders)
        varied = diversity(draws.tokens, self.config.group_size)
        biased = {"guidance_gap": draws.gap.mean().item()} if self.sampling.mode == "cond_only" else {}
        apart = {"drift": draws.drift.mean().item()} | biased
        return values | {"pairs": len(draws.won), "diversity": varied} | apart

    def distance(self, draws: Draws, reference: Statistics) -> float:
        """Nats per image between the policy that drew and the reference, by `KL_IMAGES` of the draws."""
        handles, tokens = draws.handles[:KL_IMAGES], draws.tokens[:KL_IMAGES].to(self.place.device)
        prompts = [self.table[handle] for handle in handles.tolist()]
        rollout = Rollout(prompts, handles, tokens, torch.zeros_like(tokens, dtype=torch.float32), self.sampling)
        with torch.no_grad():
            return (self.generator.logprobs(rollout) - reference(rollout).logprobs).sum(1).mean().item()

"""How often an image beats others of its prompt, by a judge that is shown two at a time, in both orders.

With q(a, b) the judge's probability that the first, a, is better, and the n_i others that image i meets:

    p_ij = [q(i, j) + 1 - q(j, i)] / 2                   an advantage of the first place, added to q, cancels
    r_i  = 1 / n_i  sum_j p_ij                                                                   the win rate

which is Pref-GRPO's reward (Wang et al., 2025, arXiv:2508.20751) but that their code asks in one order, so that images
drawn earlier always come first, and counts an answer that cannot be read as half a win. Here a pair counts that was
answered in both orders, and an image without one is NaN. All pairs of a group of G cost G - 1 answers an image; to meet
k others, k. What is left of a first place whose advantage is in the log-odds pulls both images of a pair to 1/2 alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rwk.policy_opt.experiment import Experiment
from rwk.policy_opt.journal import derived_seed
from rwk.policy_opt.ladder_config import Ladder
from rwk.policy_opt.settings import Optimisation
from rwk.rewards import registry
from rwk.rewards.base import Reward, RewardSpec
from rwk.rewards.pair_judge import JUDGES, PairJudge, is_pair_judge


class Verdicts(NamedTuple):
    """What a pair judge says of images, each against those it met; NaN where no pair was answered in both orders."""

    rate: Tensor
    """[B] float32, mean probability of being better, 0..1."""
    bias: Tensor
    """[B] mean of q - 1/2 over both orders: above 0 where the judge likes the first place; -1/2..1/2."""
    contradiction: Tensor
    """[B] share of the pairs in which it is the same place, not the same image, that is better in both orders."""


@dataclass(frozen=True)
class WinRate:
    """A pair judge in the place of a reward of a run: the score of an image is its win rate."""

    judge: PairJudge
    opponents: int = 0
    """Others of its group that an image meets; 0 is all."""

    @property
    def spec(self) -> RewardSpec:
        return self.judge.spec

    def answers(self, size: int) -> int:
        """Answers that the judge gives for each image of a group of that size, both orders counted."""
        return self.opponents or size - 1

    def within(
        self, images: Sequence[Image.Image], prompts: Sequence[str], group: Tensor, *, seed: int = 0
    ) -> Verdicts:
        """Each image against others of its group.

        Args:
            prompts: [B] the prompt of every image.
            group: [B] long: rows of one prompt have the same number.
            seed: chooses whom an image meets, together with its prompt and its place in the group.
        """
        pairs: list[tuple[int, int]] = []
        for number in group.unique().tolist():
            rows = (group == number).nonzero().flatten().tolist()
            own = derived_seed(seed, zlib.crc32(prompts[rows[0]].encode()))
            pairs += [(rows[a], rows[b]) for a, b in meetings(len(rows), self.opponents, own)]
        return self._judged(images, images, prompts, pairs)

    def against(
        self, images: Sequence[Image.Image], others: Sequence[Image.Image], prompts: Sequence[str], size: int
    ) -> Verdicts:
        """Each image against all others that were made for the same prompt, such as by another generator.

        Args:
            others: as many, `size` adjacent ones of a prompt, as the images are.
        """
        pairs = [(i, i - i % size + place) for i in range(len(images)) for place in range(size)]
        return self._judged(images, others, prompts, pairs)

    def _judged(
        self,
        images: Sequence[Image.Image],
        others: Sequence[Image.Image],
        prompts: Sequence[str],
        pairs: Sequence[tuple[int, int]],
    ) -> Verdicts:
        one, two = [images[i] for i, _ in pairs], [others[j] for _, j in pairs]
        asked = [prompts[i] for i, _ in pairs] if self.judge.spec.needs_prompt else []
        answers = self.judge.compare([*one, *two], [*two, *one], [*asked, *asked]).values
        there, back = answers.chunk(2) if pairs else (answers, answers)
        return verdicts(torch.tensor(pairs).reshape(-1, 2), there, back, len(images), mutual=images is others)


def meetings(size: int, opponents: int, seed: int) -> Iterator[tuple[int, int]]:
    """The pairs of a group of that size, each once, in which every image meets the same number of others.

    In a random ring each meets its neighbours, and where that number is odd its opposite too.

    Args:
        opponents: 0 is all; `size * opponents` must be even.

    >>> sorted(meetings(4, 2, seed=0)), list(meetings(3, 0, seed=0))
    ([(0, 1), (0, 2), (1, 3), (2, 3)], [(0, 1), (0, 2), (1, 2)])
    """
    if not opponents or opponents >= size - 1:
        yield from combinations(range(size), 2)
        return
    if size * opponents % 2:
        raise ValueError(f"{size} images cannot each meet {opponents} others; make one of the numbers even.")
    ring = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    for step in range(1, opponents // 2 + 1):
        yield from (tuple(sorted((ring[i], ring[(i + step) % size]))) for i in range(size))
    if opponents % 2:
        yield from (tuple(sorted((ring[i], ring[i + size // 2]))) for i in range(size // 2))


def verdicts(pairs: Tensor, there: Tensor, back: Tensor, count: int, *, mutual: bool = True) -> Verdicts:
    """What the answers about pairs say of each of `count` images.

    Args:
        pairs: [P, 2] long: an image and the one that it meets.
        there: [P] probability that the first of the two is better, shown first; NaN where there is no answer.
        back: [P] probability that the second is better, shown first.
        mutual: a pair counts for both its images.

    >>> rate, bias, contradiction = verdicts(torch.tensor([[0, 1]]), torch.tensor([0.9]), torch.tensor([0.6]), 2)
    >>> [round(value, 3) for value in (*rate.tolist(), *bias.tolist(), *contradiction.tolist())]
    [0.65, 0.35, 0.25, 0.25, 1.0, 1.0]
    """
    pairs, there, back = (each[~(there.isnan() | back.isnan())] for each in (pairs, there.double(), back.double()))
    wins = (there + 1 - back) / 2
    ends = pairs.T.flatten() if mutual else pairs[:, 0]
    met = torch.zeros(count, dtype=torch.double).index_add(0, ends, torch.ones(len(ends), dtype=torch.double))

    def mean(of_first: Tensor, of_second: Tensor) -> Tensor:
        values = torch.cat([of_first, of_second]) if mutual else of_first
        total = torch.zeros(count, dtype=torch.double).index_add(0, ends, values)
        return (total / met).float()  # 0 / 0 is NaN

    bias = (there + back - 1) / 2
    same_place = ((there - 0.5) * (back - 0.5) > 0).double()
    return Verdicts(mean(wins, 1 - wins), mean(bias, bias), mean(same_place, same_place))


def scorer(name: str, opponents: int, device: str) -> Reward | WinRate:
    """What a run is to learn from under a name: a reward, or the win rates of a pair judge."""
    if is_pair_judge(name):
        return WinRate(JUDGES.load(name, device=device), opponents)
    return registry.load(name, device=device)


def check_judges(learnt: Sequence[str], experiment: Experiment, algorithm: Optimisation) -> None:
    """Raises ValueError for what cannot go with pair judges, whose scores compare images of one group alone.

    Args:
        learnt: names of what a run learns from.
    """
    judges = [name for name in learnt if is_pair_judge(name)]
    if is_pair_judge(experiment.watch) or (judges and experiment.watch):
        raise ValueError(
            f"--watch needs scores that can be compared over a run, got the pair judge "
            f"{judges[0] if judges else experiment.watch}; watch a reward, and learn from one."
        )
    size, opponents = algorithm.group_size, experiment.opponents
    if opponents and not judges:
        raise ValueError(f"opponents are of pair judges, got {opponents} for {', '.join(learnt)}; leave it out.")
    if opponents >= size:
        raise ValueError(f"opponents must be fewer than group_size, got {opponents} and {size}; lower it.")
    if size * opponents % 2:
        raise ValueError(
            f"opponents must be even where group_size is odd, so that every image meets as many, got {opponents} and "
            f"{size}."
        )
    if judges and algorithm.calibrated:
        raise ValueError(
            f"{judges[0]} is a pair judge, and a win rate has no temperature; leave out aggregation log_odds, gate, "
            f"advantage win_rate, soft_labels and min_confidence."
        )
    if judges and getattr(algorithm, "resampling", "none") == "history":
        raise ValueError(f"resampling history needs rewards with a top, got the pair judge {judges[0]}; take alike.")
    if judges and isinstance(algorithm, Ladder) and algorithm.harder_by == "success":
        raise ValueError(
            f"a ladder needs rewards that tell one prompt from another, got the pair judge {judges[0]}; take "
            f"--harder-by clauses."
        )

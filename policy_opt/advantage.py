"""From images to advantages: scores of several rewards, one reward made of them, and each row against its own group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rwk.policy_opt.generator import as_images
from rwk.policy_opt.settings import Aggregation, Baseline, Floor, Scale
from rwk.policy_opt.win_rates import WinRate
from rwk.rewards.base import PixelReward, Reward
from rwk.rewards.combine import WeightedSum

AT_ONCE = 32
"""Images that a reward is given at once as pixels, which bounds memory."""


class Weighted(NamedTuple):
    """A reward in a run. One of weight 0 is measured and written down, and nothing is learnt from it."""

    name: str
    reward: Reward | WinRate
    weight: float = 1.0
    temperature: float = math.nan
    """Margin that makes log-odds of 1 of a human preference, as `rwk calibrate` found it; NaN where nobody asked."""

    noise: float = math.nan
    """Deviation of a score of the same image, as the reward's card has it; NaN where nobody asked."""

    @property
    def known_noise(self) -> float:
        """The noise; raises ValueError where there is none."""
        if math.isnan(self.noise):
            raise ValueError(f"std_floor card needs the noise of {self.name}, got none; name a number in its place.")
        return self.noise

    @property
    def known_temperature(self) -> float:
        """The temperature; raises ValueError where there is none."""
        if not self.temperature > 0:
            raise ValueError(f"{self.name} needs a temperature above 0, got {self.temperature}; calibrate it first.")
        return self.temperature


class Columns(NamedTuple):
    """What the rewards of a run say of images."""

    scores: Tensor
    """[B, R] float32: the score of every image by every reward, NaN where there is none."""
    orders: Tensor
    """[B, J, 2] bias and contradiction by each of the J rewards that are pair judges, as in `win_rates.Verdicts`."""


def weights_of(rewards: Sequence[Weighted], how: Aggregation) -> list[float]:
    """R numbers that `combine` takes: the weights, for `log_odds` over the temperatures, so that each adds log-odds.

    For `normalise` a reward such as 2*clipscore counts for twice of what its scores, standardised, would.
    """
    if how == "log_odds":
        return [part.weight and part.weight / part.known_temperature for part in rewards]
    weights = [part.weight for part in rewards]
    if how == "normalise" and standardised(weights, how):
        return [weight * _factor(part.reward) for weight, part in zip(weights, rewards, strict=True)]
    return weights


def _factor(reward: Reward | WinRate) -> float:
    """How many times of another reward this one is, whatever the sign, which its scores have."""
    return abs(reward.weights[0]) if isinstance(reward, WeightedSum) and len(reward.weights) == 1 else 1.0


def floors_of(rewards: Sequence[Weighted], floors: Sequence[Floor], *, min_std: float) -> list[float]:
    """R numbers that `combine` takes as `min_std`: the floors, one for each reward of a weight, or else min_std.

    Args:
        floors: numbers, or `card` for the noise of the reward; `card` alone is of every reward.

    Raises:
        ValueError: where there are floors, and not one for each, or no noise is known.
    """
    learnt = sum(part.weight != 0 for part in rewards)
    given = list(floors) * learnt if list(floors) == ["card"] else list(floors)
    if given and len(given) != learnt:
        raise ValueError(f"std_floor needs one number for each reward, got {len(given)} for {learnt}.")
    found = []
    for part in rewards:
        floor = given.pop(0) if given and part.weight else min_std
        found.append(max(part.known_noise if floor == "card" else floor, min_std))
    return found


def score_all(
    rewards: Sequence[Weighted],
    levels: Tensor,
    prompts: list[str],
    group: Tensor,
    *,
    seed: int = 0,
    from_pixels: bool = False,
) -> Columns:
    """The score of every image by every reward; that of a pair judge is the image's win rate in its group.

    A score that is infinite is none: no other of its group could be held against it.

    Args:
        levels: [B, 3, H, W] uint8.
        group: [B] long: rows of one prompt have the same number.
        seed: of the draw, by which images meet others where a judge is not shown all pairs.
        from_pixels: a reward that has `score_pixels` is asked by that, without a way over images in main memory.
    """
    images: list[Image.Image] = []
    columns, orders = [], []
    for part in rewards:
        if isinstance(part.reward, WinRate):
            images = images or as_images(levels)
            found = part.reward.within(images, prompts, group.cpu(), seed=seed)
            columns.append(found.rate)
            orders.append(torch.stack(found[1:], dim=1))
        elif from_pixels and isinstance(part.reward, PixelReward):
            columns.append(_scored_pixels(part.reward, levels, prompts))
        else:
            images = images or as_images(levels)
            columns.append(part.reward.score(images, prompts).values)
    seen = torch.stack(orders, dim=1) if orders else torch.empty(len(levels), 0, 2)
    scores = torch.stack(columns, dim=1)
    return Columns(scores.masked_fill(scores.isinf(), math.nan), seen)


def _scored_pixels(reward: PixelReward, levels: Tensor, prompts: list[str]) -> Tensor:
    """[B] float32 scores by `score_pixels`, some images at once."""
    values = []
    with torch.no_grad():
        for start in range(0, len(levels), AT_ONCE):
            pixels = levels[start : start + AT_ONCE].to(reward.device, torch.float32) / 255
            asked = prompts[start : start + AT_ONCE] if reward.spec.needs_prompt else []
            values.append(reward.score_pixels(pixels, asked).float().cpu())
    return torch.cat(values)


def summary(rewards: Sequence[Weighted], scores: Tensor, reward: Tensor, group: Tensor) -> dict[str, Any]:
    """What a journal keeps of the scores [B, R], and of the rewards [B] that were made of them.

    The mean and the deviation of each reward are over all images that it scored; `frac_zero_std` is the share of groups
    in which no image is better than another, and `unscored` counts the images without a reward.
    """
    values: dict[str, Any] = {"images": len(reward), "unscored": int(reward.isnan().sum())}
    for part, column in zip(rewards, scores.T, strict=True):
        scored = column[~column.isnan()].double()
        values[f"reward/{part.name}/mean"] = scored.mean().item()
        values[f"reward/{part.name}/std"] = (scored - scored.mean()).square().mean().sqrt().item()
    better = group_advantage(reward, group, scale="none") != 0
    values["frac_zero_std"] = 1 - len(torch.unique(group[better])) / max(len(torch.unique(group)), 1)
    return values


def group_spread(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[P, R] the mean and the deviation with n - 1 of each reward over the images of each group that it scored.

    Where it scored none the mean is NaN and the deviation 0.

    Args:
        scores: [P * size, R], rows of one group adjacent; NaN where there is none.
    """
    groups = scores.double().reshape(-1, size, scores.shape[1])
    mean = groups.nanmean(1)
    freedom = (~groups.isnan()).sum(1).sub(1).clamp(min=1)
    return mean, ((groups - mean[:, None]).square().nansum(1) / freedom).sqrt()


def answers_an_image(rewards: Sequence[Weighted], size: int) -> int:
    """How often the rewards are asked for each image of a group of that size, a pair judge for each that it meets."""
    return sum(part.reward.answers(size) if isinstance(part.reward, WinRate) else 1 for part in rewards)


def order_summary(rewards: Sequence[Weighted], orders: Tensor) -> dict[str, float]:
    """What a journal keeps of how much the place mattered to each pair judge; NaN where it answered nothing.

    Args:
        rewards: of a run, of which J are pair judges.
        orders: [B, J, 2] bias and contradiction, as in `Verdicts`.
    """
    names = [part.name for part in rewards if isinstance(part.reward, WinRate)]
    found: dict[str, float] = {}
    for name, (bias, contradiction) in zip(names, orders.double().nanmean(0).tolist(), strict=True):
        found |= {f"reward/{name}/order_bias": bias, f"reward/{name}/order_contradiction": contradiction}
    return found


def combine(
    scores: Tensor,
    weights: Sequence[float],
    group: Tensor,
    *,
    how: Aggregation = "normalise",
    min_std: float | Sequence[float] = 1e-4,
    lower_k: float = 1.0,
) -> Tensor:
    """[B] one reward per row, made of several.

    One reward is passed on in its own unit times its weight. Several are added as they are (`sum`, and `log_odds` with
    the weights of `weights_of`: NaN where any is missing), or after each was standardised within its group
    (`normalise`, as in GDPO: a missing one counts as the mean of its group, and the row is NaN only where all are
    missing). `lower_bound` takes what the standardised ones agree on, mean - k deviation over the rewards (divided by
    n); NaN where any is missing.

    Args:
        scores: [B, R], NaN where a reward has no score.
        weights: R numbers; a reward of weight 0 takes no part.
        group: [B] long: rows of one prompt have the same number.
        min_std: for standardising, as in `group_advantage`; one for all rewards, or one for each.
        lower_k: k of `lower_bound`.
    """
    if scores.ndim != 2 or scores.shape != (group.numel(), len(weights)):
        raise ValueError(
            f"combine needs scores of shape [rows, rewards], got {tuple(scores.shape)} for {group.numel()} rows and "
            f"{len(weights)} weights; stack one column per reward."
        )
    active = [column for column, weight in enumerate(weights) if weight != 0]
    if not active:
        raise ValueError(f"combine needs a weight other than 0, got {list(weights)}; no reward would be learnt from.")
    chosen = scores[:, active]
    weight = torch.tensor([weights[column] for column in active], dtype=scores.dtype)
    if not standardised(weights, how):
        return chosen @ weight
    missing = chosen.isnan()
    floors = [min_std if isinstance(min_std, float) else min_std[column] for column in active]
    columns = zip(chosen.T, floors, strict=True)
    parts = torch.stack([group_advantage(column, group, min_std=floor) for column, floor in columns], dim=1)
    if how == "normalise":
        return (parts @ weight).masked_fill(missing.all(dim=1), torch.nan)
    members = parts * weight
    agreed = members.mean(1) - lower_k * members.std(1, correction=0)
    return agreed.masked_fill(missing.any(dim=1), torch.nan)


def standardised(weights: Sequence[float], how: Aggregation) -> bool:
    """Whether `combine` standardises the rewards within their groups, which then is not to be done once more."""
    return how in ("normalise", "lower_bound") and sum(weight != 0 for weight in weights) > 1


def group_advantage(
    reward: Tensor, group: Tensor, *, baseline: Baseline = "group", scale: Scale = "group", min_std: float = 1e-4
) -> Tensor:
    """[B] float32: by how much each row beat the mean of its group, in standard deviations.

    A row without a reward has advantage 0 and does not count for its group, nor does a group of one.

    Args:
        reward: [B], NaN where there is none.
        group: [B] long: rows of one prompt have the same number.
        baseline: the mean of the whole group, or of the others in it, which the row itself cannot raise. Not scaled,
            that is Dr. GRPO (arXiv:2503.20783) and RLOO (arXiv:2402.14740); they differ by the factor n / (n - 1).
        scale: divide by the deviation within the group (GRPO), within all groups together (`batch`), or not at all.
        min_std: a smaller deviation counts as this one; an exact tie gives 0 whatever it is.

    >>> group_advantage(torch.tensor([1.0, 3.0, 7.0, 7.0]), torch.tensor([0, 0, 1, 1]), scale="none")
    tensor([-1.,  1.,  0.,  0.])
    >>> group_advantage(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 0]), baseline="others", scale="none")
    tensor([-4.5000, -1.5000,  6.0000])
    """
    scored = ~reward.isnan()
    value = reward.double().masked_fill(~scored, 0)
    _, index = torch.unique(group, return_inverse=True)
    groups = int(index.max()) + 1 if index.numel() else 0
    count = torch.zeros(groups, dtype=torch.double).index_add(0, index, scored.double())
    mean = torch.zeros_like(count).index_add(0, index, value) / count.clamp(min=1)
    centred = (value - mean[index]).masked_fill(~scored, 0)
    freedom = (count - 1).clamp(min=0)
    gain = centred * (count / freedom.clamp(min=1))[index] if baseline == "others" else centred
    if scale == "none":
        return gain.float()
    squares = torch.zeros_like(count).index_add(0, index, centred**2)
    if scale == "batch":
        squares, freedom = squares.sum().expand(groups), freedom.sum().expand(groups)
    std = (squares / freedom.clamp(min=1)).sqrt().clamp(min=max(min_std, 1e-12))
    return (gain / std[index]).float()

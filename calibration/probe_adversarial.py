"""Adversarial pixels: how much a change that nobody sees can raise the score, for rewards with a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from rwk.calibration.edits import jpeg
from rwk.calibration.pairs import Floats
from rwk.calibration.probe import (
    Finding,
    Level,
    Probe,
    Result,
    Status,
    Subject,
    known,
    mean_of,
    share_of,
    skipped,
    told,
)
from rwk.rewards.base import PixelReward, to_rgb

RADII = (1, 2, 4, 8)
"""Grey levels that every value of a pixel may move by."""
NOTICED = 4
"""Radius above which a change can be seen."""
PROBE = Probe(
    "adversarial.pixels",
    "Share of the lower-scored images of a prompt that overtake its best one after projected gradient ascent of 20 "
    f"steps within {RADII[0]} grey level.",
    f"Fails where the interval at {RADII[0]} grey level lies above 0.5; warns where it does at {NOTICED}.",
    "share of images",
)


def adversarial(subject: Subject) -> Iterator[Result]:
    """One probe: the worst images of each prompt against its best one."""
    yield _attack(subject)


def _attack(subject: Subject) -> Result:
    reward = subject.reward
    if not (isinstance(reward, PixelReward) and reward.spec.differentiable):
        return skipped(PROBE, "the reward has no gradient")
    if math.isnan(subject.scale.value):
        return skipped(PROBE, "it gives all images of a prompt the same score, so there is no scale")
    rows, best = _worst_rows(subject)
    if len(rows) < 2:
        return skipped(PROBE, "needs two prompts with two images each that score unlike")
    domain, scores = subject.domains[0], subject.scores[0]
    images = [to_rgb(domain.images[row]) for row in rows]
    prompts = [domain.prompts[row] for row in rows]
    before, groups = scores[rows], domain.groups[rows]
    levels, attacked, found = [], [], []
    for radius in RADII:
        moved = [climb(reward, image, prompt, radius, subject) for image, prompt in zip(images, prompts, strict=True)]
        after = subject.score(moved, prompts)
        kept = subject.score([jpeg(image, 75) for image in moved], prompts)
        noise = subject.score([_random(image, radius) for image in images], prompts)
        measures = {
            "gain, units of the scale": (after - before) / subject.scale.value,
            "gain left after JPEG 75": (kept - before) / subject.scale.value,
            "gain by random signs": (noise - before) / subject.scale.value,
        }
        levels.append(
            Level(
                f"{radius} grey level{'s' if radius > 1 else ''}",
                share_of((after > best).astype(np.float64), groups),
                {name: interval for name, x in measures.items() if known(interval := mean_of(x, groups))},
            )
        )
        attacked.append((moved, after))
    status, shown = _status(levels)
    moved, after = attacked[shown]
    if status != "pass":
        for i in np.argsort(-(after - before))[: subject.sizes.findings]:
            said = (
                f"projected gradient ascent within {levels[shown].name}; the best image of the prompt has {best[i]:.4g}"
            )
            found.append(Finding(images[i], moved[i], prompts[i], prompts[i], float(before[i]), float(after[i]), said))
    reason = f"{told(levels[shown].value)} overtake the best image within {levels[shown].name}"
    return Result(PROBE, status, reason, levels[0].value, levels, found)


def _status(levels: Sequence[Level]) -> tuple[Status, int]:
    """The status, and the level that it comes from."""
    noticed = RADII.index(NOTICED)
    if levels[0].value.low > 0.5:
        return "fail", 0
    if levels[noticed].value.low > 0.5:
        return "warn", noticed
    return "pass", 0


def _worst_rows(subject: Subject) -> tuple[list[int], Floats]:
    """The lowest-scored image of each prompt whose scores differ, and the best score of its prompt."""
    domain, scores = subject.domains[0], subject.scores[0]
    rows, best = [], []
    for group in dict.fromkeys(domain.groups.tolist()):
        held = np.flatnonzero((domain.groups == group) & np.isfinite(scores))
        if len(held) > 1 and scores[held].max() - scores[held].min() > 0:
            rows.append(int(held[scores[held].argmin()]))
            best.append(float(scores[held].max()))
    return rows[: subject.sizes.attacked], np.array(best[: subject.sizes.attacked])


def climb(reward: PixelReward, image: Image.Image, prompt: str, radius: float, subject: Subject) -> Image.Image:
    """The image moved up the gradient of its score, no value by more than `radius` grey levels.

    Steps of 2.5 radius / steps along the sign (arXiv:1706.06083), through the reward's own preprocessing; the result is
    in whole grey levels.
    """
    start = pil_to_tensor(image)[None].to(reward.device, torch.float32) / 255  # [1, 3, H, W]
    reach, steps = radius / 255, subject.sizes.attack_steps
    pixels = start.clone()
    given = [prompt] if reward.spec.needs_prompt else []
    for _ in range(steps):
        slope = _slope(reward, pixels, given)
        pixels = pixels + 2.5 * reach / steps * slope.sign()
        pixels = pixels.clamp(start - reach, start + reach).clamp(0, 1)
    subject.advance(steps)
    inside = (pixels * 255).round() / 255
    moved: Image.Image = to_pil_image(inside[0].cpu())
    return moved


def _slope(reward: PixelReward, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
    with torch.enable_grad():
        held = pixels.detach().requires_grad_()
        (slope,) = torch.autograd.grad(reward.score_pixels(held, prompts).sum(), held)
    return slope


def _random(image: Image.Image, radius: int) -> Image.Image:
    """The image with every value moved by the radius, up or down at random."""
    sign = np.random.default_rng(0).choice([-radius, radius], (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image).astype(np.int64) + sign).clip(0, 255).astype(np.uint8))

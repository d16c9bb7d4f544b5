"""The contract of a reward as checks that run: `check_reward` for a plug-in's own tests, `CHECKS` for a test suite.

Every `check_*` is one claim, takes a reward, and raises `AssertionError` where the claim does not hold (or lets through
what the reward raised). They need no weights: give them `YourReward.tiny()`, or the real one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from rwk.rewards.base import PixelReward, Reward, RewardSpec, to_rgb
from rwk.rewards.checking import require, run_checks
from rwk.rewards.examples import every_mode, extreme, odd_sizes, ordinary, prompted, truncated
from rwk.rewards.global_state import global_state, restored, seed_everything, unlikely_state

T = TypeVar("T")
Check = Callable[[Reward], None]


def check_reward(reward: Reward) -> None:
    """Runs every check that the reward's spec calls for.

    Raises:
        AssertionError: naming each check that failed, and what it saw.
    """
    checks = {check.__name__: check for check in checks_for(reward.spec)}
    run_checks(reward, checks, f"{reward.spec.name} breaks the reward contract")


def checks_for(spec: RewardSpec) -> list[Check]:
    """The checks that apply to a reward of that spec."""
    absent = frozenset() if spec.deterministic else REPEATED
    absent |= frozenset() if spec.differentiable else GRADIENT
    absent |= frozenset({check_needs_no_prompt}) if spec.needs_prompt else frozenset()
    return [check for check in CHECKS if check not in absent]


def check_spec_is_complete(reward: Reward) -> None:
    """The spec states name, unit, licence, source and range, and says rightly whether there is a gradient."""
    spec = reward.spec
    for field in ("name", "unit", "licence", "source"):
        value = getattr(spec, field)
        require(isinstance(value, str) and value.strip() == value != "", f"spec.{field} is {value!r}")
    require(spec.low < spec.high, f"spec.low is {spec.low} and spec.high is {spec.high}")
    base = "a" if isinstance(reward, PixelReward) else "no"
    claim = f"spec.differentiable is {spec.differentiable}, and it is {base} PixelReward"
    require(spec.differentiable == isinstance(reward, PixelReward), claim)


def check_tiny_is_repeatable(reward: Reward) -> None:
    """`tiny()` builds its own class, twice alike, and leaves global state as it was."""
    with restored():
        before = unlikely_state(grad=True)
        first, second = type(reward).tiny(), type(reward).tiny()
        _require_unchanged(before, "tiny()")
    require(type(first) is type(reward), f"tiny() of {type(reward).__name__} built a {type(first).__name__}")
    if reward.spec.deterministic:
        images, prompts = ordinary(first)
        values = [tiny.score(images, prompts).values for tiny in (first, second)]
        _require_same(values[1], values[0], "the second that tiny() built")


def check_one_number_per_image(reward: Reward) -> None:
    """Zero, one and four images give values of shape [0], [1] and [4], float32 on the CPU, and as many notes."""
    images, prompts = ordinary(reward)
    for count in (0, 1, 4):
        values, notes = reward.score(images[:count], prompts[:count])
        require(tuple(values.shape) == (count,), f"values of shape {tuple(values.shape)} for {count} images")
        require(values.dtype == torch.float32, f"values of {values.dtype}, not torch.float32")
        require(values.device.type == "cpu", f"values on {values.device}, not on the CPU")
        texts = [note for note in notes if isinstance(note, str)]
        require(len(texts) == len(notes) == count, f"notes {notes} for {count} images")


def check_tells_images_apart(reward: Reward) -> None:
    """Unlike images do not all get one score, as they do where every failure scores 0."""
    values = reward.score(*ordinary(reward)).values
    different = {value for value in values.tolist() if math.isfinite(value)}
    require(len(different) > 1, f"unlike images score {values.tolist()}; see Reward.example_images")


def check_is_deterministic(reward: Reward) -> None:
    """The same input gets the same score, bit for bit, whatever was scored in between."""
    images, prompts = ordinary(reward)
    values = reward.score(images, prompts).values
    reward.score(extreme(), prompted(reward, extreme()))
    _require_same(reward.score(images, prompts).values, values, "the same again", exactly=True)


def check_ignores_global_state(reward: Reward) -> None:
    """Global seeds and gradient mode do not change a score."""
    images, prompts = ordinary(reward)
    expected = reward.score(images, prompts).values
    with restored():
        for seed, grad in ((1, True), (2, False)):
            seed_everything(seed)
            torch.set_grad_enabled(grad)
            _require_same(reward.score(images, prompts).values, expected, f"seed {seed} and gradients {grad}")


def check_leaves_global_state(reward: Reward) -> None:
    """Scoring changes no random generator (torch, numpy, python), gradient mode, default dtype or thread count."""
    images, prompts = ordinary(reward)
    for grad in (True, False):
        with restored():
            before = unlikely_state(grad)
            reward.score(images, prompts)
            if isinstance(reward, PixelReward):
                reward.score_pixels(_pixels(images[0], reward), prompts[:1])
            _require_unchanged(before, "scoring")


def check_ignores_neighbours(reward: Reward) -> None:
    """An image scores alone as it does among others."""
    images, prompts = ordinary(reward)
    together = reward.score(images, prompts, batch_size=len(images)).values
    alone = [reward.score([image], prompts[i : i + 1]).values for i, image in enumerate(images)]
    _require_same(torch.cat(alone), together, "each image alone")


def check_ignores_order(reward: Reward) -> None:
    """Images in another order get the same scores in that order."""
    images, prompts = ordinary(reward)
    expected = reward.score(images, prompts).values
    last = len(images) - 1
    for order in (list(range(last, -1, -1)), [*range(1, last + 1), 0]):
        scores = reward.score([images[i] for i in order], [prompts[i] for i in order] if prompts else [])
        _require_same(scores.values, expected[order], f"images in the order {order}")


def check_ignores_batch_size(reward: Reward) -> None:
    """No score depends on `batch_size`."""
    images, prompts = ordinary(reward)
    expected = reward.score(images, prompts, batch_size=64).values
    for size in (1, 2, 3):
        _require_same(reward.score(images, prompts, batch_size=size).values, expected, f"batch_size={size}")


def check_refuses_wrong_prompts(reward: Reward) -> None:
    """Too few prompts, too many, a text in place of a list, or none where one is needed are a ValueError."""
    images, _ = ordinary(reward)
    wrong: list[Any] = [["a"] * (len(images) - 1), ["a"] * (len(images) + 1), "a" * len(images)]
    for prompts in wrong + [[]] * reward.spec.needs_prompt:
        try:
            reward.score(images, prompts)
        except ValueError:
            continue
        require(False, f"{len(images)} images were scored with prompts {prompts!r}")


def check_needs_no_prompt(reward: Reward) -> None:
    """A reward that needs no prompt gives the same score with one."""
    images, _ = ordinary(reward)
    prompts = [reward.example_prompts[i % len(reward.example_prompts)] for i in range(len(images))]
    _require_same(reward.score(images, prompts).values, reward.score(images).values, "prompts that are not needed")


def check_undecodable_is_nan(reward: Reward) -> None:
    """An image whose file ends halfway gets NaN and a note, not 0 and no exception, and its neighbours a score."""
    images, prompts = ordinary(reward)
    whole = reward.score(images, prompts).values
    for format in ("JPEG", "PNG"):
        values, notes = reward.score([truncated(format), *images[1:]], prompts)
        require(math.isnan(values[0].item()), f"a truncated {format} file scored {values[0].item()}")
        require(notes[0] != "", f"a truncated {format} file got no note")
        require(torch.equal(values[1:].isnan(), whole[1:].isnan()), f"beside a truncated file, {values.tolist()}")


def check_nan_has_a_note(reward: Reward) -> None:
    """Where there is no score the note says why, even for images of one pixel or of 10000 by 1."""
    images = [*ordinary(reward)[0], *extreme(), *odd_sizes()]
    scores = reward.score(images, prompted(reward, images))
    for image, value, note in zip(images, scores.values.tolist(), scores.notes, strict=True):
        require(not math.isnan(value) or note != "", f"NaN without a note for {image.width}x{image.height} pixels")


def check_stays_in_range(reward: Reward) -> None:
    """Black, white, saturated, checkered, noisy, tiny and very long images score within `low` and `high`."""
    low, high = reward.spec.low, reward.spec.high
    images = [*ordinary(reward)[0], *extreme(), *odd_sizes()]
    for value in reward.score(images, prompted(reward, images)).values.tolist():
        require(not math.isinf(value), f"a score is {value}; where there is none it is NaN")
        slack = 1e-5 * abs(value)  # of float32
        require(math.isnan(value) or low - slack <= value <= high + slack, f"{value} is outside {low} to {high}")


def check_takes_every_mode(reward: Reward) -> None:
    """Images of mode L, LA, P, RGBA, CMYK, YCbCr, 1, I;16, I and F score as the RGB that a person sees."""
    images = every_mode()
    prompts = prompted(reward, images)
    expected = reward.score([to_rgb(image) for image in images], prompts).values
    _require_same(reward.score(images, prompts).values, expected, f"modes {[image.mode for image in images]}")


def check_leaves_inputs_alone(reward: Reward) -> None:
    """Images keep their pixels, mode and metadata, and the lists of images and prompts what they hold."""
    images = [*every_mode(), *odd_sizes()]
    prompts = prompted(reward, images)
    given = [*images], [*prompts]
    before = [(image.mode, image.size, dict(image.info), image.tobytes()) for image in images]
    reward.score(images, prompts)
    require((images, prompts) == given, "scoring changed a list that it was given")
    for image, old in zip(images, before, strict=True):
        new = image.mode, image.size, dict(image.info), image.tobytes()
        require(new == old, f"scoring changed an image of mode {old[0]}")


def check_pixels_agree_with_score(reward: Reward) -> None:
    """`score_pixels` of a batch gives [B]: what `score` gives, within `tolerance` and a tenth of the scores' spread."""
    assert isinstance(reward, PixelReward)
    images, prompts = ordinary(reward)
    images = [image.convert("RGB").resize((48, 40)) for image in images]
    with torch.no_grad():
        values = reward.score_pixels(torch.cat([_pixels(image, reward) for image in images]), prompts)
    require(tuple(values.shape) == (len(images),), f"score_pixels gave {tuple(values.shape)} for {len(images)} images")
    scores = reward.score(images, prompts).values
    known = scores[scores.isfinite()]
    # A tolerance is stated for trained networks; small random ones may not tell images apart by as much.
    apart = (known.max() - known.min()).item() if len(known) else 0.0
    _require_same(values.float().cpu(), scores, "score_pixels", min(reward.tolerance, 0.1 * apart))


def check_gradient_is_finite(reward: Reward) -> None:
    """The gradient of `score_pixels` is finite, for flat images too, and not 0 for every image."""
    assert isinstance(reward, PixelReward)
    images = [*ordinary(reward)[0], *extreme()]
    prompts = prompted(reward, images)
    steepest = 0.0
    for i, image in enumerate(images):
        pixels = _pixels(image, reward).requires_grad_()
        score = reward.score_pixels(pixels, prompts[i : i + 1]).sum()
        require(score.requires_grad, "score_pixels gave a score without gradient")
        (slope,) = torch.autograd.grad(score, pixels)
        require(bool(slope.isfinite().all()), f"the gradient of the score {score.item()} is not finite")
        steepest = max(steepest, slope.abs().max().item())
    require(steepest > 0, "the gradient is 0 for every image")


CHECKS: tuple[Check, ...] = (
    check_spec_is_complete,
    check_tiny_is_repeatable,
    check_one_number_per_image,
    check_tells_images_apart,
    check_is_deterministic,
    check_ignores_global_state,
    check_leaves_global_state,
    check_ignores_neighbours,
    check_ignores_order,
    check_ignores_batch_size,
    check_refuses_wrong_prompts,
    check_needs_no_prompt,
    check_undecodable_is_nan,
    check_nan_has_a_note,
    check_stays_in_range,
    check_takes_every_mode,
    check_leaves_inputs_alone,
    check_pixels_agree_with_score,
    check_gradient_is_finite,
)
GRADIENT = frozenset[Check]({check_pixels_agree_with_score, check_gradient_is_finite})
REPEATED: frozenset[Check] = frozenset(
    {check_is_deterministic, check_ignores_global_state, check_ignores_neighbours, check_ignores_order}
    | {check_ignores_batch_size, check_needs_no_prompt, check_takes_every_mode, check_pixels_agree_with_score}
)
"""Checks that score the same image twice, which says nothing of a reward that draws its scores."""


def _require_same(
    values: Tensor, expected: Tensor, case: str, tolerance: float = 0.0, *, exactly: bool = False
) -> None:
    """Equal up to what batched float32 arithmetic may differ by; NaN in the same places."""
    known = expected[expected.isfinite()]
    room = tolerance
    if len(known) and not exactly:
        room += 1e-5 * known.abs().max().item() + 1e-4 * (known.max() - known.min()).item()
    same = torch.allclose(values, expected, rtol=0, atol=room, equal_nan=True)
    require(same, f"{case}: scores are {values.tolist()}, expected {expected.tolist()} within {room:.2g}")


def _require_unchanged(before: dict[str, object], what: str) -> None:
    changed = [name for name, value in global_state().items() if value != before[name]]
    require(not changed, f"{what} changed the global {', '.join(changed)}")


def _pixels(image: Image.Image, reward: Reward) -> Tensor:
    """Pixels [1, 3, H, W] in 0..1 of an image."""
    pixels: Tensor = pil_to_tensor(image.convert("RGB"))[None].to(reward.device, torch.float32) / 255
    return pixels

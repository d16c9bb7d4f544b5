"""The checks are checked: each catches the rewards that break its clause, and none blames a right one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.rewards import contract as c
from rwk.rewards.base import PixelReward, Reward, RewardSpec, Scores
from rwk.rewards.contract import CHECKS, Check, check_reward, checks_for
from rwk.rewards.global_state import global_state, restored

SPEC = RewardSpec("mean", "8-bit steps", 0, 255, "n/a", "this test", needs_prompt=False)


def mean(image: Image.Image) -> float:
    return float(np.asarray(image, dtype=np.float64).mean())


class Right(Reward):
    """Mean of the pixels."""

    spec = SPEC

    @classmethod
    def tiny(cls) -> Reward:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        return torch.tensor([mean(image) for image in images])


class RightAsking(Right):
    """Mean of the pixels, and the length of the prompt; no score for the empty one, as the note says."""

    spec = replace(SPEC, high=math.inf, needs_prompt=True)

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        values = [mean(x) + len(prompt) if prompt else math.nan for x, prompt in zip(images, prompts, strict=True)]
        return Scores(torch.tensor(values), ["" if prompt else "the prompt is empty" for prompt in prompts])


class RightPixels(PixelReward):
    """Root mean square of the pixels."""

    spec = replace(SPEC, high=1, differentiable=True)

    @classmethod
    def tiny(cls) -> PixelReward:
        return cls()

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(pixels.flatten(1), dim=1)
        return lengths / math.sqrt(pixels[0].numel())


class RightDrawing(Right):
    """A score that is drawn, as its spec says, from a generator of its own."""

    spec = replace(SPEC, deterministic=False)

    def __init__(self) -> None:
        super().__init__()
        self.draw = random.Random(0).uniform

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        return torch.tensor([self.draw(0, 255) for _ in images])


class Remembering(Right):
    """Scores against the brightest image so far."""

    brightest = 1.0

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        self.brightest = max([self.brightest, *map(mean, images)])
        return torch.tensor([mean(image) / self.brightest for image in images])


class TinyWithOtherWeights(Right):
    def __init__(self) -> None:
        super().__init__()
        self.weight = random.SystemRandom().random()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        return torch.tensor([self.weight * mean(image) for image in images])


class OtherScale(RightPixels):
    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        values, notes = RightPixels._score(self, images, prompts)  # type: ignore[misc]
        return Scores(values * 0.9, notes)


class WideTolerance(OtherScale):
    """States so much room that any score would do."""

    tolerance = 1


def spec(base: type[Reward] = Right, **changes: Any) -> type[Reward]:
    """A reward with another spec."""
    return type("Respecified", (base,), {"spec": replace(base.spec, **changes)})


def tiny(build: Callable[[type[Reward]], Reward]) -> type[Reward]:
    return type("Tiny", (Right,), {"tiny": classmethod(build)})


def means(change: Callable[[list[float]], Any], **changes: Any) -> type[Reward]:
    """A reward that returns what `change` makes of the mean of every image of a batch."""

    def _score(self: Reward, images: list[Image.Image], prompts: list[str]) -> Any:
        return change([mean(image) for image in images])

    return type("Means", (spec(**changes),), {"_score": _score})


def asked(change: Callable[[list[float], list[str]], Any], base: type[Reward] = RightAsking) -> type[Reward]:
    """The same with the prompts."""

    def _score(self: Reward, images: list[Image.Image], prompts: list[str]) -> Any:
        return change([mean(image) for image in images], prompts)

    return type("Asked", (base,), {"_score": _score})


def after(act: Callable[[], Any]) -> type[Reward]:
    """A right score, after something else was done."""
    return means(lambda x: (act(), torch.tensor(x))[1])


def wrapped(call: Callable[..., Scores], base: type[Reward] = Right) -> type[Reward]:
    """A reward whose `score`, final as it is, was replaced by `call(score, images, prompts, **options)`."""

    def score(self: Reward, images: Any, prompts: Any = (), **options: Any) -> Scores:
        return call(super(kind, self).score, images, prompts, **options)  # type: ignore[misc]

    kind = type("Wrapped", (base,), {"score": score})
    return kind


def result(change: Callable[[Tensor, list[str]], tuple[Any, Any]]) -> type[Reward]:
    """A reward whose scores are changed on their way out."""
    return wrapped(lambda score, *args, **options: Scores(*change(*score(*args, **options))))


def pixels(change: Callable[[Tensor], Tensor]) -> type[Reward]:
    """A `PixelReward` of another function."""
    return type("Pixels", (RightPixels,), {"score_pixels": lambda self, pixels, prompts=(): change(pixels)})


def rms(x: Tensor) -> Tensor:
    return RightPixels().score_pixels(x)


def no_judge(values: list[float]) -> Tensor:
    try:
        raise ConnectionError("the judge is away")
    except ConnectionError:
        return torch.zeros(len(values))


def too_small(images: list[float]) -> Tensor:
    raise RuntimeError("Padding size should be less than the corresponding input dimension")


def draw_on(score: Any, images: Any, *args: Any, **options: Any) -> Scores:
    for image in images:
        image.putpixel((0, 0), 0)
    return score(images, *args, **options)  # type: ignore[no-any-return]


def mark(score: Any, images: Any, *args: Any, **options: Any) -> Scores:
    scores: Scores = score(images, *args, **options)
    for image, value in zip(images, scores.values.tolist(), strict=True):
        image.info["score"] = value
    return scores


def convert_in_the_list(score: Any, images: Any, *args: Any, **options: Any) -> Scores:
    images[:] = [image.convert("RGB") for image in images]
    return score(images, *args, **options)  # type: ignore[no-any-return]


def word_prompts_anew(score: Any, images: Any, prompts: Any, **options: Any) -> Scores:
    scores: Scores = score(images, prompts, **options)
    prompts[:] = [f"a photo of {prompt}" for prompt in prompts]
    return scores


def refuse_modes(score: Any, images: Any, *args: Any, **options: Any) -> Scores:
    if strange := {image.mode for image in images} - {"RGB", "L"}:
        raise ValueError(f"cannot handle {strange}")
    return score(images, *args, **options)  # type: ignore[no-any-return]


def drop_alpha(score: Any, images: Any, *args: Any, **options: Any) -> Scores:
    return score([image.convert("RGB") for image in images], *args, **options)  # type: ignore[no-any-return]


BROKEN: dict[Check, dict[str, type[Reward]]] = {
    c.check_spec_is_complete: {
        **{f"no {field}": spec(**{field: ""}) for field in ("name", "unit", "licence", "source")},
        **{f"from {low} to {high}": spec(low=low, high=high) for low, high in ((1, 1), (9, 0), (math.nan, 1))},
        "claims a gradient": spec(differentiable=True),
        "hides its gradient": spec(RightPixels, differentiable=False),
    },
    c.check_tiny_is_repeatable: {
        "draws its weights": TinyWithOtherWeights,
        "seeds torch": tiny(lambda cls: (torch.manual_seed(0), cls())[1]),
        "draws from torch": tiny(lambda cls: (torch.rand(1), cls())[1]),
        "builds another class": tiny(lambda cls: RightAsking()),
    },
    c.check_one_number_per_image: {
        "0-d for one image": means(lambda x: torch.tensor(x).squeeze()),
        "[B, 1]": means(lambda x: torch.tensor(x)[:, None]),
        "one number for a batch": means(lambda x: torch.tensor(x).mean()[None]),
        "one note for a batch": means(lambda x: Scores(torch.tensor(x), [""])),
        "float64": result(lambda values, notes: (values.double(), notes)),
        "on another device": result(lambda values, notes: (values.to("meta"), notes)),
        "notes missing": result(lambda values, notes: (values, notes[:1])),
        "notes that are None": result(lambda values, notes: (values, [None] * len(notes))),
    },
    c.check_tells_images_apart: {"every failure scores 0": means(no_judge)},
    c.check_is_deterministic: {
        "samples": means(lambda x: torch.tensor([value + random.random() for value in x])),
        "remembers what it scored": Remembering,
    },
    c.check_ignores_global_state: {
        "draws from torch": means(lambda x: torch.tensor(x) * torch.rand(1)),
        "depends on gradient mode": result(lambda values, notes: (values + torch.is_grad_enabled(), notes)),
    },
    c.check_leaves_global_state: {
        "seeds torch": after(lambda: torch.manual_seed(42)),
        "seeds numpy": after(lambda: np.random.seed(42)),
        "seeds python": after(lambda: random.seed(42)),
        "draws from numpy": after(lambda: np.random.rand()),
        "sets the default dtype": after(lambda: torch.set_default_dtype(torch.float64)),
        "sets the thread count": after(lambda: torch.set_num_threads(1)),
        "leaves gradients on": result(lambda values, notes: (torch.set_grad_enabled(True), (values, notes))[1]),
        "leaves gradients off": pixels(lambda x: (torch.set_grad_enabled(False), rms(x))[1]),
    },
    c.check_ignores_neighbours: {
        "divides by the largest": means(lambda x: torch.tensor(x) / max(x)),  # as MPS does with its mask
        "subtracts the mean": means(lambda x: torch.tensor(x) - sum(x) / len(x)),
        "averages over padding": asked(lambda x, p: torch.tensor(x) / (max(map(len, p)) + 1)),
    },
    c.check_ignores_order: {
        "adds the place": means(lambda x: torch.tensor(x) + torch.arange(len(x))),
        "sorts": means(lambda x: torch.tensor(sorted(x))),
        "sums up": means(lambda x: torch.tensor(x).cumsum(0)),
    },
    c.check_ignores_batch_size: {
        "divides by the count": means(lambda x: torch.tensor(x) / len(x)),
        "subtracts the least": means(lambda x: torch.tensor(x) - min(x)),
    },
    c.check_refuses_wrong_prompts: {
        "fills them up": wrapped(lambda score, x, p=(), **o: score(x, [*p, *["a"] * 99][: len(x)], **o), RightAsking),
        "takes a text": wrapped(lambda score, x, p=(), **o: score(x, list(p), **o), RightAsking),
        "takes none": wrapped(lambda score, x, p=(), **o: score(x, p or ["a"] * len(x), **o), RightAsking),
    },
    c.check_needs_no_prompt: {
        "uses it all the same": asked(lambda x, p: torch.tensor(x) + sum(map(len, p)), Right),
    },
    c.check_undecodable_is_nan: {
        "scores it 0": result(lambda values, notes: (values.nan_to_num(0.0), notes)),
        "says nothing": result(lambda values, notes: (values, [""] * len(notes))),
        "raises": wrapped(drop_alpha),
        "gives up the batch": result(lambda v, notes: (v * math.nan if v.isnan().any() else v, notes)),
    },
    c.check_nan_has_a_note: {
        "divides 0 by 0 for black": means(lambda x: torch.tensor([value or math.nan for value in x])),
        "raises for one pixel": wrapped(
            lambda score, x, *p: too_small(x) if (1, 1) in [i.size for i in x] else score(x, *p)
        ),
    },
    c.check_stays_in_range: {
        "bounds of photographs": spec(high=200),
        "below its least": means(lambda x: torch.tensor(x) - 1),
        "-inf for black": means(lambda x: torch.tensor(x).log(), low=-math.inf),
    },
    c.check_takes_every_mode: {"refuses them": wrapped(refuse_modes), "drops alpha": wrapped(drop_alpha)},
    c.check_leaves_inputs_alone: {
        "draws on the image": wrapped(draw_on),
        "marks the image": wrapped(mark),
        "converts in the list": wrapped(convert_in_the_list),
        "words prompts anew": wrapped(word_prompts_anew, RightAsking),
    },
    c.check_pixels_agree_with_score: {
        "averages the batch": pixels(lambda x: rms(x).mean().expand(len(x))),
        "one number for a batch": pixels(lambda x: rms(x)[:1]),
        "another scale": OtherScale,
        "a tolerance wider than the scores": WideTolerance,
    },
    c.check_gradient_is_finite: {
        "square root at 0": pixels(lambda x: x.flatten(1).square().mean(1).sqrt()),
        "detached": pixels(lambda x: rms(x.detach())),
        "rounds": pixels(lambda x: rms((x * 255).round()) / 255),
    },
}
CASES = [
    pytest.param(check, kind, id=f"{check.__name__}-{what}")
    for check, kinds in BROKEN.items()
    for what, kind in kinds.items()
]


@pytest.mark.parametrize("kind", [Right, RightAsking, RightPixels, RightDrawing])
def test_a_right_reward_passes(kind: type[Reward]) -> None:
    """Rewards that keep the contract pass every check that applies to them."""
    check_reward(kind())


@pytest.mark.parametrize(("check", "kind"), CASES)
def test_a_broken_reward_is_caught(check: Check, kind: type[Reward]) -> None:
    """The check raises for it, and `check_reward` names the check."""
    with restored(), pytest.raises((AssertionError, ValueError, RuntimeError, OSError)):  # noqa: PT011
        check(kind())
    assert check in checks_for(kind.spec)
    with pytest.raises(AssertionError, match=f"breaks the reward contract:\n(.*\n)*{check.__name__}: "):
        check_reward(kind())


def test_every_check_has_a_broken_reward_and_is_in_the_suite() -> None:
    """No check is hollow, and no `check_*` of the module is missing from CHECKS."""
    written = {value for name, value in vars(c).items() if name.startswith("check_")} - {check_reward}
    assert written == set(CHECKS) == set(BROKEN)
    assert all(BROKEN.values())
    assert len(CHECKS) == len(written) >= 19
    assert all(check.__doc__ and "\n" not in check.__doc__ for check in CHECKS)


def test_checking_leaves_no_trace() -> None:
    """Checking a reward changes no global state, even where the reward does."""
    before = global_state()
    check_reward(RightPixels())
    for kind in BROKEN[c.check_leaves_global_state].values():
        with pytest.raises(AssertionError):
            check_reward(kind())
    assert global_state() == before


def test_the_report_says_what_was_seen() -> None:
    """The error names the reward, the clause and the values."""
    with pytest.raises(AssertionError) as caught:
        check_reward(spec(high=200)())
    assert str(caught.value) == (
        "mean breaks the reward contract:\ncheck_stays_in_range: AssertionError: 255.0 is outside 0 to 200"
    )

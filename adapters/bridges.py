"""A reward in the shape that other libraries ask for: TRL, verl, torchmetrics, diffusers. None is imported before use.

Nowhere does an image without a score count as 0: TRL and torchmetrics leave it out, verl cannot and so is stopped, and
in a ranking it comes last.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from rwk.rewards.base import Reward
from rwk.rewards.batching import Batcher
from rwk.rewards.errors import RunFailed

if TYPE_CHECKING:
    from torchmetrics import Metric  # type: ignore[import-not-found,unused-ignore]

Pictures = Sequence[Image.Image] | Tensor
"""PIL images, or pixels [B, 3, H, W]: uint8, or floating point in 0..1."""


def pil_images(images: Pictures) -> list[Image.Image]:
    """The images as PIL images; values of pixels are rounded to 8 bits.

    Raises:
        ValueError: for a tensor of another shape, or with values outside 0..1.
    """
    if not isinstance(images, Tensor):
        return list(images)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"pixels must be a tensor [B, 3, H, W], got one of {list(images.shape)}; add a dimension.")
    pixels = images.detach().cpu()
    if pixels.dtype != torch.uint8:
        if not pixels.is_floating_point() or not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise ValueError(f"pixels must be uint8, or lie in 0..1, got {pixels.dtype} with others; rescale them.")
        pixels = (pixels.float() * 255).round().to(torch.uint8)
    return [to_pil_image(each) for each in pixels]


def trl_reward(
    reward: Reward, images: str | Callable[[list[list[int]]], Pictures], *, batch_size: int = 16
) -> Callable[..., list[float | None]]:
    """A function for `GRPOTrainer(reward_funcs=...)`: a score for each completion, None where there is none.

    TRL gives a completion of which no function knows the reward no advantage.

    Args:
        reward: is asked with TRL's prompts; of a conversation, with the text of the last message of the user.
        images: makes images of the completions' token ids, or names the column that holds them, which is one of the
            dataset's or of what a `rollout_func` returns.
        batch_size: images that go through the reward at once.
    """

    def score(
        prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        found = columns.get(images) if isinstance(images, str) else images(completion_ids)
        if found is None:
            known = ", ".join(columns) or "none"
            raise ValueError(
                f"{reward.spec.name} needs images in the column {images!r}, got {known}; name one of them."
            )
        texts = [_text(prompt) for prompt in prompts]
        values = reward.score(pil_images(found), texts, batch_size=batch_size).values.tolist()
        return [None if math.isnan(value) else value for value in values]

    score.__name__ = reward.spec.name  # under which TRL logs it
    return score


def _text(prompt: Any) -> str:
    """What a prompt of TRL's says: a text, or the last message of the user."""
    if isinstance(prompt, str):
        return prompt
    content = next((message["content"] for message in reversed(prompt) if message["role"] == "user"), "")
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part.get("type") == "text")


def verl_score(
    reward: Reward, images: Callable[[str], Image.Image] | None = None, *, max_batch: int = 16, max_wait: float = 0.005
) -> Callable[..., dict[str, Any]]:
    """A `compute_score` for verl, to be named by `reward.custom_reward_function`.

    verl asks for one image at a time from many threads; they share batches. The image is `solution_image` (verl-omni's
    pixels [3, H, W]), else `images` makes it of `solution_str`. The prompt is `extra_info["prompt"]`, else the
    `ground_truth`. verl knows no missing reward, so that RunFailed is raised where there is none.

    Args:
        reward: has no thread but the one that this makes.
        images: makes the image of a decoded response, for generators whose images are text to verl.
        max_batch: images that go through the reward at once.
        max_wait: seconds that an image waits for others.
    """
    batcher = Batcher(reward, max_batch=max_batch, max_wait=max_wait)

    def compute_score(
        data_source: str,
        solution_str: str = "",
        ground_truth: Any = None,
        extra_info: dict[str, Any] | None = None,
        *,
        solution_image: Tensor | Image.Image | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        if solution_image is None and images is not None:
            solution_image = images(solution_str)
        if solution_image is None:
            raise ValueError(f"{reward.spec.name} needs an image, got the text {solution_str[:40]!r}; give images=.")
        prompt = (extra_info or {}).get("prompt", ground_truth)
        prompts = [str(prompt)] if prompt is not None else []
        found = solution_image[None] if isinstance(solution_image, Tensor) else [solution_image]
        values, (note,) = batcher.score(pil_images(found), prompts)
        if values.isnan().any():
            raise RunFailed(f"{reward.spec.name} gave no score to an image of {data_source}: {note}")
        return {"score": values.item(), "note": note}

    return compute_score


def torchmetric(reward: Reward, *, batch_size: int = 16) -> Metric:
    """A torchmetrics `Metric`: the mean score of all images that have one, NaN where none has.

    `update(images, prompts)` takes `Pictures`; `unscored` counts the images without a score. Sums are in float64 (on
    devices that have it), and processes are added up.
    """
    return _metric(reward, batch_size)


def _metric(reward: Reward, batch_size: int) -> Metric:
    metric: Metric = _metric_class()(reward, batch_size)
    return metric


@functools.cache
def _metric_class() -> type[Any]:
    from torchmetrics import Metric

    class RewardMetric(Metric):  # type: ignore[misc,unused-ignore]
        """The mean of a reward's scores."""

        total: Tensor
        scored: Tensor
        unscored: Tensor
        is_differentiable = False
        higher_is_better = True
        full_state_update = False

        def __init__(self, reward: Reward, batch_size: int) -> None:
            super().__init__()
            self.reward, self.batch_size = reward, batch_size
            self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("scored", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
            self.add_state("unscored", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

        def update(self, images: Pictures, prompts: Sequence[str] = ()) -> None:
            values = self.reward.score(pil_images(images), prompts, batch_size=self.batch_size).values
            known = values[~values.isnan()]
            self.total += known.double().sum().to(self.total)
            self.scored += len(known)
            self.unscored += len(values) - len(known)

        def compute(self) -> Tensor:
            mean: Tensor = self.total / self.scored  # NaN for 0 / 0
            return mean.float()

        def __reduce__(self) -> tuple[Any, ...]:  # as pickle does not find a class that a function made
            return _metric, (self.reward, self.batch_size), self.__getstate__()

    return RewardMetric


class Ranked(NamedTuple):
    """The images of one prompt, best first."""

    images: list[Image.Image]
    scores: list[float]
    """NaN, and last, where there is none."""
    notes: list[str]


def diffusers_ranking(reward: Reward, *, batch_size: int = 16) -> Callable[..., list[Ranked]]:
    """A callback that ranks what a diffusers pipeline made: `rank(pipeline(prompt, num_images_per_prompt=8), prompt)`.

    It takes the pipeline's output, or its images alone (PIL, or `Pictures` of `output_type="pt"`), and the prompt or
    prompts that it was given, none for a pipeline without; it gives a `Ranked` for each prompt.
    """

    def rank(output: Any, prompt: str | Sequence[str] | None = None) -> list[Ranked]:
        images = pil_images(getattr(output, "images", output))
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        each, rest = divmod(len(images), max(1, len(prompts)))
        if rest:
            raise ValueError(
                f"{reward.spec.name} needs as many images for every prompt, got {len(images)} images and "
                f"{len(prompts)} prompts; give the prompts that the pipeline was given."
            )
        repeated = [text for text in prompts for _ in range(each)]  # the order of num_images_per_prompt
        scores = reward.score(images, repeated, batch_size=batch_size)
        values = scores.values.tolist()
        ranked = []
        for place in range(max(1, len(prompts))):
            group = range(place * each, (place + 1) * each)
            order = sorted(group, key=lambda i: math.inf if math.isnan(values[i]) else -values[i])
            ranked.append(
                Ranked([images[i] for i in order], [values[i] for i in order], [scores.notes[i] for i in order])
            )
        return ranked

    return rank

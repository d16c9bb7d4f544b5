"""Processors of vision-language models whose images are tensors and keep their gradient."""

from __future__ import annotations

import copy
from typing import Any


def of_pixels(processor: Any, name: str) -> Any:
    """The processor for images [3, H, W] in 0..1, prepared by torch as by Pillow, but for rounding to 8 bits.

    Args:
        processor: what `AutoProcessor` makes.
        name: the reward that asks, for messages.

    Raises:
        ValueError: where transformers prepares this model's images by Pillow alone.
    """
    import transformers
    from transformers.image_processing_backends import TorchvisionBackend

    own = processor.image_processor
    kind = getattr(transformers, type(own).__name__.removesuffix("Pil"), None)
    if kind is None or not issubclass(kind, TorchvisionBackend):
        raise ValueError(
            f"{name} has no score_pixels with {type(own).__name__}, as transformers prepares its images by Pillow; "
            f"score images, or name another model."
        )

    class Pixels(kind):  # type: ignore[misc, valid-type]
        def resize(self, *given: Any, **named: Any) -> Any:
            return super().resize(*given, **named).clamp(0, 1)  # bicubic overshoots, which 8 bits cut off

    made = copy.copy(processor)
    made.image_processor = Pixels.from_dict({**own.to_dict(), "do_rescale": False})
    return made

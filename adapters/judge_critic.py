"""A vision-language model as a critic: what a picture lacks of its prompt, in a sentence of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from PIL import Image

from rwk.adapters.judge import HUB
from rwk.adapters.vlm import Refused, Vlm, tiny_vlm

QUESTION = (
    'This picture was made for the text "{prompt}". If it shows all that the text says, answer with the one word none. '
    "If not, write one short sentence that describes, as it should be, what is missing or wrong."
)
NONE = "none"


class VlmCritic:
    """`reflection.Critic` of any chat model that reads an image; asked once, its likeliest answer is taken."""

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        tokens: int = 48,
    ) -> None:
        """
        Args:
            weights, revision, device, dtype: as of `Judge`.
            tokens: an answer is cut to so many.
        """
        self.vlm = Vlm.load(weights or HUB, name="judge.critic", revision=revision, device=device, dtype=dtype)
        self.tokens = tokens

    @classmethod
    def tiny(cls) -> Self:
        self = cls.__new__(cls)
        self.vlm, self.tokens = tiny_vlm("judge.critic"), 8
        return self

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        """[B] remarks; "" also where the picture is refused, or the prompt spells out a control token."""
        return [self._remark(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _remark(self, image: Image.Image, prompt: str) -> str:
        if self.vlm.control_in(prompt):
            return ""
        text = self.vlm.conversation([QUESTION.replace("{prompt}", prompt)])
        try:
            said = " ".join(self.vlm.answer([image], text, tokens=self.tokens).split())
        except Refused:
            return ""
        return "" if said.strip(" .!").lower() in ("", NONE) else said

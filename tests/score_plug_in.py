"""Rewards that write down what they score; tests of `rwk score` name them as score_plug_in:Class."""

from __future__ import annotations

import os
import time

import torch
from PIL import Image

from rwk.rewards.base import Reward, RewardSpec, Scores


class Width(Reward):
    """The width of the image; takes $SLOW seconds a batch, and adds a line for each image to the file $SEEN."""

    spec = RewardSpec("width", "pixels", 0, float("inf"), "n/a", "tests", needs_prompt=False)

    @classmethod
    def tiny(cls) -> Width:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor | Scores:
        time.sleep(float(os.environ.get("SLOW", "0")))
        with open(os.environ["SEEN"], "a") as file:
            file.writelines(f"{os.getpid()} {image.width}\n" for image in images)
        return torch.tensor([float(image.width) for image in images])


class Length(Width):
    """The length of the prompt."""

    spec = RewardSpec("length", "letters", 0, float("inf"), "n/a", "tests")

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Scores:
        notes = [f"said {prompt}" if prompt == "two" else "" for prompt in prompts]
        return Scores(torch.tensor([float(len(prompt)) for prompt in prompts]), notes)


class Broken(Width):
    """1, but for images 12 pixels wide, which get no score, and 13 pixels wide, which raise."""

    spec = RewardSpec("broken", "pixels", 0, float("inf"), "n/a", "tests", needs_prompt=False)

    def _score(self, images: list[Image.Image], prompts: list[str]) -> torch.Tensor:
        if any(image.width == 13 for image in images):
            raise ValueError("thirteen")
        return torch.tensor([float("nan") if image.width == 12 else 1.0 for image in images])

"""Size of a picture as a JPEG file, the rewards of DDPO (Black et al., 2023)."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from rwk.rewards.base import Reward, RewardSpec, Scores

LARGEST = 65500
"""Most pixels along a side of a JPEG file that libjpeg writes."""


def jpeg_bytes(image: Image.Image) -> int:
    """Length of the picture as a JPEG file: quality 95, else Pillow's defaults, no metadata.

    Those are baseline coding, chroma halved along both axes (4:2:0), and the standard Huffman tables. The length
    depends on the build of libjpeg by some bytes.
    """
    bare = image.copy()
    bare.info = {}  # Pillow would write the comment that came with the file
    file = io.BytesIO()
    bare.save(file, format="JPEG", quality=95)
    return file.tell()


class Incompressibility(Reward):
    """Kilobytes of the picture as a JPEG file of quality 95: detail and noise score high."""

    spec = RewardSpec(
        "incompressibility.jpeg",
        "kB of 1000 bytes",
        0,
        float("inf"),
        "n/a",
        "arXiv:2305.13301",
        needs_prompt=False,
    )
    sign = 1

    @classmethod
    def tiny(cls) -> Incompressibility:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        values, notes = [], []
        for image in images:
            fits = max(image.size) <= LARGEST
            values.append(self.sign * jpeg_bytes(image) / 1000 if fits else float("nan"))
            notes.append("" if fits else f"JPEG holds {LARGEST} pixels a side, got {image.width}x{image.height}")
        return Scores(torch.tensor(values, dtype=torch.float32), notes)


class Compressibility(Incompressibility):
    """Minus the kilobytes of the picture as a JPEG file of quality 95: smooth pictures score high."""

    spec = RewardSpec(
        "compressibility.jpeg",
        "minus kB of 1000 bytes",
        float("-inf"),
        0,
        "n/a",
        "arXiv:2305.13301",
        needs_prompt=False,
    )
    sign = -1

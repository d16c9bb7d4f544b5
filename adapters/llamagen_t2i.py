"""LlamaGen with a text as its condition."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rwk.adapters.llamagen import LlamaGen, spec_of
from rwk.adapters.llamagen_gpt import GptConfig
from rwk.adapters.llamagen_t5 import ORIGIN, T5Features
from rwk.adapters.published import Origin
from rwk.policy_opt.sampling import Sampling

HUB = "peizesun/llamagen_t2i"
RECIPE = Sampling(guidance=7.5, top_k=1000)
"""That of the authors' sample_t2i.py."""
NULL = 1 << 16
"""Ids from here on stand for the places of no text; T5's lie below."""


class TextToImage(LlamaGen):
    """Pictures of a text, which Flan-T5 XL reads.

    The text is cleaned as in training (`clean_caption`) and read up to 120 tokens, in bfloat16, as it was there. The
    authors put it at the end of 120 places and shut those before it off from all else; here these are left out, which
    comes to the same. No text is a learnt feature for each of the places, of which as many count as the text has
    tokens. T5 is frozen; `save` writes it too.
    """

    vq_origin = Origin(HUB, "vq_ds16_t2i.pt", "MIT", 288)

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        """See `LlamaGen`; T5's files may lie beside the others, under the names that they have on the hub."""
        super().__init__(weights=weights, revision=revision, device=device, dtype=dtype)
        self.text = T5Features.load(self.spec.name, weights, device)

    @classmethod
    def origins(cls) -> tuple[Origin, ...]:
        return (*super().origins(), ORIGIN)

    @classmethod
    def tiny(cls) -> Self:
        self = super().tiny()
        self.text = T5Features.tiny()
        return self

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        self = super()._from_folder(folder, device=device)
        self.text = T5Features.from_folder(folder / "t5", device)
        return self

    def _save(self, folder: Path) -> None:
        super()._save(folder)
        self.text.save(folder / "t5")

    def prompt_ids(self, prompt: str) -> list[int]:
        return self.text.ids(prompt, self.causal_lm.config.caption_tokens)

    def null_ids(self, prompt: str) -> list[int]:
        places = self.causal_lm.config.caption_tokens
        return list(range(NULL + places - len(self.prompt_ids(prompt)), NULL + places))

    def embed_ids(self, ids: Tensor) -> Tensor:
        rows = [tuple(row) for row in ids.tolist()]
        index = {row: place for place, row in enumerate(dict.fromkeys(rows))}
        features = pad_sequence([self._features(row) for row in index], batch_first=True)  # [U, P, caption width]
        embeds: Tensor = self.causal_lm.cls_embedding.cap_proj(features)
        return embeds[[index[row] for row in rows]]

    def _features(self, ids: tuple[int, ...]) -> Tensor:
        """[n, caption width] of one row of ids, which may be filled up with 0 behind its end."""
        none: Tensor = self.causal_lm.cls_embedding.uncond_embedding
        ids = ids[: max(place for place, number in enumerate(ids, 1) if number)]  # the last of a text is `</s>`
        if ids[0] >= NULL:
            return none[torch.tensor(ids, device=none.device) - NULL]
        return self.text.features(ids).to(none)


class Xl256(TextToImage):
    """LlamaGen-XL of the first stage, at 256 pixels: 775 million weights. See `TextToImage`."""

    spec = spec_of("t2i_xl_256", 16, RECIPE)
    sizes = GptConfig(layers=36, heads=20, width=1280, grid=16, caption_width=2048)
    origin = Origin(HUB, "t2i_XL_stage1_256.pt", "MIT", 3112)


class Xl512(TextToImage):
    """LlamaGen-XL of the second stage, at 512 pixels: 775 million weights. See `TextToImage`."""

    spec = spec_of("t2i_xl_512", 32, RECIPE)
    sizes = GptConfig(layers=36, heads=20, width=1280, grid=32, caption_width=2048)
    origin = Origin(HUB, "t2i_XL_stage2_512.pt", "MIT", 3112)
